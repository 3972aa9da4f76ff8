//! The session page: the memory a tool and its traced processes share besides maps.
//!
//! ```text
//! 0     Header   magic, version, slots, tool pid
//! 64    Wake     futex word the tool's waker sleeps on; counters
//! 128   Slot[n]  one cache line each: who runs a program on CPU slot i
//! ...   u32[256] pids whose execve the session was told of: what runs after it reads that the beginning was seen
//! ...   bits     links that are gone, by id: for processes that nobody can tell
//! ...   TextRing what programs print, from a page boundary on (memory that is not printed into costs nothing)
//! ...   Column[ROWS][n + 1] run statistics (`stats`), sparse as well
//! ```
//! A run of a program owns one CPU slot from entry to exit. The slot number stands for the CPU everywhere (per-CPU
//! values, perf rings), so two threads that the kernel runs on one CPU never write one per-CPU value, and a perf ring
//! has one producer. A slot's word names its owner, so a slot whose owner died can be taken back.

use super::stats::{self, Column};
use super::text::TextRing;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const MAGIC: u64 = 0x4250_4654_494d_4531; // "BPFTIME1"
/// More CPUs than Linux supports (`CONFIG_NR_CPUS` is at most 8192); bounds the page.
const SLOTS_MAX: u32 = 8192;

#[repr(C, align(64))]
struct Header {
    magic: AtomicU64,
    slots: AtomicU32,
    /// Thread id of the tool's broker; the kernel sets `FUTEX_OWNER_DIED` when it ends, however that is.
    broker: AtomicU32,
    pad: [u32; 12],
}

#[repr(C, align(64))]
struct WakeLine {
    seq: AtomicU32,
    pad: u32,
    missed: AtomicU64,
    rest: [u64; 6],
}

/// One CPU slot. `owner` is 0 when free, else [`OwnerWord`].
#[repr(C, align(64))]
struct Slot {
    owner: AtomicU64,
    rest: [u64; 7],
}

/// From one slot's word to the next, in bytes.
pub const SLOT_STRIDE: usize = size_of::<Slot>();

const _: () = assert!(size_of::<Header>() == 64 && size_of::<WakeLine>() == 64 && size_of::<Slot>() == 64);

/// Who owns a lock or a slot in shared memory: the process's index in the session (never 0) and the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerWord(pub u64);

impl OwnerWord {
    /// The word of a thread. `owner` is the index from `Welcome`, `tid` the kernel's thread id.
    pub fn new(owner: u32, tid: u32) -> Self {
        Self((owner as u64) << 32 | tid as u64)
    }
    /// The process's index.
    pub fn owner(self) -> u32 {
        (self.0 >> 32) as u32
    }
    /// The thread id, in the pid namespace of the owner.
    pub fn tid(self) -> u32 {
        self.0 as u32
    }
}

/// A mapped session page.
pub struct Page {
    base: *mut u8,
    len: usize,
    /// Private copy: the shared field is for the other side's check only.
    slots: u32,
}

// SAFETY: the memory behind `base` is only accessed through atomics, and stays mapped until drop.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

/// Processes of which an execve is noted at once, by the low bits of their pid.
const EXECS: usize = 256;

fn execs_at(slots: u32) -> usize {
    128 + slots as usize * size_of::<Slot>()
}

/// Links whose end can be noted. The memory is sparse: a page of it stands for 32768 ids.
const LINKS: usize = 1 << 22;

/// `FUTEX_OWNER_DIED` (`linux/futex.h`).
const OWNER_DIED: u32 = 0x4000_0000;

fn links_at(slots: u32) -> usize {
    (execs_at(slots) + EXECS * size_of::<AtomicU32>()).next_multiple_of(4096)
}

fn text_at(slots: u32) -> usize {
    links_at(slots) + LINKS / 8
}

fn stats_at(slots: u32) -> usize {
    text_at(slots) + size_of::<TextRing>().next_multiple_of(4096)
}

fn page_len(slots: u32) -> usize {
    stats_at(slots) + stats::ROWS as usize * (slots as usize + 1) * size_of::<Column>()
}

