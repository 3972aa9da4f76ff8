//! The text that a session's programs print (bpf_trace_printk): a bounded ring in the session page, which
//! `bpftime trace-pipe` and a tool that opens trace_pipe read. As in the kernel a line goes to one reader, and when
//! nobody reads, the oldest lines are lost, and the reader is told how many.
//!
//! ```text
//! head u64 | tail u64 | armed u32, wake u32          one cache line each
//! Cell[CELLS]   state u64 | stamp u64 | tid, cpu, len, owner u32 | comm 16 | text 1024
//! ```
//! Line `n` goes into cell `n % CELLS`. The state of a cell is `2n + 1` while line n is written and `2n + 2` once it is
//! complete: a reader that finds the same state before and after its copy has a whole line. A writer that comes around
//! to a cell that is still being written gives its line up rather than mixing two.

use crate::copy;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64, fence};
use std::time::{Duration, Instant};

/// Lines that are kept.
const CELLS: u64 = 1024;
/// Longest text; the kernel's buffer is as long, with the terminator.
pub const TEXT_MAX: usize = 1023;
const TEXT_ROOM: usize = 1024;
/// `TASK_COMM_LEN`.
pub const COMM_LEN: usize = 16;
/// How long a reader waits for a line that somebody is writing before it counts it as lost.
const PATIENCE: Duration = Duration::from_millis(200);

#[repr(C, align(64))]
struct Word(AtomicU64, [u64; 7]);

#[repr(C, align(64))]
struct Wake {
    armed: AtomicU32,
    word: AtomicU32,
    rest: [u32; 14],
}

#[repr(C, align(64))]
struct Cell {
    state: AtomicU64,
    stamp: AtomicU64,
    tid: AtomicU32,
    cpu: AtomicU32,
    len: AtomicU32,
    owner: AtomicU32,
    comm: [AtomicU64; COMM_LEN / 8],
    rest: [u64; 2],
    text: [AtomicU64; TEXT_ROOM / 8],
}
const _: () = assert!(size_of::<Cell>() == 64 + TEXT_ROOM);

/// Where the lines are, in the session page.
#[repr(C)]
pub struct TextRing {
    head: Word,
    tail: Word,
    wake: Wake,
    cells: [Cell; CELLS as usize],
}

/// A printed line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub stamp: u64,
    /// Who printed it.
    pub tid: u32,
    /// On which CPU.
    pub cpu: u32,
    /// Name of the thread, zero padded.
    pub comm: [u8; COMM_LEN],
    /// The text, without an end of line of ours.
    pub text: Vec<u8>,
}

impl Line {
    /// As the kernel's trace_pipe shows it: the columns that tools split.
    pub fn to_bytes(&self) -> Vec<u8> {
        let comm = self.comm.split(|b| *b == 0).next().unwrap_or_default();
        let micros = self.stamp / 1000;
        let (secs, micros) = (micros / 1_000_000, micros % 1_000_000);
        let comm = String::from_utf8_lossy(comm);
        let head = format!("{comm:>16}-{:<7} [{:03}] ..... {secs:>5}.{micros:06}: ", self.tid, self.cpu);
        [head.as_bytes(), b"bpf_trace_printk: ", &self.text, b"\n"].concat()
    }
}

/// What a reader gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A line.
    Line(Line),
    /// So many lines were lost.
    Lost(u64),
    /// Somebody is writing the next line.
    Unfinished,
    /// Nothing more.
    Empty,
}

/// How long a reader has waited for an unfinished line.
#[derive(Debug, Default)]
pub struct Patience(Option<(u64, Instant)>);

impl Patience {
    /// Whether line `n` was waited for long enough.
    fn ends(&mut self, n: u64) -> bool {
        match self.0 {
            Some((at, since)) if at == n => since.elapsed() > PATIENCE,
            _ => {
                self.0 = Some((n, Instant::now()));
                false
            }
        }
    }
}

