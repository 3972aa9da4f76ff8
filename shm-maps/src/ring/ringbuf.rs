//! The BPF ring buffer.
//!
//! ```text
//! file  0      PAGE    2*PAGE          3*PAGE          4*PAGE
//!       [header][control][consumer page][producer page][data: size bytes]     (our mapping: data twice)
//!                        ^ offset 0 of what the tool maps, data twice there too
//! record  | len u32: BUSY 31, DISCARD 30 | owner u32 | payload, rounded up to 8 |
//! ```
//! The kernel keeps a page offset in the second word, which no consumer reads; we keep who produces the
//! record, so that a BUSY record of a dead process can be discarded.
//!
//! Control page: producers write all of it. Consumer page: the tool writes consumer_pos, believed only
//! modulo the ring's size. Producer page: producers write producer_pos.

use super::lock::OwnedLock;
use super::{Armed, LockId, Posted};
use crate::uapi::*;
use crate::{PAGE, copy, neg};
use core::ptr;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64};
use rustix::io::Errno;

pub(super) const CONSUMER_AT: usize = 2 * PAGE;
pub(super) const DATA_AT: usize = 4 * PAGE;
pub(super) const PRODUCER_AT: usize = 3 * PAGE;
/// BPF_RINGBUF_HDR_SZ
const HEADER: u64 = 8;
/// RINGBUF_MAX_RECORD_SZ
const MAX_RECORD: u64 = u32::MAX as u64 / 4;

/// The control page, one cache line for each word.
#[repr(C)]
struct Control {
    lock: OwnedLock,
    _0: [u64; 7],
    armed: Armed,
    _1: [u32; 15],
    dropped: AtomicU64,
}
const _: () = assert!(size_of::<Control>() == 136 && core::mem::offset_of!(Control, dropped) == 128);

/// A ring in a mapping that the map keeps alive.
pub struct RingBuf {
    base: *mut u8,
    size: u64,
}

impl RingBuf {
    /// Length of the memfd of a ring of `size` bytes.
    pub(crate) fn file_len(size: usize) -> Option<usize> {
        size.checked_add(DATA_AT)
    }

    /// # Safety
    /// `base` maps the file of `file_len(size)` bytes and then its last `size` bytes again, for as long as
    /// the RingBuf lives. `size` is a power of two.
    pub(crate) unsafe fn new(base: *mut u8, size: usize) -> RingBuf {
        RingBuf { base, size: size as u64 }
    }

    #[inline]
    fn control(&self) -> &Control {
        // SAFETY: the second page; all fields atomic.
        unsafe { &*self.base.add(PAGE).cast() }
    }

    #[inline]
    fn consumer(&self) -> &AtomicU64 {
        // SAFETY: the third page; atomic.
        unsafe { &*self.base.add(CONSUMER_AT).cast() }
    }

    #[inline]
    fn producer(&self) -> &AtomicU64 {
        // SAFETY: the fourth page; atomic.
        unsafe { &*self.base.add(PRODUCER_AT).cast() }
    }

    /// The record header at a position, which may be any number.
    #[inline]
    fn header(&self, pos: u64) -> &[AtomicU32; 2] {
        let at = (pos & (self.size - 1) & !7) as usize;
        // SAFETY: masked into the data, 8-aligned; atomic.
        unsafe { &*self.base.add(DATA_AT + at).cast() }
    }

    /// Whether `sample` points into this ring's data, in either copy.
    #[inline]
    pub fn holds(&self, sample: *const u8) -> bool {
        (sample as usize).wrapping_sub(self.base as usize + DATA_AT) < 2 * self.size as usize
    }

