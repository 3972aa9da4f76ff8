//! BPF maps.

mod array;
mod bloom;
mod fd_array;
mod hash;
mod header;
mod locked;
mod lpm;
mod map_in_map;
mod members;
mod ops;
mod perf_array;
mod queue;
mod ringbuf;
mod stack_trace;
mod syscall;
pub mod table;
mod task_storage;

pub use array::cpu_stride as percpu_array_stride;
pub use fd_array::FdArray;
pub use hash::{Hash, HashParts};
pub use members::Members;
pub use perf_array::PerfEventArray;
pub use stack_trace::StackTrace;
pub use task_storage::{Task, TaskStorage};

use crate::PAGE;
use crate::region::{Region, create_sealed, sealed_size};
use crate::ring::{LockId, RingBuf, UserRing};
use crate::uapi::*;
use bpftime_abi::field::Fields;
use core::ops::ControlFlow;
use core::sync::atomic::AtomicU16;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use ops::{Ops, Shm};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use table::{Kind, with_kind};

/// The kernel's NR_CPUS_DEFAULT ceiling: a header that claims more is a forgery.
pub const MAX_CPUS: u32 = 8192;

/// What MAP_CREATE is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MapDef {
    /// BPF_MAP_TYPE_*
    pub map_type: u32,
    /// bytes
    pub key_size: u32,
    /// bytes, of one CPU's value
    pub value_size: u32,
    /// elements, or bytes for a ring buffer
    pub max_entries: u32,
    /// BPF_F_*
    pub map_flags: u32,
    /// NUL-terminated
    pub name: [u8; 16],
    /// type-specific
    pub map_extra: u64,
    /// id of the BTF object, 0 for none
    pub btf_id: u32,
    /// BTF type of the key
    pub btf_key_type_id: u32,
    /// BTF type of the value
    pub btf_value_type_id: u32,
    /// What the maps inside of a map-in-map are like; all zero for other types
    pub inner: InnerDef,
    /// Parts of a value that are no data
    pub fields: Fields,
}

/// The template of a map-in-map. As in the kernel, a map may be put in if these are equal.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InnerDef {
    /// BPF_MAP_TYPE_*
    pub map_type: u32,
    /// bytes
    pub key_size: u32,
    /// bytes
    pub value_size: u32,
    /// elements; only of arrays without BPF_F_INNER_MAP equality is demanded
    pub max_entries: u32,
    /// BPF_F_*
    pub map_flags: u32,
    /// parts of a value that are no data
    pub fields: Fields,
}

impl InnerDef {
    /// The template that `def` makes.
    pub fn of(def: &MapDef) -> InnerDef {
        let MapDef { map_type, key_size, value_size, max_entries, map_flags, fields, .. } = *def;
        InnerDef { map_type, key_size, value_size, max_entries, map_flags, fields }
    }

    /// Whether a map may stand for the template.
    pub fn admits(&self, def: &MapDef) -> bool {
        let sized = self.map_type == BPF_MAP_TYPE_ARRAY && self.map_flags & BPF_F_INNER_MAP == 0;
        InnerDef { max_entries: def.max_entries, ..*self } == InnerDef::of(def)
            && (!sized || def.max_entries == self.max_entries)
    }
}

/// The per-CPU ABI: a user-space value of a per-CPU map is `round_up(value_size, 8) * possible` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus {
    /// Number of possible CPUs.
    pub possible: u32,
}

/// An open map: the mapping of its memfd and a private, validated copy of its attributes.
pub struct Map {
    kind: Kind,
    def: MapDef,
    cpus: u32,
    inode: u64,
    owner: AtomicU16,
    // Last: `kind` holds pointers into it.
    region: Region,
}

// SAFETY: everything shared behind the pointers in `kind` is atomic or moved by relaxed atomic copies.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl core::fmt::Debug for Map {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Map").field("def", &self.def).field("cpus", &self.cpus).finish_non_exhaustive()
    }
}

