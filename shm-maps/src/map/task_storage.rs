//! TASK_STORAGE: a value per thread, kept by thread id.
//!
//! ```text
//! key    thread id u32
//! value  the value, rounded up to 8 | cookie u64 | made u64, nanoseconds since boot
//! ```
//! Thread ids come back; values must not. A program's thread has a cookie of its own, random, in its own memory: an
//! element with another cookie belonged to a thread that is gone. One that the tool made has cookie 0 until its
//! thread takes it. The tool knows when a thread began and forgets what is older ([`TaskStorage::forget_older`]).
//!
//! Nothing tells us that a thread ended. The hash underneath is an LRU map: what nobody asks for gives way.

use super::MapDef;
use super::hash::{Hash, Source};
use super::locked::zero_parts;
use super::ops::{Ops, Shm};
use crate::region::Region;
use crate::uapi::{BPF_EXIST, BPF_MAP_TYPE_LRU_HASH, BPF_NOEXIST};
use crate::{ENOTSUPP, neg, round8};
use bpftime_abi::field::Fields;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire};
use rustix::io::Errno;

/// BPF_LOCAL_STORAGE_GET_F_CREATE
const CREATE: u64 = 1;
/// Threads that have a value at a time.
const THREADS: u32 = 1 << 16;
/// But no more memory than this, if as many as this have one.
const MEMORY: usize = 256 << 20;
const THREADS_LEAST: u32 = 1 << 12;
/// Cookie and birth.
const EXTRA: usize = 16;

/// A thread as programs know it.
#[derive(Debug, Clone, Copy)]
pub struct Task {
    /// The kernel's thread id.
    pub tid: u32,
    /// Not 0; no other thread ever has it.
    pub cookie: u64,
    /// Nanoseconds since boot, now.
    pub now: u64,
}

/// BPF_MAP_TYPE_TASK_STORAGE.
pub struct TaskStorage {
    hash: Hash,
    value_size: usize,
    fields: Fields,
}

fn hash_def(def: &MapDef) -> Option<MapDef> {
    let value_size = round8(def.value_size as usize) + EXTRA;
    let fits = u32::try_from(MEMORY / (value_size + 24)).ok()?;
    Some(MapDef {
        map_type: BPF_MAP_TYPE_LRU_HASH,
        value_size: u32::try_from(value_size).ok()?,
        max_entries: fits.clamp(THREADS_LEAST, THREADS),
        map_flags: 0,
        ..*def
    })
}

impl TaskStorage {
    fn word(&self, value: *mut u8, at: usize) -> &AtomicU64 {
        // SAFETY: behind the value, in its slot, 8-aligned; atomic.
        unsafe { &*value.add(round8(self.value_size) + at).cast() }
    }

    fn find(&self, tid: u32) -> *mut u8 {
        // SAFETY: a key of four bytes.
        unsafe { self.hash.lookup((&raw const tid).cast(), 0) }
    }

    /// The thread's own value: one of a thread that had its id before is forgotten.
    fn own(&self, task: Task) -> *mut u8 {
        let value = self.find(task.tid);
        if value.is_null() {
            return value;
        }
        match self.word(value, 0).load(Acquire) {
            found if found == task.cookie => value,
            0 if self.word(value, 0).compare_exchange(0, task.cookie, AcqRel, Acquire).is_ok() => value,
            _ => {
                let _ = self.remove(task.tid);
                core::ptr::null_mut()
            }
        }
    }

