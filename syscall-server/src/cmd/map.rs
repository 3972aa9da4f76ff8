//! Map commands.

use super::{Attr, ENOTSUPP, check_name, held, storage};
use crate::btf::fields;
use crate::btf::parse::Btf;
use crate::fds::Access;
use crate::object::{self, Events, MapObject, Object};
use crate::{broker, fds, user, wait};
use bpftime_abi::attr::{MapCreate, MapElem, OneFd};
use bpftime_abi::field::Fields;
use bpftime_abi::field::find::{self, Types as _};
use bpftime_abi::map_type::*;
use bpftime_agent::run::MapHandle;
use bpftime_shm::map::InnerDef;
use bpftime_shm::{Map, MapDef};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// CPUs in per-CPU values.
pub fn possible_cpus() -> u32 {
    static CPUS: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *CPUS.get_or_init(|| cpus_in("possible"))
}

/// CPUs that a tool opens buffers on.
pub fn online_cpus() -> u32 {
    cpus_in("online")
}

/// One more than the highest CPU in a list of `/sys/devices/system/cpu`, such as `0-3,8`; 1 when it cannot be read.
fn cpus_in(list: &str) -> u32 {
    let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/{list}")).unwrap_or_default();
    let last = text.trim().rsplit([',', '-']).next().and_then(|n| n.parse::<u32>().ok());
    last.map_or(1, |n| n + 1)
}

/// BPF_MAP_CREATE.
pub fn create(attr: &Attr) -> Result<i64, Errno> {
    let a: MapCreate = attr.get();
    check_name(&a.map_name)?;
    if a.map_ifindex != 0 || (a.btf_value_type_id != 0 && a.btf_vmlinux_value_type_id != 0) {
        return Err(Errno::INVAL);
    }
    let mut def = MapDef {
        map_type: a.map_type,
        key_size: a.key_size,
        value_size: a.value_size,
        max_entries: a.max_entries,
        map_flags: a.map_flags,
        name: a.map_name,
        map_extra: a.map_extra,
        btf_id: 0,
        btf_key_type_id: a.btf_key_type_id,
        btf_value_type_id: a.btf_value_type_id,
        inner: match a.map_type {
            BPF_MAP_TYPE_ARRAY_OF_MAPS | BPF_MAP_TYPE_HASH_OF_MAPS => held::template(a.inner_map_fd)?,
            _ => InnerDef::default(),
        },
        fields: Fields::default(),
    };
    bpftime_shm::map::table::check(&def)?;
    if a.btf_key_type_id != 0 || a.btf_value_type_id != 0 {
        (def.btf_id, def.fields) = check_btf(&a)?;
    }
    let (memfd, map) = Map::create(&def, possible_cpus())?;
    map.set_owner(broker::TOOL_OWNER);
    let handle = Arc::new(MapHandle::new(map));
    let id = object::next_id();
    let own = fds::hidden(&memfd)?;
    let (fd, events) = match a.map_type {
        BPF_MAP_TYPE_RINGBUF | BPF_MAP_TYPE_USER_RINGBUF => waitable()?,
        _ => match Access::from_flags(a.map_flags)? {
            Access::Both => (memfd, None),
            access => (fds::open_as(&memfd, access)?, None),
        },
    };
    let map = Arc::new(MapObject {
        id,
        handle,
        memfd: own,
        events,
        slots: Mutex::new(BTreeMap::new()),
        held: Mutex::default(),
        prog_type: OnceLock::new(),
    });
    if map.events.is_some() {
        wait::register(wait::Ring::Map(Arc::downgrade(&map)));
    }
    object::insert(&fd, Object::Map(map))?;
    Ok(fds::give(fd))
}

/// A descriptor for a map that is waited on, and our side of it.
pub fn waitable() -> Result<(OwnedFd, Option<Events>), Errno> {
    let (tool, ours) = fds::event_pair()?;
    let events = Events { ours, tool: fds::hidden(&tool)?, signalled: AtomicBool::new(false) };
    Ok((tool, Some(events)))
}