impl Map {
    /// BPF_MAP_CREATE: validates as the kernel does, makes the memfd and opens it.
    ///
    /// # Errors
    /// EINVAL, E2BIG, ENOMEM as the kernel's; EMFILE and the like from memfd_create.
    pub fn create(def: &MapDef, cpus: u32) -> Result<(OwnedFd, Map), Errno> {
        table::check(def)?;
        if cpus == 0 || cpus > MAX_CPUS {
            return Err(Errno::INVAL);
        }
        let len = Kind::file_len(def, cpus).ok_or(Errno::NOMEM)?;
        let fd = create_sealed("bpftime-map", len)?;
        let seed = if def.map_flags & BPF_F_ZERO_SEED != 0 { 0 } else { random_seed()? };
        let page = Region::map(fd.as_fd(), PAGE)?;
        // SAFETY: a fresh page of a file that only we hold.
        unsafe { header::write(page.base(), def, cpus, seed) };
        let map = Map::open(fd.as_fd())?;
        Ok((fd, map))
    }

    /// Maps a map's memfd, which may come from an untrusted peer.
    ///
    /// # Errors
    /// EINVAL when it is not a sealed memfd with a valid header and the size that header implies.
    pub fn open(fd: BorrowedFd<'_>) -> Result<Map, Errno> {
        let (size, inode) = sealed_size(fd)?;
        if size < PAGE {
            return Err(Errno::INVAL);
        }
        let page = Region::map(fd, PAGE)?;
        // SAFETY: one page is mapped and the file can not shrink.
        let opened = unsafe { header::read(page.base()) }?;
        let expected = Kind::file_len(&opened.def, opened.cpus).ok_or(Errno::INVAL)?;
        if size != expected {
            return Err(Errno::INVAL);
        }
        let shm = Shm { fd, len: size, def: &opened.def, cpus: opened.cpus, seed: opened.seed };
        let (region, kind) = Kind::open(shm)?;
        Ok(Map { kind, def: opened.def, cpus: opened.cpus, inode, owner: AtomicU16::new(0), region })
    }

    /// The attributes given to MAP_CREATE.
    pub fn def(&self) -> &MapDef {
        &self.def
    }

    /// Possible CPUs the map was made for.
    pub fn cpus(&self) -> Cpus {
        Cpus { possible: self.cpus }
    }

    /// Identity: the inode of the memfd, the same for every descriptor of this map.
    pub fn id(&self) -> u64 {
        self.inode
    }

    /// The id bpf(2) reports, 0 until [`Map::set_map_id`].
    pub fn map_id(&self) -> u32 {
        self.state().map_id.load(Relaxed)
    }

    /// Assigns the id bpf(2) reports.
    pub fn set_map_id(&self, id: u32) {
        self.state().map_id.store(id, Relaxed);
    }

    /// Names this process in whatever it may leave half done, for [`Map::recover`]. Owners are indices
    /// below 65536 that the session hands out; 0 is for processes that are never recovered.
    pub fn set_owner(&self, owner: u16) {
        self.owner.store(owner, Relaxed);
        with_kind!(&self.kind, m => m.set_owner(owner));
    }

    /// Repairs what the dead process `owner` left half done: nodes it held, locks, busy records.
    /// Call before the owner index is given out again. Returns the number of repairs.
    pub fn recover(&self, owner: u16) -> usize {
        let lock = usize::from(self.state().lock.recover(owner.into()));
        lock + with_kind!(&self.kind, m => m.recover(owner))
    }

    fn state(&self) -> &header::State {
        // SAFETY: the region begins with the header page and lives as long as self.
        unsafe { header::state(self.region.base()) }
    }

    /// BPF_MAP_FREEZE.
    ///
    /// # Errors
    /// EPERM when already frozen, EBUSY while writable mappings exist.
    pub fn freeze(&self) -> Result<(), Errno> {
        if self.is_frozen() {
            return Err(Errno::PERM);
        }
        if self.state().writers.load(Acquire) != 0 {
            return Err(Errno::BUSY);
        }
        self.state().frozen.store(1, Release); // pairs with is_frozen
        Ok(())
    }

    /// Whether BPF_MAP_FREEZE succeeded: syscall-side writes are EPERM from then on.
    pub fn is_frozen(&self) -> bool {
        self.state().frozen.load(Acquire) != 0 // pairs with freeze
    }

    /// The server is about to give the tool a writable mapping.
    ///
    /// # Errors
    /// EPERM when the map is frozen.
    pub fn writer_added(&self) -> Result<(), Errno> {
        if self.is_frozen() {
            return Err(Errno::PERM);
        }
        self.state().writers.fetch_add(1, AcqRel);
        Ok(())
    }

    /// A writable mapping is gone.
    pub fn writer_removed(&self) {
        let _ = self.state().writers.try_update(AcqRel, Acquire, |n| n.checked_sub(1));
    }