    /// bpf_task_storage_get: the value, made from `init` (zero when that is null) if `flags` say so, or null.
    ///
    /// # Safety
    /// `init` is null or valid for value_size bytes.
    pub unsafe fn get(&self, task: Task, init: *const u8, flags: u64) -> *mut u8 {
        if flags & !CREATE != 0 {
            return core::ptr::null_mut();
        }
        let found = self.own(task);
        if !found.is_null() || flags & CREATE == 0 {
            return found;
        }
        let extra = [task.cookie, task.now];
        let made = self.put(task.tid, init, &extra, BPF_NOEXIST);
        // EEXIST: a signal handler of the thread, or the tool, was faster.
        let there = made.is_ok() || made == Err(Errno::EXIST);
        let value = if there { self.own(task) } else { core::ptr::null_mut() };
        if !self.fields.is_empty() {
            // SAFETY: a value of this map, or null.
            unsafe { zero_parts(&self.fields, value) };
        }
        value
    }

    /// bpf_task_storage_delete: 0 or a negated errno.
    pub fn forget(&self, task: Task) -> i64 {
        if self.own(task).is_null() {
            return neg(Errno::NOENT);
        }
        self.remove(task.tid).map_or_else(neg, |()| 0)
    }

    /// Forgets the value of `tid` that was made before a thread of that id began, at `began` nanoseconds since boot.
    pub fn forget_older(&self, tid: u32, began: u64) {
        let value = self.find(tid);
        if !value.is_null() && self.word(value, 8).load(Acquire) < began {
            let _ = self.remove(tid);
        }
    }

    /// BPF_MAP_UPDATE_ELEM by the tool; `now` in nanoseconds since boot.
    ///
    /// # Errors
    /// EINVAL for unknown flags, EEXIST, ENOENT, ENOMEM.
    pub fn set(&self, tid: u32, value: &[u8], now: u64, flags: u64) -> Result<(), Errno> {
        if flags > BPF_EXIST || value.len() != self.value_size {
            return Err(Errno::INVAL);
        }
        // The thread goes on with the value: it stays whose it was.
        let old = self.find(tid);
        let cookie = if old.is_null() { 0 } else { self.word(old, 0).load(Acquire) };
        self.put(tid, value.as_ptr(), &[cookie, now], flags)
    }

    fn put(&self, tid: u32, value: *const u8, extra: &[u64; 2], flags: u64) -> Result<(), Errno> {
        let extra = extra.as_ptr().cast();
        let source = match value.is_null() {
            true => Source::Joined(value, 0, extra, round8(self.value_size)),
            false => Source::Joined(value, self.value_size, extra, round8(self.value_size)),
        };
        self.hash.write(self.hash.key((&raw const tid).cast()), source, flags)
    }

    fn remove(&self, tid: u32) -> Result<(), Errno> {
        self.hash.remove(self.hash.key((&raw const tid).cast()), |_| ())
    }
}

impl Ops for TaskStorage {
    fn file_len(def: &MapDef, cpus: u32) -> Option<usize> {
        Hash::file_len(&hash_def(def)?, cpus)
    }

    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno> {
        let (def, value_size) = (hash_def(shm.def).ok_or(Errno::INVAL)?, shm.def.value_size as usize);
        let (region, hash) = Hash::open(Shm { def: &def, ..shm })?;
        Ok((region, TaskStorage { hash, value_size, fields: shm.def.fields }))
    }

    fn set_owner(&self, owner: u16) {
        self.hash.set_owner(owner);
    }

    fn recover(&self, owner: u16) -> usize {
        self.hash.recover(owner)
    }

    /// The server puts the thread's id in place of the descriptor.
    fn sys_lookup(&self, key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        if self.hash.copy_value(key.as_ptr(), value) { Ok(()) } else { Err(Errno::NOENT) }
    }

    /// The server calls [`TaskStorage::set`].
    fn sys_update(&self, _key: &[u8], _value: &[u8], _flags: u64) -> Result<(), Errno> {
        Err(Errno::BADF)
    }

    fn sys_delete(&self, key: &[u8]) -> Result<(), Errno> {
        self.hash.sys_delete(key)
    }

    fn sys_next_key(&self, _key: Option<&[u8]>, _out: &mut [u8]) -> Result<(), Errno> {
        Err(ENOTSUPP)
    }
}