/// The types must be as long as keys and values. The kernel refuses BTF for maps whose type has no use for it with
/// ENOTSUPP; libbpf and bcc then go without. The id of the BTF, and what of a value is no data.
fn check_btf(a: &MapCreate) -> Result<(u32, Fields), Errno> {
    let object = object::btf(a.btf_fd).map_err(|_| Errno::BADF)?;
    let btf = Btf::parse(&object.data).ok_or(Errno::INVAL)?;
    let fits = |id: u32, len: u32| id != 0 && btf.size_of(id) == Some(len);
    let key = match a.btf_key_type_id {
        // A map's only value: global data.
        0 if a.map_type == BPF_MAP_TYPE_ARRAY => a.max_entries == 1,
        0 => a.map_type == BPF_MAP_TYPE_BLOOM_FILTER,
        id => fits(id, a.key_size),
    };
    if !key || !fits(a.btf_value_type_id, a.value_size) {
        return Err(Errno::INVAL);
    }
    if matches!(a.map_type, BPF_MAP_TYPE_PERF_EVENT_ARRAY | BPF_MAP_TYPE_CGROUP_ARRAY) {
        return Err(ENOTSUPP);
    }
    let fields = find::of_map(&btf, a.btf_value_type_id);
    fields::admitted(&fields, a.map_type, a.map_flags)?;
    // Of keys that begin with a length of prefix.
    if a.map_type == BPF_MAP_TYPE_LPM_TRIE && !btf.is_struct(a.btf_key_type_id) {
        return Err(Errno::INVAL);
    }
    Ok((object.id, fields))
}

fn elem(attr: &Attr, needed: Access) -> Result<(MapElem, Arc<MapObject>), Errno> {
    let a: MapElem = attr.get();
    Ok((a, allowed(a.map_fd, needed)?))
}

/// The map behind a descriptor that allows what is to be done; a frozen map is not changed any more (`EPERM`).
pub fn allowed(fd: u32, needed: Access) -> Result<Arc<MapObject>, Errno> {
    let map = object::map(fd)?;
    let frozen = needed != Access::Read && map.handle.map.is_frozen();
    if frozen || !Access::of(fds::borrow(fd as i32)?)?.covers(needed) { Err(Errno::PERM) } else { Ok(map) }
}

/// The key at `addr`, which is NULL for maps without keys.
fn key(map: &MapObject, addr: u64) -> Result<Vec<u8>, Errno> {
    match map.def().key_size {
        0 if addr != 0 => Err(Errno::INVAL),
        size => user::read(addr, size as usize),
    }
}

/// BPF_MAP_LOOKUP_ELEM.
pub fn lookup(attr: &Attr) -> Result<i64, Errno> {
    let (a, map) = elem(attr, Access::Read)?;
    let key = key(&map, a.key)?;
    let len = map.handle.map.value_size_user();
    // Of a Bloom filter one asks for a value.
    let asks = map.def().map_type == BPF_MAP_TYPE_BLOOM_FILTER;
    let mut value = if asks { user::read(a.value, len)? } else { vec![0; len] };
    match map.handle.map.task_storage() {
        Some(s) => storage::lookup(&map, s, &key, &mut value, a.flags)?,
        None => map.handle.map.sys_lookup(&key, &mut value, a.flags)?,
    }
    user::write(a.value, &value)?;
    Ok(0)
}

/// BPF_MAP_LOOKUP_AND_DELETE_ELEM.
pub fn lookup_and_delete(attr: &Attr) -> Result<i64, Errno> {
    const BPF_F_LOCK: u64 = 4;
    if attr.get::<MapElem>().flags & !BPF_F_LOCK != 0 {
        return Err(Errno::INVAL);
    }
    let (a, map) = elem(attr, Access::Both)?;
    let key = key(&map, a.key)?;
    let mut value = vec![0; map.handle.map.value_size_user()];
    map.handle.map.sys_lookup_and_delete(&key, &mut value, a.flags)?;
    user::write(a.value, &value)?;
    Ok(0)
}

/// BPF_MAP_UPDATE_ELEM.
pub fn update(attr: &Attr) -> Result<i64, Errno> {
    let (a, map) = elem(attr, Access::Write)?;
    let key = key(&map, a.key)?;
    let value = user::read(a.value, map.handle.map.value_size_user())?;
    update_one(&map, &key, &value, a.flags)?;
    Ok(0)
}