    /// bpf_map_lookup_elem: the value, or null. For per-CPU maps that of `cpu`.
    ///
    /// # Safety
    /// `key` is valid for key_size bytes; the caller owns the CPU slot `cpu`.
    #[inline]
    pub unsafe fn lookup(&self, key: *const u8, cpu: u32) -> *mut u8 {
        // SAFETY: the caller's promise.
        with_kind!(&self.kind, m => unsafe { m.lookup(key, cpu) })
    }

    /// bpf_map_update_elem: 0 or a negated errno. For per-CPU maps writes the value of `cpu` only.
    ///
    /// # Safety
    /// `key` and `value` are valid for key_size and value_size bytes; the caller owns the slot `cpu`.
    #[inline]
    pub unsafe fn update(&self, key: *const u8, value: *const u8, flags: u64, cpu: u32) -> i64 {
        if flags & BPF_F_LOCK != 0 || !self.def.fields.is_empty() {
            // SAFETY: the caller's promise.
            return unsafe { self.update_parts(key, value, flags, cpu) };
        }
        // SAFETY: the caller's promise.
        with_kind!(&self.kind, m => unsafe { m.update(key, value, flags, cpu) })
    }

    /// bpf_map_delete_elem: 0 or a negated errno.
    ///
    /// # Safety
    /// `key` is valid for key_size bytes.
    #[inline]
    pub unsafe fn delete(&self, key: *const u8) -> i64 {
        // SAFETY: the caller's promise.
        with_kind!(&self.kind, m => unsafe { m.delete(key) })
    }

    /// bpf_map_push_elem: 0 or a negated errno.
    ///
    /// # Safety
    /// `value` is valid for value_size bytes.
    pub unsafe fn push(&self, value: *const u8, flags: u64, me: LockId) -> i64 {
        // SAFETY: the caller's promise.
        with_kind!(&self.kind, m => unsafe { m.push(value, flags, me) })
    }

    /// bpf_map_pop_elem: 0 or a negated errno.
    ///
    /// # Safety
    /// `value` may be written for value_size bytes.
    pub unsafe fn pop(&self, value: *mut u8, me: LockId) -> i64 {
        // SAFETY: the caller's promise.
        with_kind!(&self.kind, m => unsafe { m.pop(value, me) })
    }

    /// bpf_map_peek_elem: 0 or a negated errno. Of a BLOOM_FILTER `value` is read.
    ///
    /// # Safety
    /// `value` may be read or written for value_size bytes.
    pub unsafe fn peek(&self, value: *mut u8, me: LockId) -> i64 {
        // SAFETY: the caller's promise.
        with_kind!(&self.kind, m => unsafe { m.peek(value, me) })
    }

    /// bpf_for_each_map_elem: calls `visit(key, value)` for each element until it breaks. Returns the
    /// number of calls, or a negated errno for types that have no such operation.
    ///
    /// # Safety
    /// The caller owns the CPU slot `cpu`; `visit` keeps no pointer.
    pub unsafe fn for_each(
        &self,
        cpu: u32,
        visit: &mut dyn FnMut(*const u8, *mut u8) -> ControlFlow<()>,
    ) -> i64 {
        // SAFETY: the caller's promise.
        with_kind!(&self.kind, m => unsafe { m.for_each(cpu, visit) })
    }

    /// Address of element 0 of an ARRAY: direct value access (.data, .rodata).
    pub fn value_base(&self) -> Option<*mut u8> {
        match &self.kind {
            Kind::ARRAY(array) => Some(array.base()),
            _ => None,
        }
    }

    /// Where the elements of an ARRAY or PERCPU_ARRAY are in memory: the address of element 0 (of CPU 0), and the
    /// bytes from the elements of one CPU to those of the next, if each has its own.
    pub fn elements(&self) -> Option<(*mut u8, Option<usize>)> {
        match &self.kind {
            Kind::ARRAY(array) => Some((array.base(), None)),
            Kind::PERCPU_ARRAY(array) => Some((array.base(), Some(array.cpu_stride()))),
            _ => None,
        }
    }

    /// The table of a HASH or PERCPU_HASH.
    #[inline]
    pub fn hash_table(&self) -> Option<&Hash> {
        match &self.kind {
            Kind::HASH(hash) | Kind::PERCPU_HASH(hash) => Some(hash),
            _ => None,
        }
    }

