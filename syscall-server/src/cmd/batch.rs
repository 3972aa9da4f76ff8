//! BPF_MAP_*_BATCH. Hash maps are read by buckets, whole buckets only, with the number of the next one as the token
//! between calls; other maps by keys, with the last one as the token.

use super::map::{allowed, delete_one, update_one};
use super::{Attr, ENOTSUPP};
use crate::fds::Access;
use crate::object::MapObject;
use crate::user;
use bpftime_abi::attr::Batch;
use bpftime_abi::field::SPIN_LOCK;
use bpftime_abi::map_type::*;
use rustix::io::Errno;
use std::mem::offset_of;
use std::sync::Arc;

/// Which commands a type has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Support {
    None,
    /// Lookup and update.
    Slots,
    /// Lookup, update and delete.
    Keys,
    /// All four.
    Buckets,
}

fn support(map_type: u32) -> Support {
    match map_type {
        BPF_MAP_TYPE_ARRAY | BPF_MAP_TYPE_PERCPU_ARRAY | BPF_MAP_TYPE_ARRAY_OF_MAPS => Support::Slots,
        BPF_MAP_TYPE_LPM_TRIE => Support::Keys,
        BPF_MAP_TYPE_HASH
        | BPF_MAP_TYPE_PERCPU_HASH
        | BPF_MAP_TYPE_LRU_HASH
        | BPF_MAP_TYPE_LRU_PERCPU_HASH
        | BPF_MAP_TYPE_HASH_OF_MAPS => Support::Buckets,
        _ => Support::None,
    }
}

/// A batch command under way.
struct Request<'a> {
    attr: &'a Attr,
    a: Batch,
    map: Arc<MapObject>,
}

impl<'a> Request<'a> {
    /// The checks that all commands share: the descriptor must allow what is `needed`, the type must be one of `types`.
    fn new(attr: &'a Attr, needed: Access, types: &[Support]) -> Result<Self, Errno> {
        let a: Batch = attr.get();
        let map = allowed(a.map_fd, needed)?;
        if !types.contains(&support(map.def().map_type)) {
            return Err(ENOTSUPP);
        }
        Ok(Self { attr, a, map })
    }

    fn key_len(&self) -> usize {
        self.map.def().key_size as usize
    }

    fn value_len(&self) -> usize {
        self.map.handle.map.value_size_user()
    }

    /// Tells the tool how many elements were done.
    fn put_count(&self, count: u32) -> Result<(), Errno> {
        self.attr.put(offset_of!(Batch, count), &count.to_ne_bytes())
    }

    fn key(&self, at: u32) -> Result<Vec<u8>, Errno> {
        user::read(self.a.keys + u64::from(at) * self.key_len() as u64, self.key_len())
    }

    /// Gives the tool element number `at`.
    fn give(&self, at: u32, key: &[u8], value: &[u8]) -> Result<(), Errno> {
        user::write(self.a.keys + u64::from(at) * key.len() as u64, key)?;
        user::write(self.a.values + u64::from(at) * value.len() as u64, value)
    }
}

/// BPF_MAP_UPDATE_BATCH.
pub fn update(attr: &Attr) -> Result<i64, Errno> {
    let r = Request::new(attr, Access::Write, &[Support::Slots, Support::Keys, Support::Buckets])?;
    check_lock_flag(&r)?;
    let len = r.value_len();
    each(&r, |at| {
        let value = |at: u32| user::read(r.a.values + u64::from(at) * len as u64, len);
        update_one(&r.map, &r.key(at)?, &value(at)?, r.a.elem_flags)
    })
}

/// BPF_MAP_DELETE_BATCH.
pub fn delete(attr: &Attr) -> Result<i64, Errno> {
    let r = Request::new(attr, Access::Write, &[Support::Keys, Support::Buckets])?;
    check_lock_flag(&r)?;
    each(&r, |at| delete_one(&r.map, &r.key(at)?))
}

/// BPF_F_LOCK, of values that have a lock.
fn check_lock_flag(r: &Request<'_>) -> Result<(), Errno> {
    const BPF_F_LOCK: u64 = 4;
    let has_lock = r.map.def().fields.has(SPIN_LOCK);
    let known = r.a.elem_flags & !BPF_F_LOCK == 0;
    if known && (has_lock || r.a.elem_flags == 0) { Ok(()) } else { Err(Errno::INVAL) }
}