impl TextRing {
    /// Prints a line; true when a reader sleeps and must be woken with [`TextRing::wake`]. `owner` is the writer's index
    /// in the session. Async-signal-safe; what `write` pushes beyond [`TEXT_MAX`] bytes is dropped.
    pub fn print_with(
        &self,
        owner: u32,
        tid: u32,
        cpu: u32,
        stamp: u64,
        comm: &[u8; COMM_LEN],
        write: impl FnOnce(&mut Sink),
    ) -> bool {
        let n = self.head.0.fetch_add(1, Relaxed);
        let cell = &self.cells[(n % CELLS) as usize];
        let found = cell.state.load(Relaxed);
        let writing = n.wrapping_mul(2).wrapping_add(1);
        // Acquire: no byte of ours is written before the state says so to a reader that sees it.
        let free = found & 1 == 0;
        if !free || cell.state.compare_exchange(found, writing, Acquire, Relaxed).is_err() {
            return false;
        }
        fence(Release); // pairs with the fence in `copy_out`: who sees our bytes sees `writing`
        cell.owner.store(owner, Relaxed);
        cell.stamp.store(stamp, Relaxed);
        cell.tid.store(tid, Relaxed);
        cell.cpu.store(cpu, Relaxed);
        // SAFETY: both ranges are COMM_LEN bytes, the shared one aligned.
        unsafe { copy::to_shared(cell.comm.as_ptr() as *mut u8, comm.as_ptr(), COMM_LEN) };
        let mut sink = Sink { cell, len: 0 };
        write(&mut sink);
        cell.len.store(sink.len as u32, Relaxed);
        // Publishes the line; pairs with the Acquire in `next`. Not if `recover` took us for dead.
        // SeqCst with `doze`: either it sees the line, or we see that it sleeps.
        let _ = cell.state.compare_exchange(writing, writing.wrapping_add(1), SeqCst, Relaxed);
        self.wake.armed.load(SeqCst) != 0 && self.wake.armed.swap(0, SeqCst) != 0
    }

    /// Wakes sleeping readers.
    pub fn wake(&self) {
        self.wake.word.fetch_add(1, Release);
        let flags = rustix::thread::futex::Flags::empty();
        let _ = rustix::thread::futex::wake(&self.wake.word, flags, i32::MAX as u32);
    }

    /// The next line. Does not wait.
    pub fn next(&self, patience: &mut Patience) -> Next {
        loop {
            let tail = self.tail.0.load(Acquire);
            let ahead = self.head.0.load(Acquire).wrapping_sub(tail);
            if ahead == 0 {
                return Next::Empty;
            }
            if ahead > CELLS {
                if self.pass(tail, ahead - CELLS) {
                    return Next::Lost(ahead - CELLS);
                }
                continue;
            }
            let cell = &self.cells[(tail % CELLS) as usize];
            let done = tail.wrapping_mul(2).wrapping_add(2);
            let state = cell.state.load(Acquire); // pairs with `print_with`
            if state == done {
                let line = cell.copy_out();
                if cell.state.load(Relaxed) == done && self.pass(tail, 1) {
                    return Next::Line(line);
                }
                continue;
            }
            let written_over = state.wrapping_sub(done) as i64 > 0;
            if !written_over && !patience.ends(tail) {
                return Next::Unfinished;
            }
            if self.pass(tail, 1) {
                return Next::Lost(1);
            }
        }
    }

    /// Whether nothing is there that was not read.
    pub fn is_empty(&self) -> bool {
        self.head.0.load(Acquire) == self.tail.0.load(Acquire)
    }

    /// Moves the readers on; false when another one did.
    fn pass(&self, tail: u64, by: u64) -> bool {
        self.tail.0.compare_exchange(tail, tail.wrapping_add(by), AcqRel, Relaxed).is_ok()
    }

    /// Sleeps until something is printed, at most `limit`; not at all if there is something now.
    pub fn doze(&self, limit: Duration) {
        let seen = self.wake.word.load(Acquire);
        // Armed before the look: what is printed after the look finds it armed.
        self.wake.armed.store(1, SeqCst);
        if self.next_is_there() {
            return;
        }
        let ts =
            rustix::time::Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
        let flags = rustix::thread::futex::Flags::empty();
        let _ = rustix::thread::futex::wait(&self.wake.word, flags, seen, Some(&ts));
    }

    fn next_is_there(&self) -> bool {
        let tail = self.tail.0.load(Acquire);
        let done = tail.wrapping_mul(2).wrapping_add(2);
        let state = self.cells[(tail % CELLS) as usize].state.load(SeqCst);
        self.head.0.load(SeqCst) != tail && state.wrapping_sub(done) as i64 >= 0
    }

    /// Gives cells back that the dead process `owner` was writing; their lines are lost.
    pub(super) fn recover(&self, owner: u32) {
        // Cells that nobody came to yet are not touched: they would cost memory.
        let used = self.head.0.load(Acquire).min(CELLS) as usize;
        for cell in &self.cells[..used] {
            let state = cell.state.load(Acquire);
            if state & 1 == 1 && cell.owner.load(Relaxed) == owner {
                let _ = cell.state.compare_exchange(state, state.wrapping_sub(1), AcqRel, Relaxed);
            }
        }
    }
}

/// Where the text of a line goes.
pub struct Sink<'a> {
    cell: &'a Cell,
    len: usize,
}

impl Sink<'_> {
    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        TEXT_MAX - self.len
    }

    /// Appends as many of these bytes as fit.
    pub fn push(&mut self, bytes: &[u8]) {
        let n = bytes.len().min(self.room());
        // SAFETY: len + n is at most what the cell holds; shared bytes are moved as such.
        unsafe {
            let to = (self.cell.text.as_ptr() as *mut u8).add(self.len);
            copy::to_shared_unaligned(to, bytes.as_ptr(), n);
        }
        self.len += n;
    }
}