impl Page {
    /// A new page with `slots` CPU slots, and the sealed memfd that holds it.
    pub fn create(slots: u32) -> Result<(OwnedFd, Self), Errno> {
        if slots == 0 || slots > SLOTS_MAX {
            return Err(Errno::INVAL);
        }
        let fd =
            rustix::fs::memfd_create("bpftime-session", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let len = page_len(slots) as u64;
        crate::region::file_of(len, || rustix::fs::ftruncate(&fd, len))?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let page = Self::map(&fd, slots)?;
        page.header().slots.store(slots, Ordering::Relaxed);
        // Release: pairs with the Acquire in `open`; whoever sees the magic sees the number of slots.
        page.header().magic.store(MAGIC, Ordering::Release);
        Ok((fd, page))
    }

    /// Maps the page behind `fd` after checking that its size is sealed and its header is sound.
    pub fn open(fd: &OwnedFd) -> Result<Self, Errno> {
        let seals = rustix::fs::fcntl_get_seals(fd)?;
        let len = rustix::fs::fstat(fd)?.st_size as usize;
        if !seals.contains(SealFlags::SHRINK) || len < page_len(1) {
            return Err(Errno::BADMSG);
        }
        let probe = Self::map(fd, 1)?;
        // Acquire: pairs with the Release in `create`.
        let magic = probe.header().magic.load(Ordering::Acquire);
        let slots = probe.header().slots.load(Ordering::Relaxed);
        if magic != MAGIC || slots == 0 || slots > SLOTS_MAX || len < page_len(slots) {
            return Err(Errno::BADMSG);
        }
        Self::map(fd, slots)
    }

    fn map(fd: impl AsFd, slots: u32) -> Result<Self, Errno> {
        let len = page_len(slots);
        // SAFETY: a fresh shared mapping of a file whose size is sealed; no existing mapping is touched.
        let base = unsafe {
            mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)?
        };
        Ok(Self { base: base.cast(), len, slots })
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping is at least a page long and page aligned; every field peers write is atomic.
        unsafe { &*self.base.cast() }
    }

    fn wake_line(&self) -> &WakeLine {
        // SAFETY: as `header`; the line stands at byte 64.
        unsafe { &*self.base.add(64).cast() }
    }

    #[inline]
    fn slot(&self, i: u32) -> &Slot {
        debug_assert!(i < self.slots);
        // SAFETY: i < slots, and `map` sized the mapping for that many lines behind byte 128.
        unsafe { &*self.base.add(128).cast::<Slot>().add(i as usize) }
    }

    fn exec_word(&self, pid: u32) -> &AtomicU32 {
        let i = pid as usize % EXECS;
        // SAFETY: `page_len` has room for EXECS words behind the slots, which end aligned.
        unsafe { &*self.base.add(execs_at(self.slots)).cast::<AtomicU32>().add(i) }
    }

    /// The word of a link and its bit there; `None` for an id beyond what can be noted.
    fn link_bit(&self, link: u32) -> Option<(&AtomicU64, u64)> {
        let at = (link as usize) < LINKS;
        // SAFETY: `page_len` has room for LINKS bits behind `links_at`, which is page aligned.
        at.then(|| unsafe {
            let words = self.base.add(links_at(self.slots)).cast::<AtomicU64>();
            (&*words.add(link as usize / 64), 1 << (link % 64))
        })
    }