/// One element.
pub fn update_one(map: &Arc<MapObject>, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
    if map.handle.map.perf_event_array().is_some() {
        return store_event(map, key, value, flags);
    }
    if held::is_container(map) {
        return held::store(map, key, word(value)?, flags);
    }
    if map.def().map_type == BPF_MAP_TYPE_CGROUP_ARRAY {
        return store_cgroup(map, key, value, flags);
    }
    if let Some(storage) = map.handle.map.task_storage() {
        return storage::update(map, storage, key, value, flags);
    }
    map.handle.map.sys_update(key, value, flags)
}

/// A cgroup directory's descriptor into a CGROUP_ARRAY: its id is its inode number.
fn store_cgroup(map: &MapObject, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
    const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;
    let array = map.handle.map.fd_array().ok_or(Errno::INVAL)?;
    map.handle.map.check_slot_update(key, flags)?;
    let fd = fds::borrow(word(value)? as i32)?;
    if rustix::fs::fstatfs(fd)?.f_type != CGROUP2_SUPER_MAGIC {
        return Err(Errno::BADF);
    }
    let id = rustix::fs::fstat(fd)?.st_ino;
    array.set_object(word(key)?, id as u32, flags)?;
    Ok(())
}

/// A perf event's descriptor into a PERF_EVENT_ARRAY.
fn store_event(map: &Arc<MapObject>, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
    let array = map.handle.map.perf_event_array().ok_or(Errno::INVAL)?;
    let index = array.check_update(key, flags)?;
    let event = object::perf(word(value)?).map_err(|_| Errno::BADF)?;
    let ring = event
        .ring
        .get()
        .map(|(fd, _)| bpftime_shm::PerfRing::open(rustix::fd::AsFd::as_fd(fd)))
        .transpose()?;
    set_slot(map, index, ring);
    map.slots.lock().unwrap_or_else(PoisonError::into_inner).insert(index, event.clone());
    broker::perf_slot(map, index, Some(&event))
}

fn set_slot(map: &MapObject, index: u32, ring: Option<bpftime_shm::PerfRing>) {
    if let Some(array) = map.handle.map.perf_event_array() {
        // A program that runs in the tool may hold the old ring; it is small and rare, so it stays mapped.
        std::mem::forget(array.set_slot(index, ring));
    }
}

fn word(bytes: &[u8]) -> Result<u32, Errno> {
    bytes.first_chunk().map(|b| u32::from_ne_bytes(*b)).ok_or(Errno::INVAL)
}

/// BPF_MAP_DELETE_ELEM.
pub fn delete(attr: &Attr) -> Result<i64, Errno> {
    let (a, map) = elem(attr, Access::Write)?;
    let key = key(&map, a.key)?;
    delete_one(&map, &key)?;
    Ok(0)
}

/// One element.
pub fn delete_one(map: &MapObject, key: &[u8]) -> Result<(), Errno> {
    if map.handle.map.perf_event_array().is_some() {
        let index = word(key)?;
        if index >= map.def().max_entries {
            return Err(Errno::TOOBIG);
        }
        let old = map.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&index);
        old.ok_or(Errno::NOENT)?;
        set_slot(map, index, None);
        return broker::perf_slot(map, index, None);
    }
    if held::is_container(map) {
        return held::remove(map, key);
    }
    if let Some(storage) = map.handle.map.task_storage() {
        return storage::delete(map, storage, key);
    }
    map.handle.map.sys_delete(key)
}

/// BPF_MAP_GET_NEXT_KEY.
pub fn next_key(attr: &Attr) -> Result<i64, Errno> {
    let (a, map) = elem(attr, Access::Read)?;
    let key = if a.key == 0 { None } else { Some(key(&map, a.key)?) };
    let mut next = vec![0; map.def().key_size as usize];
    map.handle.map.sys_next_key(key.as_deref(), &mut next)?;
    user::write(a.value, &next)?;
    Ok(0)
}

/// BPF_MAP_FREEZE.
pub fn freeze(attr: &Attr) -> Result<i64, Errno> {
    let a: OneFd = attr.get();
    let map = allowed(a.fd, Access::Write)?;
    crate::perf::mmap::forget_unmapped(&map);
    map.handle.map.freeze()?;
    Ok(0)
}