impl Cell {
    fn copy_out(&self) -> Line {
        let mut comm = [0u8; COMM_LEN];
        // SAFETY: as in `print_with`.
        unsafe { copy::from_shared(comm.as_mut_ptr(), self.comm.as_ptr().cast(), COMM_LEN) };
        // A peer may write anything here.
        let mut text = vec![0; (self.len.load(Relaxed) as usize).min(TEXT_MAX)];
        // SAFETY: at most what the cell holds, and aligned.
        unsafe { copy::from_shared(text.as_mut_ptr(), self.text.as_ptr().cast(), text.len()) };
        let line = Line {
            stamp: self.stamp.load(Relaxed),
            tid: self.tid.load(Relaxed),
            cpu: self.cpu.load(Relaxed),
            comm,
            text,
        };
        fence(Acquire); // pairs with the fence in `print_with`: bytes of a later line come with its state
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Box<TextRing> {
        // SAFETY: all-zero memory is an empty ring; every field is an integer.
        unsafe { Box::new_zeroed().assume_init() }
    }

    fn print(ring: &TextRing, text: &str) -> bool {
        let comm = b"worker\0\0\0\0\0\0\0\0\0\0";
        ring.print_with(2, 77, 1, 12_345_678_999, comm, |line| line.push(text.as_bytes()))
    }

    fn next(ring: &TextRing) -> Next {
        ring.next(&mut Patience::default())
    }

    /// The next line, waited for.
    fn wait(ring: &TextRing) -> Next {
        let (mut patience, end) = (Patience::default(), Instant::now() + Duration::from_secs(60));
        loop {
            match ring.next(&mut patience) {
                Next::Empty | Next::Unfinished if Instant::now() < end => {
                    ring.doze(Duration::from_millis(100))
                }
                found => return found,
            }
        }
    }

    fn text(next: Next) -> String {
        match next {
            Next::Line(line) => String::from_utf8(line.text).unwrap(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn lines_come_out_once_and_in_order() {
        let ring = ring();
        print(&ring, "one");
        print(&ring, "");
        print(&ring, &"x".repeat(2000));
        assert_eq!(text(next(&ring)), "one");
        assert_eq!(text(next(&ring)), "");
        assert_eq!(text(next(&ring)), "x".repeat(TEXT_MAX));
        assert_eq!(next(&ring), Next::Empty);
    }

    #[test]
    fn a_line_has_the_columns_of_the_kernel() {
        let ring = ring();
        print(&ring, "hello");
        let Next::Line(line) = next(&ring) else { panic!() };
        let shown = String::from_utf8(line.to_bytes()).unwrap();
        assert_eq!(shown, "          worker-77      [001] .....    12.345678: bpf_trace_printk: hello\n");
    }

    #[test]
    fn the_oldest_lines_are_lost_and_counted() {
        let ring = ring();
        for n in 0..CELLS + 5 {
            print(&ring, &n.to_string());
        }
        assert_eq!(next(&ring), Next::Lost(5));
        assert_eq!(text(next(&ring)), "5");
    }

    #[test]
    fn a_writer_that_dies_costs_its_line_only() {
        let ring = ring();
        ring.head.0.store(1, Relaxed);
        ring.cells[0].state.store(1, Relaxed);
        ring.cells[0].owner.store(9, Relaxed);
        print(&ring, "after");
        assert_eq!(next(&ring), Next::Unfinished);
        ring.recover(9);
        assert_eq!(wait(&ring), Next::Lost(1));
        assert_eq!(text(next(&ring)), "after");
    }

    #[test]
    fn nothing_is_mixed_or_lost_between_threads() {
        let ring = ring();
        std::thread::scope(|s| {
            for t in 0..4 {
                let ring = &ring;
                s.spawn(move || {
                    for n in 0..200 {
                        if print(ring, &format!("{t}:{n}:{}", "y".repeat(n))) {
                            ring.wake();
                        }
                    }
                });
            }
            let mut next = [0; 4];
            for _ in 0..800 {
                let line = text(wait(&ring));
                let mut parts = line.split(':');
                let (t, n): (usize, usize) =
                    (parts.next().unwrap().parse().unwrap(), parts.next().unwrap().parse().unwrap());
                assert_eq!(n, next[t]);
                assert_eq!(parts.next().unwrap().len(), n);
                next[t] += 1;
            }
        });
        assert_eq!(next(&ring), Next::Empty);
    }

    #[test]
    fn a_sleeping_reader_is_woken() {
        let ring = ring();
        std::thread::scope(|s| {
            let reader = s.spawn(|| text(wait(&ring)));
            while ring.wake.armed.load(Acquire) == 0 {
                std::thread::yield_now();
            }
            if print(&ring, "up") {
                ring.wake();
            }
            assert_eq!(reader.join().unwrap(), "up");
        });
    }
}
