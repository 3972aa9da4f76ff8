//! The user ring buffer: the tool produces, programs consume.
//!
//! The file is a ring buffer's ([`super::ringbuf`]); who writes what is reversed: the tool writes the producer page and
//! the data, programs write consumer_pos. All that the tool writes is checked, and a program only gets bytes inside of
//! the mapping: their number may be any, their contents may change while it reads.

use super::ringbuf::{CONSUMER_AT, DATA_AT, PRODUCER_AT};
use super::{LockId, OwnedLock, Posted};
use crate::uapi::*;
use crate::{PAGE, neg};
use core::ops::ControlFlow;
use core::sync::atomic::Ordering::{Acquire, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};
use rustix::io::Errno;

const HEADER: u64 = 8;
/// BPF_MAX_USER_RINGBUF_SAMPLES: most samples, discarded ones included, in one call.
const SAMPLES_MAX: u32 = 128 << 10;

/// A ring in a mapping that the map keeps alive.
pub struct UserRing {
    base: *mut u8,
    size: u64,
}

// SAFETY: everything behind `base` is atomic, or bytes that programs read at their own risk.
unsafe impl Send for UserRing {}
// SAFETY: as above.
unsafe impl Sync for UserRing {}

/// What stands at consumer_pos.
enum Next {
    /// Nothing, or something that the producer has not finished.
    Nothing,
    /// A sample: its bytes and where the next one begins.
    Sample(*mut u8, u32, u64),
    /// Discarded; where the next one begins.
    Discarded(u64),
}

impl UserRing {
    /// # Safety
    /// As for `RingBuf::new`.
    pub(crate) unsafe fn new(base: *mut u8, size: usize) -> UserRing {
        UserRing { base, size: size as u64 }
    }

    fn position(&self, page: usize) -> &AtomicU64 {
        // SAFETY: the first word of one of the control pages; atomic.
        unsafe { &*self.base.add(page).cast() }
    }

    /// Programs drain one at a time.
    fn lock(&self) -> &OwnedLock {
        // SAFETY: the first word of the page behind the header, which the tool does not map; atomic.
        unsafe { &*self.base.add(PAGE).cast() }
    }

    fn next(&self) -> Result<Next, Errno> {
        let end = self.position(PRODUCER_AT).load(Acquire); // pairs with the producer's release: its samples
        if !end.is_multiple_of(HEADER) {
            return Err(Errno::INVAL);
        }
        let at = self.position(CONSUMER_AT).load(Acquire);
        if at >= end {
            return Ok(Next::Nothing);
        }
        let offset = (at & (self.size - 1) & !7) as usize;
        // SAFETY: masked into the data, 8-aligned; atomic.
        let header = unsafe { &*self.base.add(DATA_AT + offset).cast::<AtomicU32>() };
        let word = header.load(Acquire); // pairs with the producer's commit
        let len = word & !(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
        let total = (u64::from(len) + HEADER).next_multiple_of(HEADER);
        if word & BPF_RINGBUF_BUSY_BIT != 0 {
            return Ok(Next::Nothing);
        }
        if total > end - at {
            return Err(Errno::INVAL);
        }
        if total > self.size {
            return Err(Errno::TOOBIG);
        }
        if word & BPF_RINGBUF_DISCARD_BIT != 0 {
            return Ok(Next::Discarded(at + total));
        }
        // The data is mapped twice: contiguous wherever it begins.
        Ok(Next::Sample(self.base.wrapping_add(DATA_AT + offset + HEADER as usize), len, at + total))
    }

    /// bpf_user_ringbuf_drain: calls `each` with address and length of every sample until it breaks. Returns the number of
    /// calls, EBUSY while another program drains, EINVAL or E2BIG for what no producer may write; and whether the
    /// producer is to be woken.
    ///
    /// The address is good during the call. The producer can change the bytes meanwhile.
    pub fn drain(
        &self,
        me: LockId,
        flags: u64,
        mut each: impl FnMut(*mut u8, u32) -> ControlFlow<()>,
    ) -> Posted {
        if flags & !(BPF_RB_NO_WAKEUP | BPF_RB_FORCE_WAKEUP) != 0 {
            return Posted { ret: neg(Errno::INVAL), wake: false };
        }
        if !self.lock().try_once(me) {
            return Posted { ret: neg(Errno::BUSY), wake: false };
        }
        let (calls, end) = self.drain_locked(&mut each);
        self.lock().unlock();
        let forced = flags & BPF_RB_FORCE_WAKEUP != 0;
        let wake = forced || (calls > 0 && flags & BPF_RB_NO_WAKEUP == 0);
        Posted { ret: end.map_or_else(neg, |()| i64::from(calls)), wake }
    }

    fn drain_locked(
        &self,
        each: &mut impl FnMut(*mut u8, u32) -> ControlFlow<()>,
    ) -> (u32, Result<(), Errno>) {
        let mut calls = 0;
        for _ in 0..SAMPLES_MAX {
            let (next, go_on) = match self.next() {
                Err(e) => return (calls, Err(e)),
                Ok(Next::Nothing) => break,
                Ok(Next::Discarded(next)) => (next, true),
                Ok(Next::Sample(bytes, len, next)) => {
                    calls += 1;
                    (next, each(bytes, len).is_continue())
                }
            };
            // Pairs with the producer's acquire: it may write over what was read.
            self.position(CONSUMER_AT).store(next, Release);
            if !go_on {
                break;
            }
        }
        (calls, Ok(()))
    }

    /// Whether the producer has room: what poll reports as EPOLLOUT.
    pub fn has_room(&self) -> bool {
        let (produced, consumed) =
            (self.position(PRODUCER_AT).load(Acquire), self.position(CONSUMER_AT).load(Acquire));
        produced.wrapping_sub(consumed) < self.size
    }

    /// Frees the lock that the dead process `owner` held.
    pub(crate) fn recover(&self, owner: u32) -> usize {
        usize::from(self.lock().recover(owner))
    }
}