    /// Bytes from one element of an ARRAY (or of one CPU's PERCPU_ARRAY) to the next.
    pub fn value_stride(&self) -> usize {
        crate::round8(self.def.value_size as usize)
    }

    /// What mmap of a BPF_F_MMAPABLE array covers: file offset and length. None for other maps.
    pub fn mmap_window(&self) -> Option<(u64, usize)> {
        match &self.kind {
            Kind::ARRAY(_) if self.def.map_flags & BPF_F_MMAPABLE != 0 => {
                let bytes = self.value_stride() * self.def.max_entries as usize;
                Some((PAGE as u64, bytes.next_multiple_of(PAGE)))
            }
            _ => None,
        }
    }

    /// The ring of a RINGBUF map.
    #[inline]
    pub fn ringbuf(&self) -> Option<&RingBuf> {
        match &self.kind {
            Kind::RINGBUF(map) => Some(map.ring()),
            _ => None,
        }
    }

    /// The ring of a USER_RINGBUF map.
    #[inline]
    pub fn user_ring(&self) -> Option<&UserRing> {
        match &self.kind {
            Kind::USER_RINGBUF(map) => Some(map.ring()),
            _ => None,
        }
    }

    /// The values of a TASK_STORAGE map.
    #[inline]
    pub fn task_storage(&self) -> Option<&TaskStorage> {
        match &self.kind {
            Kind::TASK_STORAGE(storage) => Some(storage),
            _ => None,
        }
    }

    /// The slots of a PERF_EVENT_ARRAY.
    #[inline]
    pub fn perf_event_array(&self) -> Option<&PerfEventArray> {
        match &self.kind {
            Kind::PERF_EVENT_ARRAY(array) => Some(array),
            _ => None,
        }
    }

    /// The stacks of a STACK_TRACE map.
    #[inline]
    pub fn stack_trace(&self) -> Option<&StackTrace> {
        match &self.kind {
            Kind::STACK_TRACE(stacks) => Some(stacks),
            _ => None,
        }
    }

    /// What BPF_MAP_UPDATE_ELEM checks of a slot of descriptors before it looks at the descriptor.
    ///
    /// # Errors
    /// EPERM when the map is frozen, EINVAL for flags other than BPF_ANY, E2BIG out of range.
    pub fn check_slot_update(&self, key: &[u8], flags: u64) -> Result<(), Errno> {
        self.check_object_update(key)?;
        ops::check_fd_update(ops::index(key), self.def.max_entries, flags)
    }

    /// BPF_MAP_UPDATE_ELEM of a map that holds objects (PROG_ARRAY, CGROUP_ARRAY, map-in-map), after the server resolved
    /// the descriptor to the object's id, which is not 0.
    ///
    /// # Errors
    /// The kernel's: EPERM when the map is frozen, EEXIST, ENOENT, E2BIG, EINVAL.
    pub fn set_object(&self, key: &[u8], id: u32, flags: u64) -> Result<(), Errno> {
        self.check_object_update(key)?;
        match &self.kind {
            Kind::PROG_ARRAY(array) | Kind::CGROUP_ARRAY(array) => {
                array.set_object(ops::index(key), id, flags)
            }
            Kind::ARRAY_OF_MAPS(outer) => outer.slots().set_object(ops::index(key), id, flags),
            Kind::HASH_OF_MAPS(outer) => return outer.set_object(key, id, flags),
            _ => return Err(Errno::INVAL),
        }
        .map(|_| ())
    }

    /// The objects that the ids in a PROG_ARRAY, ARRAY_OF_MAPS or HASH_OF_MAPS stand for in this process.
    #[inline]
    pub fn members(&self) -> Option<&Members> {
        match &self.kind {
            Kind::PROG_ARRAY(array) => Some(array.members()),
            Kind::ARRAY_OF_MAPS(outer) => Some(outer.members()),
            Kind::HASH_OF_MAPS(outer) => Some(outer.members()),
            _ => None,
        }
    }

    /// The object ids in a PROG_ARRAY or CGROUP_ARRAY.
    #[inline]
    pub fn fd_array(&self) -> Option<&FdArray> {
        match &self.kind {
            Kind::PROG_ARRAY(array) | Kind::CGROUP_ARRAY(array) => Some(array),
            _ => None,
        }
    }
}

fn random_seed() -> Result<u64, Errno> {
    let mut seed = [0u8; 8];
    getrandom(&mut seed, GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(seed))
}
