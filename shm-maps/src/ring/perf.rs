//! A perf buffer: the ring behind one perf event of type PERF_COUNT_SW_BPF_OUTPUT.
//!
//! ```text
//! file  0       PAGE                     2*PAGE
//!       [control][perf_event_mmap_page   ][data: data_pages pages]      (our mapping: data twice)
//!                ^ offset 0 of what the tool maps
//!                  1024 data_head   producer writes     1032 data_tail   the tool writes
//!                  1040 data_offset 1048 data_size
//! ```
//! One producer at a time: who owns the CPU slot. Its death before data_head is stored leaves nothing.
//! What does not fit is counted, and reported in a PERF_RECORD_LOST before the next sample that does.

use super::{Armed, Posted};
use crate::region::{Region, create_sealed, sealed_size};
use crate::uapi::*;
use crate::{PAGE, copy, neg};
use core::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const MAGIC: u64 = u64::from_le_bytes(*b"bpfperf\x01");
const META_AT: usize = PAGE;
const DATA_AT: usize = 2 * PAGE;
/// struct perf_event_header
const HEADER: usize = 8;
/// struct { header; u64 id; u64 lost; }
const LOST_LEN: usize = 24;
/// header.size is a u16, and a multiple of 8.
const MAX_RECORD: usize = 0xfff8;
/// 512 MiB of data: far more than RLIMIT_MEMLOCK lets a tool have, small enough for every sum here.
const MAX_PAGES: u32 = 1 << 17;
/// The fixed part with every field: nine words.
const MAX_FIXED: usize = 9 * 8;

#[repr(C)]
struct Control {
    magic: u64,
    data_pages: u32,
    cpu: u32,
    /// perf_event_attr.wakeup_events; 0: wake each time half the ring was written.
    wakeup_events: AtomicU32,
    _0: [u32; 11],
    armed: Armed,
    _1: [u32; 15],
    /// Not fitted and not yet reported.
    lost: AtomicU64,
    /// Samples since the last wake.
    events: AtomicU64,
    /// data_head at the last wake by volume.
    woken_at: AtomicU64,
    /// perf event id in LOST records and PERF_SAMPLE_ID.
    id: AtomicU64,
}
const _: () =
    assert!(core::mem::offset_of!(Control, armed) == 64 && core::mem::offset_of!(Control, lost) == 128);

/// struct perf_event_mmap_page, as far as consumers of BPF output read it.
#[repr(C)]
struct Meta {
    version: AtomicU32,
    compat_version: AtomicU32,
    _0: [u8; 1016],
    data_head: AtomicU64,
    data_tail: AtomicU64,
    data_offset: AtomicU64,
    data_size: AtomicU64,
}
const _: () =
    assert!(core::mem::offset_of!(Meta, data_head) == 1024 && core::mem::offset_of!(Meta, data_size) == 1048);

/// What a sample says besides its raw bytes; `sample_type` (PERF_SAMPLE_*) selects the fields written.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)]
pub struct Sample {
    pub sample_type: u64,
    pub ip: u64,
    pub pid: u32,
    pub tid: u32,
    pub time: u64,
    pub addr: u64,
    pub cpu: u32,
    pub period: u64,
}

/// A mapped perf buffer.
pub struct PerfRing {
    base: *mut u8,
    size: u64,
    cpu: u32,
    inode: u64,
    _region: Region,
}

// SAFETY: everything behind `base` is atomic or moved by byte copies that only the producer makes.
unsafe impl Send for PerfRing {}
// SAFETY: as above; `output` documents who may call it.
unsafe impl Sync for PerfRing {}

impl PerfRing {
    /// A new ring of `data_pages` pages (a power of two) for `cpu`.
    ///
    /// # Errors
    /// EINVAL for other sizes, as perf's mmap; ENOMEM.
    pub fn create(data_pages: u32, cpu: u32) -> Result<(OwnedFd, PerfRing), Errno> {
        if !data_pages.is_power_of_two() || data_pages > MAX_PAGES {
            return Err(Errno::INVAL);
        }
        let size = data_pages as usize * PAGE;
        let fd = create_sealed("bpftime-perf", DATA_AT + size)?;
        let head = Region::map(fd.as_fd(), DATA_AT)?;
        // SAFETY: fresh zero pages that only we hold; Control and Meta fit a page each.
        unsafe {
            let control = head.base().cast::<Control>();
            (&raw mut (*control).data_pages).write(data_pages);
            (&raw mut (*control).cpu).write(cpu);
            (*control).wakeup_events.store(1, Relaxed);
            let meta = &*head.base().add(META_AT).cast::<Meta>();
            meta.data_offset.store(PAGE as u64, Relaxed);
            meta.data_size.store(size as u64, Relaxed);
            (&raw mut (*control).magic).write(MAGIC);
        }
        let ring = PerfRing::open(fd.as_fd())?;
        ring.control().id.store(ring.inode, Relaxed);
        Ok((fd, ring))
    }