/// Does `one` for each element up to the first that fails, and tells how many went well.
fn each(r: &Request<'_>, one: impl Fn(u32) -> Result<(), Errno>) -> Result<i64, Errno> {
    if r.a.count == 0 {
        return Ok(0);
    }
    let failed = (0..r.a.count).find_map(|at| one(at).err().map(|e| (at, e)));
    r.put_count(failed.map_or(r.a.count, |(at, _)| at))?;
    failed.map_or(Ok(0), |(_, e)| Err(e))
}

/// BPF_MAP_LOOKUP_BATCH.
pub fn lookup(attr: &Attr) -> Result<i64, Errno> {
    let r = Request::new(attr, Access::Read, &[Support::Slots, Support::Keys, Support::Buckets])?;
    match support(r.map.def().map_type) {
        Support::Buckets => by_buckets(&r, false),
        _ => by_keys(&r),
    }
}

/// BPF_MAP_LOOKUP_AND_DELETE_BATCH.
pub fn lookup_and_delete(attr: &Attr) -> Result<i64, Errno> {
    let r = Request::new(attr, Access::Both, &[Support::Buckets])?;
    by_buckets(&r, true)
}

fn by_keys(r: &Request<'_>) -> Result<i64, Errno> {
    check_lock_flag(r)?;
    if r.a.count == 0 {
        return Ok(0);
    }
    r.put_count(0)?;
    let map = &r.map.handle.map;
    let mut last = match r.a.in_batch {
        0 => None,
        token => Some(user::read(token, r.key_len())?),
    };
    let (mut key, mut value) = (vec![0; r.key_len()], vec![0; r.value_len()]);
    let mut done = 0;
    let end = loop {
        if done == r.a.count {
            break Ok(());
        }
        if let Err(e) = map.sys_next_key(last.as_deref(), &mut key) {
            break Err(e);
        }
        match map.sys_lookup(&key, &mut value, r.a.elem_flags) {
            // An empty slot, or an element that went away meanwhile.
            Err(Errno::NOENT) => {}
            other => {
                other?;
                r.give(done, &key, &value)?;
                done += 1;
            }
        }
        last = Some(key.clone());
    };
    r.put_count(done)?;
    if let Some(last) = last.filter(|_| done != 0) {
        user::write(r.a.out_batch, &last)?;
    }
    end.map(|()| 0)
}

fn by_buckets(r: &Request<'_>, take: bool) -> Result<i64, Errno> {
    check_lock_flag(r)?;
    if r.a.flags != 0 {
        return Err(Errno::INVAL);
    }
    if r.a.count == 0 {
        return Ok(0);
    }
    r.put_count(0)?;
    let buckets = r.map.handle.map.buckets().ok_or(ENOTSUPP)?;
    let mut bucket = if r.a.in_batch == 0 { 0 } else { user::read_value::<u32>(r.a.in_batch)? };
    if bucket >= buckets {
        return Err(Errno::NOENT);
    }
    let mut done = 0;
    let end = loop {
        if bucket == buckets {
            break Err(Errno::NOENT);
        }
        let keys = r.map.handle.map.bucket_keys(bucket);
        if keys.len() / r.key_len() > (r.a.count - done) as usize {
            break if done == 0 { Err(Errno::NOSPC) } else { Ok(()) };
        }
        done += read_bucket(r, &keys, done, take)?;
        bucket += 1;
    };
    user::write_value(r.a.out_batch, &bucket)?;
    r.put_count(done)?;
    end.map(|()| 0)
}

/// Gives the tool the elements of these keys, from number `at` on; returns how many are (still) there.
fn read_bucket(r: &Request<'_>, keys: &[u8], at: u32, take: bool) -> Result<u32, Errno> {
    let map = &r.map.handle.map;
    let mut value = vec![0; r.value_len()];
    let mut done = 0;
    for key in keys.chunks_exact(r.key_len()) {
        if map.sys_lookup(key, &mut value, r.a.elem_flags).is_err() {
            continue;
        }
        r.give(at + done, key, &value)?;
        if take {
            // What the tool gets is what was there when the element went: an update may have come in between.
            let taken = if super::held::is_container(&r.map) {
                super::held::remove(&r.map, key)
            } else {
                map.sys_lookup_and_delete(key, &mut value, r.a.elem_flags)
            };
            if taken.is_err() {
                continue;
            }
            r.give(at + done, key, &value)?;
        }
        done += 1;
    }
    Ok(done)
}
