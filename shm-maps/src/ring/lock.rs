//! The one lock in shared memory: held for a few instructions, and its word says by whom.

use core::hint::spin_loop;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use rustix::thread::sched_yield;

/// Who takes a lock: owner index << 32 | tid. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockId(u64);

impl LockId {
    /// `owner` is the process's index in the session, `tid` the thread's.
    #[inline]
    pub fn new(owner: u32, tid: u32) -> LockId {
        LockId((u64::from(owner) << 32) | u64::from(tid.max(1)))
    }

    /// The calling thread, of the process with index `owner`.
    pub fn of_thread(owner: u32) -> LockId {
        LockId::new(owner, rustix::thread::gettid().as_raw_nonzero().get() as u32)
    }

    /// The process's index.
    #[inline]
    pub fn owner(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The thread.
    #[inline]
    pub fn tid(self) -> u32 {
        self.0 as u32
    }
}

/// 0 when free, else its holder's LockId.
#[repr(transparent)]
pub struct OwnedLock(AtomicU64);

/// Spins, then gives the CPU to a preempted holder. Then the record is dropped rather than the thread kept.
const SPINS: u32 = 128;
const YIELDS: u32 = 1024;

impl OwnedLock {
    /// False when the holder is this very thread (we are its signal handler) or does not let go.
    #[inline]
    pub fn try_lock(&self, me: LockId) -> bool {
        // Acquire pairs with unlock.
        self.0.compare_exchange(0, me.0, Acquire, Relaxed).is_ok() || self.wait(me)
    }

    /// As try_lock, without waiting for another holder.
    #[inline]
    pub fn try_once(&self, me: LockId) -> bool {
        self.0.compare_exchange(0, me.0, Acquire, Relaxed).is_ok() // Acquire pairs with unlock
    }

    #[cold]
    fn wait(&self, me: LockId) -> bool {
        for round in 0..SPINS + YIELDS {
            match self.0.compare_exchange_weak(0, me.0, Acquire, Relaxed) {
                Ok(_) => return true,
                Err(holder) if holder == me.0 => return false,
                Err(_) if round < SPINS => spin_loop(),
                Err(_) => sched_yield(),
            }
        }
        false
    }

    #[inline]
    pub fn unlock(&self) {
        self.0.store(0, Release); // pairs with try_lock
    }

    /// Who holds it.
    pub fn holder(&self) -> Option<LockId> {
        Some(LockId(self.0.load(Relaxed))).filter(|holder| holder.0 != 0)
    }

    /// Frees the lock of a holder that is dead, unless another did so.
    pub fn take_from(&self, holder: LockId) {
        let _ = self.0.compare_exchange(holder.0, 0, Acquire, Relaxed); // pairs with try_lock
    }

    /// Frees the lock if its holder's process is the dead `owner`.
    pub fn recover(&self, owner: u32) -> bool {
        let holder = self.0.load(Relaxed);
        holder != 0
            && LockId(holder).owner() == owner
            && self.0.compare_exchange(holder, 0, Acquire, Relaxed).is_ok()
    }
}