    /// bpf_ringbuf_reserve: memory for `size` bytes, or null. The kernel takes no flags here.
    ///
    /// Returns null when the ring is full, when `me` already holds the lock (a signal handler inside reserve),
    /// and when another holder does not let go; each counts as dropped.
    #[inline]
    pub fn reserve(&self, size: u64, flags: u64, me: LockId) -> *mut u8 {
        if flags != 0 || size > MAX_RECORD {
            return ptr::null_mut();
        }
        let len = (size + HEADER).next_multiple_of(8);
        if len > self.size || !self.control().lock.try_lock(me) {
            return self.dropped_one();
        }
        let at = self.append(size, len, me);
        self.control().lock.unlock();
        match at {
            Some(pos) => {
                ptr::from_ref(self.header(pos)).cast::<u8>().cast_mut().wrapping_add(HEADER as usize)
            }
            None => self.dropped_one(),
        }
    }

    /// Under the lock. Death before the last store leaves no record; after it, a BUSY one with its owner.
    #[inline]
    fn append(&self, size: u64, len: u64, me: LockId) -> Option<u64> {
        let consumed = self.consumer().load(Acquire); // pairs with the consumer's release: it is done reading
        let pos = self.producer().load(Relaxed);
        let end = pos.wrapping_add(len);
        if end.wrapping_sub(consumed) > self.size - 1 {
            return None;
        }
        let header = self.header(pos);
        header[0].store(size as u32 | BPF_RINGBUF_BUSY_BIT, Relaxed);
        header[1].store(me.owner(), Relaxed);
        self.producer().store(end, Release); // pairs with the consumer's acquire: it sees BUSY, not old bytes
        Some(pos)
    }

    #[cold]
    fn dropped_one(&self) -> *mut u8 {
        self.control().dropped.fetch_add(1, Relaxed);
        ptr::null_mut()
    }

    /// bpf_ringbuf_submit. True: the caller must wake the consumer.
    ///
    /// # Safety
    /// `sample` came from reserve on this ring and was not submitted or discarded yet.
    #[inline]
    pub unsafe fn submit(&self, sample: *mut u8, flags: u64) -> bool {
        self.commit(sample, flags, 0)
    }

    /// bpf_ringbuf_discard. True: the caller must wake the consumer.
    ///
    /// # Safety
    /// As for submit.
    #[inline]
    pub unsafe fn discard(&self, sample: *mut u8, flags: u64) -> bool {
        self.commit(sample, flags, BPF_RINGBUF_DISCARD_BIT)
    }

    #[inline]
    fn commit(&self, sample: *mut u8, flags: u64, discard: u32) -> bool {
        let offset = (sample as usize).wrapping_sub(self.base as usize + DATA_AT + HEADER as usize) as u64;
        let mask = self.size - 1;
        let len = &self.header(offset)[0];
        let committed = (len.load(Relaxed) & !BPF_RINGBUF_BUSY_BIT) | discard;
        // Publishes the payload, and comes before looking at `armed` (see Armed).
        len.swap(committed, SeqCst);
        // The kernel's rule: the consumer has caught up with this record, so it sleeps or is about to.
        let caught_up = self.consumer().load(Acquire) & mask == offset & mask;
        let wanted = flags & BPF_RB_FORCE_WAKEUP != 0 || (caught_up && flags & BPF_RB_NO_WAKEUP == 0);
        wanted && self.control().armed.take()
    }

    /// bpf_ringbuf_output: 0, -EINVAL for unknown flags, -EAGAIN when reserve fails.
    ///
    /// # Safety
    /// `data` is valid for `size` bytes.
    pub unsafe fn output(&self, data: *const u8, size: u64, flags: u64, me: LockId) -> Posted {
        if flags & !(BPF_RB_NO_WAKEUP | BPF_RB_FORCE_WAKEUP) != 0 {
            return Posted { ret: neg(Errno::INVAL), wake: false };
        }
        let sample = self.reserve(size, 0, me);
        if sample.is_null() {
            return Posted { ret: neg(Errno::AGAIN), wake: false };
        }
        // SAFETY: reserve gave `size` contiguous bytes (the data is mapped twice), 8-aligned.
        unsafe { copy::to_shared(sample, data, size as usize) };
        Posted { ret: 0, wake: self.commit(sample, flags, 0) }
    }