    /// Maps the memfd of a ring, which may come from an untrusted peer.
    ///
    /// # Errors
    /// EINVAL when it is not one.
    pub fn open(fd: BorrowedFd<'_>) -> Result<PerfRing, Errno> {
        let (len, inode) = sealed_size(fd)?;
        if len < DATA_AT + PAGE {
            return Err(Errno::INVAL);
        }
        let head = Region::map(fd, PAGE)?;
        // SAFETY: one page is mapped; the plain fields are read once and checked as read.
        let (magic, pages, cpu) = unsafe {
            let control = head.base().cast::<Control>();
            let read = |field: *const u32| field.read_volatile();
            (
                (&raw const (*control).magic).read_volatile(),
                read(&raw const (*control).data_pages),
                read(&raw const (*control).cpu),
            )
        };
        let size = pages as usize * PAGE;
        if magic != MAGIC || !pages.is_power_of_two() || pages > MAX_PAGES || len != DATA_AT + size {
            return Err(Errno::INVAL);
        }
        let region = Region::map_doubled(fd, len, size)?;
        Ok(PerfRing { base: region.base(), size: size as u64, cpu, inode, _region: region })
    }

    fn control(&self) -> &Control {
        // SAFETY: the first page; the fields used after open are atomic.
        unsafe { &*self.base.cast() }
    }

    fn meta(&self) -> &Meta {
        // SAFETY: the second page; the fields used are atomic.
        unsafe { &*self.base.add(META_AT).cast() }
    }

    /// The CPU slot whose owner may write.
    pub fn cpu(&self) -> u32 {
        self.cpu
    }

    /// Bytes of data.
    pub fn data_size(&self) -> usize {
        self.size as usize
    }

    /// Where the tool's mapping of the perf fd begins in the memfd.
    pub const MMAP_OFFSET: u64 = META_AT as u64;

    /// Identity: the inode of the memfd.
    pub fn id(&self) -> u64 {
        self.inode
    }

    /// perf_event_attr.wakeup_events.
    pub fn set_wakeup_events(&self, events: u32) {
        self.control().wakeup_events.store(events, Relaxed);
    }

    /// The perf event's id, as PERF_EVENT_IOC_ID tells it.
    pub fn set_event_id(&self, id: u64) {
        self.control().id.store(id, Relaxed);
    }

    /// The consumer's wish to be woken.
    pub fn armed(&self) -> &Armed {
        &self.control().armed
    }

    /// What poll reports as POLLIN.
    pub fn has_data(&self) -> bool {
        self.meta().data_head.load(SeqCst) != self.meta().data_tail.load(SeqCst)
    }

    /// Samples that did not fit and are not in a LOST record yet.
    pub fn lost_unreported(&self) -> u64 {
        self.control().lost.load(Relaxed)
    }

    /// bpf_perf_event_output: a PERF_RECORD_SAMPLE with the concatenated `raw` pieces.
    /// 0, -ENOSPC when full, -E2BIG when a record can not be that long.
    ///
    /// # Safety
    /// The caller owns this ring's CPU slot.
    pub unsafe fn output(&self, sample: &Sample, raw: &[&[u8]]) -> Posted {
        let mut fixed = [0u8; MAX_FIXED];
        let fixed_len = self.fixed_fields(sample, &mut fixed);
        let raw_len: usize = raw.iter().map(|piece| piece.len()).fold(0, usize::saturating_add);
        // The kernel pads so that size word and data end 8-aligned, and counts the padding in the size.
        let raw_padded = raw_len.saturating_add(4).checked_next_multiple_of(8).unwrap_or(usize::MAX);
        let len = raw_padded.saturating_add(HEADER + fixed_len);
        if len > MAX_RECORD {
            return Posted { ret: neg(Errno::TOOBIG), wake: false };
        }
        let control = self.control();
        let lost = control.lost.load(Relaxed);
        let lost_len = if lost != 0 { LOST_LEN } else { 0 };
        let Some(head) = self.space(len + lost_len) else {
            control.lost.fetch_add(1, Relaxed);
            return Posted { ret: neg(Errno::NOSPC), wake: false };
        };
        if lost != 0 {
            self.write_lost(head, lost);
        }
        let header = record_header(PERF_RECORD_SAMPLE, PERF_RECORD_MISC_USER, len);
        let mut out = self.data(head.wrapping_add(lost_len as u64));
        out.put(&header.to_ne_bytes());
        out.put(&fixed[..fixed_len]);
        out.put(&((raw_padded - 4) as u32).to_ne_bytes());
        raw.iter().for_each(|piece| out.put(piece));
        out.put(&[0; 8][..raw_padded - 4 - raw_len]);
        self.publish(head.wrapping_add((len + lost_len) as u64), lost)
    }

