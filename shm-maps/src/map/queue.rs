//! QUEUE and STACK: a ring of slots behind one lock.
//!
//! ```text
//! [header page: lock u64 at KIND_AREA, ends (head u32 | tail u32) 64 bytes on][slots: (max_entries + 1) x value]
//! ```
//! `tail` is the oldest element, `head` the free slot after the newest. There is a slot more than elements, so the slot
//! at `head` is nobody's: it may be half written when its writer dies. One store of both ends makes an operation
//! happen; the lock of a dead process is freed by `recover`.

use super::MapDef;
use super::header::KIND_AREA;
use super::ops::{Ops, Shm};
use crate::region::Region;
use crate::ring::{LockId, OwnedLock};
use crate::uapi::{BPF_EXIST, BPF_MAP_TYPE_STACK, BPF_NOEXIST};
use crate::{PAGE, copy, neg, round8};
use core::sync::atomic::Ordering::{Relaxed, Release};
use core::sync::atomic::{AtomicU16, AtomicU64};
use rustix::io::Errno;

const ENDS_AT: usize = KIND_AREA + 64;

/// BPF_MAP_TYPE_QUEUE and BPF_MAP_TYPE_STACK.
pub struct Queue {
    base: *mut u8,
    /// max_entries + 1
    slots: u32,
    value_size: usize,
    newest_first: bool,
    owner: AtomicU16,
}

/// Where the elements are; both below `slots`.
#[derive(Clone, Copy)]
struct Ends {
    head: u32,
    tail: u32,
}

impl Queue {
    fn lock(&self) -> &OwnedLock {
        // SAFETY: inside the header page, 8-aligned; the lock is atomic.
        unsafe { &*self.base.add(KIND_AREA).cast() }
    }

    fn ends_word(&self) -> &AtomicU64 {
        // SAFETY: inside the header page, 8-aligned; atomic.
        unsafe { &*self.base.add(ENDS_AT).cast() }
    }

    fn slot(&self, index: u32) -> *mut u8 {
        debug_assert!(index < self.slots);
        self.base.wrapping_add(PAGE + index as usize * round8(self.value_size))
    }

    fn after(&self, index: u32) -> u32 {
        if index + 1 >= self.slots { 0 } else { index + 1 }
    }

    fn before(&self, index: u32) -> u32 {
        if index == 0 { self.slots - 1 } else { index - 1 }
    }

    /// A peer's nonsense becomes some element.
    fn ends(&self) -> Ends {
        let word = self.ends_word().load(Relaxed); // under the lock
        Ends { head: (word >> 32) as u32 % self.slots, tail: word as u32 % self.slots }
    }

    /// The element at `head` was written before; a reader of the ends has the lock. Release is for readers of
    /// a map whose lock was recovered.
    fn set_ends(&self, ends: Ends) {
        self.ends_word().store(u64::from(ends.head) << 32 | u64::from(ends.tail), Release);
    }

    /// Runs `f` under the lock. As the kernel's: EBUSY when the lock is this very thread's (we are its signal handler)
    /// or does not come free.
    fn locked<T>(&self, me: LockId, f: impl FnOnce(Ends) -> Result<T, Errno>) -> Result<T, Errno> {
        if !self.lock().try_lock(me) {
            return Err(Errno::BUSY);
        }
        let result = f(self.ends());
        self.lock().unlock();
        result
    }

    /// `value` is valid for value_size bytes.
    fn put(&self, value: *const u8, flags: u64, me: LockId) -> Result<(), Errno> {
        if flags & BPF_NOEXIST != 0 || flags > BPF_EXIST {
            return Err(Errno::INVAL);
        }
        self.locked(me, |mut ends| {
            let head = self.after(ends.head);
            if head == ends.tail {
                if flags != BPF_EXIST {
                    return Err(Errno::TOOBIG);
                }
                ends.tail = self.after(ends.tail); // the oldest gives way
            }
            // SAFETY: the free slot; slots are 8-aligned and value_size long.
            unsafe { copy::to_shared(self.slot(ends.head), value, self.value_size) };
            self.set_ends(Ends { head, ..ends });
            Ok(())
        })
    }

    /// `value` is valid for value_size bytes, which are cleared when there is no element.
    fn get(&self, value: *mut u8, remove: bool, me: LockId) -> Result<(), Errno> {
        let found = self.locked(me, |ends| {
            if ends.head == ends.tail {
                return Err(Errno::NOENT);
            }
            let (at, left) = match self.newest_first {
                true => (self.before(ends.head), Ends { head: self.before(ends.head), ..ends }),
                false => (ends.tail, Ends { tail: self.after(ends.tail), ..ends }),
            };
            // SAFETY: an element's slot.
            unsafe { copy::from_shared(value, self.slot(at), self.value_size) };
            if remove {
                self.set_ends(left);
            }
            Ok(())
        });
        if found.is_err() {
            // SAFETY: the caller's promise.
            unsafe { copy::zero_private(value, self.value_size) };
        }
        found
    }

    /// The calling thread of the tool.
    fn me(&self) -> LockId {
        LockId::of_thread(self.owner.load(Relaxed).into())
    }
}

fn answer(result: Result<(), Errno>) -> i64 {
    result.map_or_else(neg, |()| 0)
}

impl Ops for Queue {
    fn file_len(def: &MapDef, _cpus: u32) -> Option<usize> {
        let slots = (def.max_entries as usize).checked_add(1)?;
        slots.checked_mul(round8(def.value_size as usize))?.checked_next_multiple_of(PAGE)?.checked_add(PAGE)
    }

    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno> {
        let slots = shm.def.max_entries.checked_add(1).ok_or(Errno::INVAL)?;
        let region = Region::map(shm.fd, shm.len)?;
        let newest_first = shm.def.map_type == BPF_MAP_TYPE_STACK;
        let (base, value_size) = (region.base(), shm.def.value_size as usize);
        Ok((region, Queue { base, slots, value_size, newest_first, owner: AtomicU16::new(0) }))
    }

    fn set_owner(&self, owner: u16) {
        self.owner.store(owner, Relaxed);
    }

    fn recover(&self, owner: u16) -> usize {
        usize::from(self.lock().recover(owner.into()))
    }

    unsafe fn push(&self, value: *const u8, flags: u64, me: LockId) -> i64 {
        answer(self.put(value, flags, me))
    }

    unsafe fn pop(&self, value: *mut u8, me: LockId) -> i64 {
        answer(self.get(value, true, me))
    }

    unsafe fn peek(&self, value: *mut u8, me: LockId) -> i64 {
        answer(self.get(value, false, me))
    }

    fn sys_lookup(&self, _key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        self.get(value.as_mut_ptr(), false, self.me())
    }

    fn sys_update(&self, _key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        self.put(value.as_ptr(), flags, self.me())
    }

    fn sys_delete(&self, _key: &[u8]) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }

    fn sys_next_key(&self, _key: Option<&[u8]>, _out: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }

    fn sys_lookup_and_delete(&self, _key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        self.get(value.as_mut_ptr(), true, self.me())
    }
}