    /// bpf_ringbuf_query.
    pub fn query(&self, what: u64) -> u64 {
        match what {
            BPF_RB_AVAIL_DATA => self.producer().load(Acquire).wrapping_sub(self.consumer().load(Acquire)),
            BPF_RB_RING_SIZE => self.size,
            BPF_RB_CONS_POS => self.consumer().load(Acquire),
            BPF_RB_PROD_POS => self.producer().load(Acquire),
            _ => 0,
        }
    }

    /// What epoll reports as EPOLLIN: records the consumer has not passed, BUSY ones included.
    pub fn has_data(&self) -> bool {
        self.producer().load(SeqCst) != self.consumer().load(SeqCst)
    }

    /// The consumer's wish to be woken.
    pub fn armed(&self) -> &Armed {
        &self.control().armed
    }

    /// Reservations that failed, of all producers. The kernel has no such count.
    pub fn dropped(&self) -> u64 {
        self.control().dropped.load(Relaxed)
    }

    /// Reads committed records, oldest first, as libbpf's ring_buffer__consume; returns how many samples.
    /// One consumer at a time.
    pub fn consume(&self, mut each: impl FnMut(&[u8])) -> usize {
        let mut samples = 0;
        let mut payload = Vec::new();
        let mut at = self.consumer().load(Acquire);
        // More than a ring's worth between the positions: a peer lied about one of them.
        while (1..=self.size).contains(&self.producer().load(Acquire).wrapping_sub(at)) {
            let len = self.header(at)[0].load(Acquire); // pairs with commit
            if len & BPF_RINGBUF_BUSY_BIT != 0 {
                break;
            }
            let size = u64::from(len & !BPF_RINGBUF_DISCARD_BIT).min(self.size - HEADER);
            if len & BPF_RINGBUF_DISCARD_BIT == 0 {
                payload.resize(size as usize, 0);
                let from = ptr::from_ref(self.header(at)).cast::<u8>().wrapping_add(HEADER as usize);
                // SAFETY: size is at most the ring's, and the data is mapped twice.
                unsafe { copy::from_shared(payload.as_mut_ptr(), from, size as usize) };
                each(&payload);
                samples += 1;
            }
            at = at.wrapping_add((size + HEADER).next_multiple_of(8));
            self.consumer().store(at, Release); // pairs with append: the record may be overwritten
        }
        samples
    }

    /// Frees the lock and discards the BUSY records that the dead process `owner` left. Returns how many.
    pub fn recover(&self, owner: u32) -> usize {
        let control = self.control();
        let mut repaired = usize::from(control.lock.recover(owner));
        // No live process has this owner: owners are below 65536.
        let me = LockId::new(u32::MAX, rustix::thread::gettid().as_raw_nonzero().get() as u32);
        if !control.lock.try_lock(me) {
            return repaired;
        }
        repaired += self.discard_busy_of(owner);
        control.lock.unlock();
        repaired
    }

    /// Under the lock, so that no record is written over one we look at.
    fn discard_busy_of(&self, owner: u32) -> usize {
        let end = self.producer().load(Acquire);
        let mut at = self.consumer().load(Acquire);
        let mut found = 0;
        // A consumer_pos outside the ring is a lie: no record can be found from there.
        while end.wrapping_sub(at) <= self.size && at != end {
            let [len, of] = self.header(at);
            let value = len.load(Acquire);
            if value & BPF_RINGBUF_BUSY_BIT != 0 && of.load(Relaxed) == owner {
                len.swap((value & !BPF_RINGBUF_BUSY_BIT) | BPF_RINGBUF_DISCARD_BIT, SeqCst);
                found += 1;
            }
            let size = u64::from(value & !(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT));
            at = at.wrapping_add((size + HEADER).next_multiple_of(8));
        }
        found
    }
}

// SAFETY: everything behind `base` is atomic or moved by relaxed atomic copies.
unsafe impl Send for RingBuf {}
// SAFETY: as above.
unsafe impl Sync for RingBuf {}