    /// The head if `len` bytes fit. One byte always stays free: CIRC_SPACE in perf's ring.
    fn space(&self, len: usize) -> Option<u64> {
        let tail = self.meta().data_tail.load(Acquire); // pairs with the tool's release: it is done reading
        let head = self.meta().data_head.load(Relaxed) & !7;
        let free = tail.wrapping_sub(head.wrapping_add(1)) & (self.size - 1);
        (free >= len as u64).then_some(head)
    }

    fn write_lost(&self, head: u64, lost: u64) {
        let mut out = self.data(head);
        out.put(&record_header(PERF_RECORD_LOST, 0, LOST_LEN).to_ne_bytes());
        out.put(&self.control().id.load(Relaxed).to_ne_bytes());
        out.put(&lost.to_ne_bytes());
    }

    /// The last store is data_head. Death before it: neither the sample nor the report of `lost` was made.
    fn publish(&self, head: u64, lost: u64) -> Posted {
        let control = self.control();
        self.meta().data_head.swap(head, SeqCst); // pairs with the tool's acquire; before `armed` (see Armed)
        if lost != 0 {
            control.lost.fetch_sub(lost, Relaxed);
        }
        Posted { ret: 0, wake: self.must_wake(head) && control.armed.take() }
    }

    fn must_wake(&self, head: u64) -> bool {
        let control = self.control();
        let every = u64::from(control.wakeup_events.load(Relaxed));
        let events = control.events.load(Relaxed).wrapping_add(1);
        let enough = every != 0 && events >= every;
        control.events.store(if enough { 0 } else { events }, Relaxed);
        let half = head.wrapping_sub(control.woken_at.load(Relaxed)) > self.size / 2;
        if half {
            control.woken_at.store(head, Relaxed);
        }
        enough || half
    }

    /// The fields before PERF_SAMPLE_RAW, in the ABI's order.
    fn fixed_fields(&self, s: &Sample, out: &mut [u8; MAX_FIXED]) -> usize {
        let id = self.control().id.load(Relaxed);
        let two = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let fields = [
            (PERF_SAMPLE_IDENTIFIER, id),
            (PERF_SAMPLE_IP, s.ip),
            (PERF_SAMPLE_TID, two(s.pid, s.tid)),
            (PERF_SAMPLE_TIME, s.time),
            (PERF_SAMPLE_ADDR, s.addr),
            (PERF_SAMPLE_ID, id),
            (PERF_SAMPLE_STREAM_ID, id),
            (PERF_SAMPLE_CPU, two(s.cpu, 0)),
            (PERF_SAMPLE_PERIOD, s.period),
        ];
        let chosen = fields.iter().filter(|(bit, _)| s.sample_type & bit != 0);
        let words = out.chunks_exact_mut(8).zip(chosen);
        words.map(|(word, (_, value))| word.copy_from_slice(&value.to_ne_bytes())).count() * 8
    }

    fn data(&self, pos: u64) -> Out {
        let at = (pos & (self.size - 1)) as usize;
        Out(self.base.wrapping_add(DATA_AT + at))
    }

    /// Reads records, oldest first, as (type, bytes after the header); returns how many. One consumer at a time.
    pub fn consume(&self, mut each: impl FnMut(u32, &[u8])) -> usize {
        let mut records = 0;
        let mut record = vec![0; usize::from(u16::MAX)];
        let mut tail = self.meta().data_tail.load(Relaxed);
        // More than a ring's worth between the positions: a peer lied about one of them.
        while (1..=self.size).contains(&self.meta().data_head.load(Acquire).wrapping_sub(tail)) {
            let from = self.data(tail & !7).0;
            // SAFETY: the data is mapped twice, and a header fits anywhere in the first copy.
            let header = unsafe { (*from.cast::<AtomicU64>()).load(Relaxed) };
            let len = (header >> 48) as usize;
            if len < HEADER || len as u64 > self.size {
                break; // not a record: a producer that is not one of ours
            }
            // SAFETY: len is at most the ring's size.
            unsafe { copy::from_shared(record.as_mut_ptr(), from, len) };
            each(header as u32, &record[HEADER..len]);
            records += 1;
            tail = tail.wrapping_add(len as u64);
            self.meta().data_tail.store(tail, SeqCst); // pairs with space: may be overwritten
        }
        records
    }
}

/// struct perf_event_header as one little-endian word.
fn record_header(kind: u32, misc: u16, len: usize) -> u64 {
    u64::from(kind) | u64::from(misc) << 32 | (len as u64) << 48
}

/// Writes bytes one after another. The caller checked the space; the data is mapped twice, so no wrap.
struct Out(*mut u8);

impl Out {
    fn put(&mut self, bytes: &[u8]) {
        if (self.0 as usize).is_multiple_of(8) {
            // SAFETY: inside the space that `space` found; aligned.
            unsafe { copy::to_shared(self.0, bytes.as_ptr(), bytes.len()) };
        } else {
            // SAFETY: inside the space that `space` found.
            unsafe { copy::to_shared_unaligned(self.0, bytes.as_ptr(), bytes.len()) };
        }
        self.0 = self.0.wrapping_add(bytes.len());
    }
}