    /// The link is gone, or switched off. Whoever reads it runs its program no more.
    pub fn close_link(&self, link: u32) {
        if let Some((word, bit)) = self.link_bit(link) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// The link is there, again.
    pub fn open_link(&self, link: u32) {
        if let Some((word, bit)) = self.link_bit(link)
            && word.load(Ordering::Relaxed) & bit != 0
        {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Whether the link is gone, or the whole tool. For processes without a control thread, which are told nothing.
    pub fn link_closed(&self, link: u32) -> bool {
        self.ended() || self.link_bit(link).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Whether the tool is gone.
    pub fn ended(&self) -> bool {
        self.header().broker.load(Ordering::Relaxed) & OWNER_DIED != 0
    }

    /// The word in which the broker's thread id goes when the kernel is to note that thread's end (robust futexes).
    pub fn broker_word(&self) -> &AtomicU32 {
        &self.header().broker
    }

    /// What programs print.
    pub fn text(&self) -> &TextRing {
        // SAFETY: `page_len` has room for it at this page boundary; all its fields are atomic.
        unsafe { &*self.base.add(text_at(self.slots)).cast::<TextRing>() }
    }

    /// The run statistics of the program with this row; none for [`super::wire::NO_STATS`].
    pub fn stats(&self, row: u32) -> Option<stats::Row<'_>> {
        if row >= stats::ROWS {
            return None;
        }
        let columns = self.slots as usize + 1;
        let at = stats_at(self.slots) + row as usize * columns * size_of::<Column>();
        // SAFETY: `page_len` has room for ROWS rows of this many columns behind `stats_at`, which is page aligned; every
        // field that is written is atomic.
        Some(stats::Row(unsafe { std::slice::from_raw_parts(self.base.add(at).cast(), columns) }))
    }

    /// Process `pid` is calling execve, and programs of this session were told.
    pub fn note_exec(&self, pid: u32) {
        self.exec_word(pid).store(pid, Ordering::Relaxed);
    }

    /// Whether [`Page::note_exec`] was called for `pid`, and not forgotten since. exec orders it before the reader.
    pub fn exec_noted(&self, pid: u32) -> bool {
        self.exec_word(pid).load(Ordering::Relaxed) == pid
    }

    /// The execve of `pid` is over.
    pub fn forget_exec(&self, pid: u32) {
        let _ = self.exec_word(pid).compare_exchange(pid, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Number of CPU slots.
    #[inline]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// The word of slot 0, for assembly that does what [`Page::acquire`] does when the slot is free: an exchange of 0
    /// for the [`OwnerWord`], and [`Page::release`].
    pub fn slot_words(&self) -> *const AtomicU64 {
        &self.slot(0).owner
    }

    /// Takes a CPU slot for `me`, preferably `cpu`'s own. `None` after a bounded wait, which [`Page::missed`] counts.
    ///
    /// Async-signal-safe: a signal handler that interrupts a run takes another slot. It does not wait for one, which is what
    /// `nested` asks: the interrupted run holds a slot that others may be waiting for. `alive` tells whether a thread of the
    /// caller's own process still exists; slots of other processes are freed by the tool ([`Page::recover`]).
    #[inline]
    pub fn acquire(
        &self,
        cpu: u32,
        me: OwnerWord,
        alive: impl Fn(u32) -> bool,
        nested: impl Fn() -> bool,
    ) -> Option<u32> {
        let cpu = if cpu < self.slots { cpu } else { cpu % self.slots };
        if self.try_slot(cpu, me) { Some(cpu) } else { self.acquire_slow(cpu, me, alive, nested) }
    }

    #[inline]
    fn try_slot(&self, i: u32, me: OwnerWord) -> bool {
        // Acquire: pairs with the Release in `release`; the values of the previous run on this slot are visible.
        self.slot(i).owner.compare_exchange(0, me.0, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    fn acquire_slow(
        &self,
        cpu: u32,
        me: OwnerWord,
        alive: impl Fn(u32) -> bool,
        nested: impl Fn() -> bool,
    ) -> Option<u32> {
        // A run takes microseconds; the owner of a slot may be off its CPU for some scheduler ticks.
        const ROUNDS: u32 = 4000;
        let rounds = if nested() { 1 } else { ROUNDS };
        for round in 0..rounds {
            for i in 0..self.slots {
                let i = (cpu + i) % self.slots;
                if self.try_slot(i, me) {
                    return Some(i);
                }
            }
            if round % 64 == 63 && self.reclaim_own(me, &alive) {
                continue;
            }
            if self.only_mine(me) {
                break;
            }
            if round < 64 {
                rustix::thread::sched_yield();
            } else {
                let _ = rustix::thread::nanosleep(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 50_000 });
            }
        }
        self.wake_line().missed.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Whether every slot belongs to the asking thread: handlers nested in handlers, waiting would be for ever.
    fn only_mine(&self, me: OwnerWord) -> bool {
        (0..self.slots).all(|i| self.slot(i).owner.load(Ordering::Relaxed) == me.0)
    }

    /// Frees slots of threads of this process that are gone (killed inside a run). Tells whether one was.
    fn reclaim_own(&self, me: OwnerWord, alive: &impl Fn(u32) -> bool) -> bool {
        let mut freed = false;
        for i in 0..self.slots {
            let word = OwnerWord(self.slot(i).owner.load(Ordering::Relaxed));
            if word.owner() == me.owner() && word.0 != 0 && !alive(word.tid()) {
                let owner = &self.slot(i).owner;
                freed |= owner.compare_exchange(word.0, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            }
        }
        freed
    }

    /// Gives slot `i` back.
    #[inline]
    pub fn release(&self, i: u32) {
        // Release: pairs with the Acquire in `try_slot`.
        self.slot(i).owner.store(0, Ordering::Release);
    }

    /// Frees the slots of a process that died, and the line it was printing.
    pub fn recover(&self, owner: u32) {
        self.text().recover(owner);
        for i in 0..self.slots {
            let word = self.slot(i).owner.load(Ordering::Relaxed);
            if word != 0 && OwnerWord(word).owner() == owner {
                let _ = self.slot(i).owner.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// Runs that did not happen because no CPU slot could be had.
    pub fn missed(&self) -> u64 {
        self.wake_line().missed.load(Ordering::Relaxed)
    }

    /// Counts a run that did not happen.
    pub fn count_missed(&self) {
        self.wake_line().missed.fetch_add(1, Ordering::Relaxed);
    }

    /// Wakes the tool's waker: some ring has records for a consumer that waits.
    pub fn wake_tool(&self) {
        let word = &self.wake_line().seq;
        // Release: pairs with the Acquire in `wait`; the waker sees the ring state written before.
        word.fetch_add(1, Ordering::Release);
        let _ = rustix::thread::futex::wake(word, rustix::thread::futex::Flags::empty(), 1);
    }

    /// The value to give to [`Page::wait`]; read it before looking at the rings.
    pub fn wake_seq(&self) -> u32 {
        self.wake_line().seq.load(Ordering::Acquire)
    }

    /// Sleeps until [`Page::wake_tool`] was called after `seq` was read, at most `timeout`.
    pub fn wait(&self, seq: u32, timeout: std::time::Duration) {
        let ts = rustix::time::Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: timeout.subsec_nanos() as i64,
        };
        let flags = rustix::thread::futex::Flags::empty();
        let _ = rustix::thread::futex::wait(&self.wake_line().seq, flags, seq, Some(&ts));
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: base and len are exactly what mmap returned; nobody holds references past the Page.
        let _ = unsafe { mm::munmap(self.base.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me(owner: u32, tid: u32) -> OwnerWord {
        OwnerWord::new(owner, tid)
    }

    #[test]
    fn a_taken_slot_sends_the_next_run_to_another() {
        let (_fd, page) = Page::create(2).unwrap();
        assert_eq!(page.acquire(1, me(1, 10), |_| true, || false), Some(1));
        assert_eq!(page.acquire(1, me(1, 11), |_| true, || false), Some(0));
        page.release(1);
        assert_eq!(page.acquire(1, me(1, 12), |_| true, || false), Some(1));
    }

    #[test]
    fn a_thread_that_owns_all_slots_does_not_wait_for_itself() {
        let (_fd, page) = Page::create(1).unwrap();
        assert_eq!(page.acquire(0, me(1, 10), |_| true, || false), Some(0));
        assert_eq!(page.acquire(0, me(1, 10), |_| true, || false), None);
        assert_eq!(page.missed(), 1);
    }

    #[test]
    fn a_run_inside_a_run_does_not_wait() {
        let (_fd, page) = Page::create(2).unwrap();
        assert_eq!(page.acquire(0, me(1, 10), |_| true, || false), Some(0));
        assert_eq!(page.acquire(0, me(1, 10), |_| true, || true), Some(1));
        assert_eq!(page.acquire(0, me(1, 11), |_| true, || true), None);
    }

    #[test]
    fn slots_of_dead_threads_and_processes_come_back() {
        let (_fd, page) = Page::create(1).unwrap();
        assert_eq!(page.acquire(0, me(1, 10), |_| true, || false), Some(0));
        assert_eq!(page.acquire(0, me(1, 11), |tid| tid != 10, || false), Some(0));
        page.recover(2);
        assert!(!page.try_slot(0, me(3, 1)));
        page.recover(1);
        assert!(page.try_slot(0, me(3, 1)));
    }

    #[test]
    fn a_link_is_closed_for_every_mapping_until_it_is_opened() {
        let (fd, page) = Page::create(1).unwrap();
        let other = Page::open(&fd).unwrap();
        page.close_link(70_000);
        assert!(other.link_closed(70_000) && !other.link_closed(70_001) && !other.link_closed(u32::MAX));
        page.open_link(70_000);
        assert!(!other.link_closed(70_000));
        page.broker_word().store(OWNER_DIED, Ordering::Relaxed);
        assert!(other.link_closed(70_001));
    }

    #[test]
    fn two_mappings_share_slots_and_wakeups() {
        let (fd, page) = Page::create(4).unwrap();
        let other = Page::open(&fd).unwrap();
        assert_eq!(other.slots(), 4);
        assert_eq!(page.acquire(2, me(1, 1), |_| true, || false), Some(2));
        assert_ne!(other.acquire(2, me(2, 1), |_| true, || false), Some(2));
        let seq = page.wake_seq();
        other.wake_tool();
        page.wait(seq, std::time::Duration::from_secs(60));
        assert_ne!(page.wake_seq(), seq);
    }

    #[test]
    fn a_memfd_that_is_no_session_page_is_refused() {
        let fd = rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(Page::open(&fd).is_err());
        rustix::fs::ftruncate(&fd, 8192).unwrap();
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
        assert!(Page::open(&fd).is_err());
    }
}
