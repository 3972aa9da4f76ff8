//! Who holds which return slot.
//!
//! A slot is free when its `sp` word is 0: that word alone decides, everything else is a hint where to look. Threads
//! own runs of [`RUN`] slots, chained, used as a stack; but a return finds its slot through its stub, so calls may
//! also return in any order, on any thread (coroutines), and only their own slot is touched.
//!
//! A call that never returns (longjmp, exceptions, pthread_exit) leaves its slot behind. While a call is in
//! progress, the stack word `sp` holds the stub's return address (or that of a stub which returns to it: tail calls).
//! So a slot whose word holds something else, or is not even mapped, can be dropped. The next entry looks at the
//! newest one; and whenever a thread is about to hold twice the runs that it needed last time, it looks at all.
//! Comparing stack pointers alone would drop live slots of another stack (sigaltstack, swapcontext). A dropped-out
//! frame's word may look live until it is overwritten: there are no more such slots than stack words.

use super::thread::{ThreadBlock, all, orphaned};
use crate::arch::{copy, stubs, sys};
use crate::signals;
use std::arch::asm;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::*, compiler_fence};

/// With fewer runs than this it is not worth while to look for dropped ones.
const COLLECT_MIN: u64 = 4;
/// Slots per run.
pub(crate) const RUN: usize = 16;
const _: () = assert!(RUN.is_power_of_two());
const RUNS: usize = stubs::STUBS / RUN;
/// No run.
pub(super) const NO_RUN: u32 = u32::MAX;
/// A cursor is `next slot << 32 | slots used in its run`, the slot as the offset in bytes that stubs and slots share. With
/// no run it counts as full, so that the first push takes one.
pub(super) const NO_CURSOR: u64 = (NO_RUN as u64) << 32 | RUN as u64;
/// The difference between a cursor and the next.
pub(crate) const STEP: u64 = (stubs::STRIDE as u64) << 32 | 1;
const _: () = assert!(stubs::STUBS * stubs::STRIDE < NO_RUN as usize);
/// `before` of a slot that is not freed by putting the cursor back: no cursor is a [`STEP`] further.
const NOT_BEFORE: u64 = NO_CURSOR;
/// `sp` of a slot being filled in: never dropped.
const FILLING: usize = usize::MAX;

static FREE: [AtomicU64; RUNS / 64] = [const { AtomicU64::new(!0) }; RUNS / 64];
static NEXT: [AtomicU32; RUNS] = [const { AtomicU32::new(NO_RUN) }; RUNS];
static PREV: [AtomicU32; RUNS] = [const { AtomicU32::new(NO_RUN) }; RUNS];
static OWNER: [AtomicUsize; RUNS] = [const { AtomicUsize::new(0) }; RUNS];

#[derive(Clone, Copy)]
struct Cursor {
    run: u32,
    top: u32,
}

impl Cursor {
    #[inline(always)]
    fn of(b: &ThreadBlock) -> Self {
        let c = b.cursor.load(Relaxed);
        if c == NO_CURSOR {
            return Self { run: NO_RUN, top: RUN as u32 };
        }
        let top = c as u32;
        Self { run: ((c >> 32) as u32 / stubs::STRIDE as u32 - top) / RUN as u32, top }
    }
    /// One store: a signal handler sees the old or the new cursor.
    #[inline(always)]
    fn save(self, b: &ThreadBlock) {
        b.cursor.store(self.word(), Relaxed);
    }
    #[inline(always)]
    fn word(self) -> u64 {
        ((self.index() * stubs::STRIDE) as u64) << 32 | self.top as u64
    }
    #[inline(always)]
    fn index(self) -> usize {
        self.run as usize * RUN + self.top as usize
    }
    /// The cursor below the newest slot, which it names; `None` at the bottom.
    #[inline(always)]
    fn newest(self) -> Option<(Self, usize)> {
        if self.run == NO_RUN {
            return None;
        }
        let mut c = self;
        if c.top == 0 {
            c.run = PREV[c.run as usize % RUNS].load(Relaxed);
            if c.run == NO_RUN {
                return None;
            }
            c.top = RUN as u32;
        }
        c.top -= 1;
        Some((c, c.index()))
    }
}

/// Takes a slot for a call whose return address is at `sp`, and puts the stub's return address there. Gives the
/// stub to go to, or `None` when the pool is exhausted (the caller runs the function without).
///
/// `bpft_entry_return` in arch/x86_64/entry.rs is this once more, for the case that nothing is in the way.
///
/// # Safety
/// The thread of `b` is about to enter a function: `sp` points to its return address.
#[inline]
pub(super) unsafe fn push(b: &ThreadBlock, site: usize, target: usize, sp: usize) -> Option<usize> {
    let mut c = Cursor::of(b);
    // Drop what cannot return any more. Usually the newest slot is of a caller: sp above ours, nothing to do.
    while let Some((below, i)) = c.newest() {
        let slot = stubs::slot(i);
        let at = slot.sp.load(Relaxed);
        if at != 0 {
            if at > sp || in_progress(i, at, sp) {
                break;
            }
            slot.sp.store(0, Relaxed);
        }
        c = below;
        c.save(b);
    }
    let (i, before) = claim(b, c)?;
    let slot = stubs::slot(i);
    slot.before.store(before, Relaxed);
    // SAFETY: the caller says that sp points to a return address.
    let ra = unsafe { (sp as *const usize).read() };
    slot.ra.store(ra, Relaxed);
    slot.real.store(stubs::index_of_ret(ra).map_or(ra, |k| stubs::slot(k).real.load(Relaxed)), Relaxed);
    slot.site.store(site, Relaxed);
    slot.target.store(target, Relaxed);
    // In this order for a signal handler of this thread: the slot counts once the stack word vouches for it.
    compiler_fence(SeqCst);
    // SAFETY: as above; the function is entered by way of the stub, which writes the same value there.
    unsafe { (sp as *mut usize).write_volatile(stubs::ret_addr(i)) };
    compiler_fence(SeqCst);
    slot.sp.store(sp, Relaxed);
    Some(stubs::stub_addr(i))
}

/// Frees slot `i` after its call returned.
#[inline]
pub(super) fn pop(b: Option<&ThreadBlock>, i: usize) {
    stubs::slot(i).sp.store(0, Release);
    if let Some(b) = b {
        freed(b, i);
    }
}

/// What is left to do once slot `i` is free. It may be taken again already, by a signal handler.
#[inline]
pub(super) fn freed(b: &ThreadBlock, i: usize) {
    let mut c = Cursor::of(b);
    // Almost always the newest of its run. Free slots below it are skipped by the next push.
    if c.top > 1 && c.index() == i + 1 {
        c.top -= 1;
        return c.save(b);
    }
    settle(b, c, i);
}

/// Moves the cursor down over free slots, if `i` was the newest.
#[inline(never)]
fn settle(b: &ThreadBlock, mut c: Cursor, i: usize) {
    if c.top == 1 && c.index() == i + 1 && PREV[c.run as usize % RUNS].load(Relaxed) == NO_RUN {
        c.top = 0; // the outermost call
        return c.save(b);
    }
    if c.newest().is_none_or(|(_, newest)| newest != i) {
        return;
    }
    while let Some((below, i)) = c.newest() {
        if stubs::slot(i).sp.load(Relaxed) != 0 {
            break;
        }
        if below.run != c.run {
            give_back_after(c.run);
        }
        c = below;
    }
    c.save(b);
}

/// How words of other stacks, which may be unmapped, are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// Plain loads with a fault table.
    Guarded,
    /// By the kernel: this thread blocks SIGSEGV.
    Kernel,
    /// Not at all: that, under a seccomp filter. Every slot counts as live.
    Never,
}

impl Reader {
    #[cold]
    fn choose() -> Self {
        match (signals::faults_blocked(), signals::seccomp_filtered()) {
            (false, _) => Self::Guarded,
            (true, false) => Self::Kernel,
            (true, true) => Self::Never,
        }
    }

    /// `None`: not readable.
    fn read(self, at: usize) -> Option<usize> {
        let mut word = 0usize;
        let dst = (&raw mut word).cast::<u8>();
        let left = match self {
            // SAFETY: `word` is 8 bytes; faults are not blocked, and the engine installed the handlers.
            Self::Guarded => unsafe { copy::probe_read(dst, at as *const u8, 8) },
            // SAFETY: `word` is 8 bytes.
            _ => unsafe { copy::probe_read_slow(dst, at as *const u8, 8) },
        };
        (left == 0).then_some(word)
    }

    fn in_progress(self, i: usize, at: usize) -> bool {
        self == Self::Never || self.read(at).is_some_and(|word| leads_to(word, i, at))
    }
}

/// Is slot `i`'s call, whose return address was at `at`, in progress? `sp` is where the thread is now.
#[inline]
fn in_progress(i: usize, at: usize, sp: usize) -> bool {
    if at >> 12 == sp >> 12 {
        // SAFETY: on the page of the current stack pointer.
        return leads_to(unsafe { (at as *const usize).read_volatile() }, i, at);
    }
    Reader::choose().in_progress(i, at)
}

/// The return address that a stack walker should see for `ra`: that of the probed function's caller when `ra` is one
/// of our return stubs, else `ra` itself.
pub fn real_return(ra: usize) -> usize {
    stubs::index_of_ret(ra).map_or(ra, |i| stubs::slot(i).real.load(Relaxed))
}

/// Does the return address `word`, found at `at`, lead through stub `i`?
#[inline]
fn leads_to(mut word: usize, i: usize, at: usize) -> bool {
    for _ in 0..stubs::STUBS {
        match stubs::index_of_ret(word) {
            Some(j) if j == i => return true,
            Some(j) if stubs::slot(j).sp.load(Relaxed) == at => word = stubs::slot(j).ra.load(Relaxed),
            _ => return false,
        }
    }
    false
}

/// Marks a free slot as ours, from the cursor on, and moves the cursor behind it: the slot, and its `before`.
#[inline]
fn claim(b: &ThreadBlock, mut c: Cursor) -> Option<(usize, u64)> {
    loop {
        if c.top as usize >= RUN {
            c = Cursor { run: next_run(b, c.run)?, top: 0 };
        }
        let (i, below) = (c.index(), c);
        c.top += 1;
        if take(&stubs::slot(i).sp) {
            c.save(b);
            // From the first slot of a later run the cursor goes back to the run before: see `settle`.
            let first = below.top == 0 && PREV[below.run as usize % RUNS].load(Relaxed) != NO_RUN;
            return Some((i, if first { NOT_BEFORE } else { below.word() }));
        }
    }
}

/// 0 -> FILLING in one instruction. Not a locked one: only signal handlers of this thread compete.
#[inline(always)]
fn take(word: &AtomicUsize) -> bool {
    let taken: u8;
    // SAFETY: a compare-and-exchange of an aligned word that we own.
    unsafe {
        asm!("cmpxchg [{p}], {v}", "sete {t}", p = in(reg) word.as_ptr(), v = in(reg) FILLING, t = out(reg_byte) taken,
             inout("rax") 0usize => _, options(nostack));
    }
    taken != 0
}

#[cold]
fn next_run(b: &ThreadBlock, run: u32) -> Option<u32> {
    if run != NO_RUN {
        let next = NEXT[run as usize % RUNS].load(Relaxed);
        if next != NO_RUN {
            return Some(next);
        }
    } else if b.first_run.load(Relaxed) != NO_RUN as u64 {
        return Some(b.first_run.load(Relaxed) as u32);
    }
    let first = b.first_run.load(Relaxed) as u32;
    let held = chain(first).count() as u64;
    if held >= b.collect_at.load(Relaxed).max(COLLECT_MIN) {
        let live = drop_stale(first, false);
        b.collect_at.store(2 * held.min(live as u64 / RUN as u64 + 1), Relaxed);
        if live < held as usize * RUN / 2 {
            return Some(first); // half of ours are free: look for them from the start
        }
    }
    let Some(new) = take_run().or_else(|| {
        reap();
        take_run()
    }) else {
        b.missed.fetch_add(1, Relaxed);
        return None;
    };
    PREV[new as usize].store(run, Relaxed);
    NEXT[new as usize].store(NO_RUN, Relaxed);
    OWNER[new as usize].store(std::ptr::from_ref(b) as usize, Relaxed);
    // A signal handler may have chained a run here since we looked: then ours goes back.
    let linked = if run == NO_RUN {
        b.first_run
            .compare_exchange(NO_RUN as u64, new as u64, AcqRel, Acquire)
            .map_err(|now| now as u32)
            .map(|_| ())
    } else {
        NEXT[run as usize].compare_exchange(NO_RUN, new, AcqRel, Acquire).map(|_| ())
    };
    match linked {
        Ok(()) => Some(new),
        Err(theirs) => {
            free_run(new);
            Some(theirs)
        }
    }
}

fn take_run() -> Option<u32> {
    for (w, word) in FREE.iter().enumerate() {
        let mut bits = word.load(Relaxed);
        while bits != 0 {
            let bit = bits.trailing_zeros();
            // Acquire pairs with the Release in free_run: the slots' last use happened before.
            match word.compare_exchange_weak(bits, bits & !(1 << bit), Acquire, Relaxed) {
                Ok(_) => return Some(w as u32 * 64 + bit),
                Err(now) => bits = now,
            }
        }
    }
    None
}

fn free_run(run: u32) {
    OWNER[run as usize].store(0, Relaxed);
    FREE[run as usize / 64].fetch_or(1 << (run % 64), Release);
}

fn all_free(run: u32) -> bool {
    (0..RUN).all(|k| stubs::slot(run as usize * RUN + k).sp.load(Acquire) == 0)
}

/// A thread that came back from a deep recursion keeps one spare run.
#[cold]
fn give_back_after(run: u32) {
    let next = NEXT[run as usize % RUNS].load(Relaxed);
    if next != NO_RUN && NEXT[next as usize % RUNS].load(Relaxed) == NO_RUN && all_free(next) {
        NEXT[run as usize % RUNS].store(NO_RUN, Relaxed);
        compiler_fence(SeqCst);
        free_run(next);
    }
}

/// A new owner takes over `b` with its runs. Slots that a coroutine may still return through stay taken.
pub(super) fn rewind(b: &ThreadBlock) {
    let first = b.first_run.load(Relaxed) as u32;
    if first == NO_RUN {
        return;
    }
    drop_stale(first, true);
    Cursor { run: first, top: 0 }.save(b);
}

/// A run and those chained behind it.
fn chain(first: u32) -> impl Iterator<Item = u32> {
    let some = |run: u32| (run != NO_RUN).then_some(run);
    std::iter::successors(some(first), move |run| some(NEXT[*run as usize % RUNS].load(Relaxed)))
}

/// Frees the slots of calls that are not in progress; how many remain. `orphan`: nobody fills in slots any more.
fn drop_stale(first: u32, orphan: bool) -> usize {
    let reader = Reader::choose();
    let mut live = 0;
    for i in chain(first).flat_map(|run| (0..RUN).map(move |k| run as usize * RUN + k)) {
        let at = stubs::slot(i).sp.load(Acquire);
        let keep = if at == FILLING { !orphan } else { at != 0 && reader.in_progress(i, at) };
        if at != 0 && !keep {
            stubs::slot(i).sp.store(0, Release);
        }
        live += usize::from(keep);
    }
    live
}

/// The pool is empty: take back the runs of threads that are gone.
#[cold]
fn reap() {
    let (pid, me) = (sys::getpid(), sys::gettid());
    let mine = ThreadBlock::existing().map_or(std::ptr::null(), std::ptr::from_ref);
    for b in all().filter(|b| !std::ptr::eq(*b, mine) && orphaned(b, pid, me)) {
        // Claimed like a takeover, so that two threads do not take back the same runs.
        let old = b.tid.load(Acquire);
        if b.tid.compare_exchange(old, me, AcqRel, Relaxed).is_err() {
            continue;
        }
        take_back(b);
        b.tid.store(0, Release);
    }
}

fn take_back(b: &ThreadBlock) {
    let first = b.first_run.swap(NO_RUN as u64, AcqRel) as u32;
    if first == NO_RUN {
        return;
    }
    drop_stale(first, true);
    b.cursor.store(NO_CURSOR, Relaxed);
    let mut run = first;
    while run != NO_RUN {
        let next = NEXT[run as usize % RUNS].load(Relaxed);
        if all_free(run) {
            free_run(run);
        }
        run = next;
    }
}

/// Return slots in use now, in all threads: for statistics and tests.
pub fn slots_in_use() -> usize {
    (0..stubs::STUBS).filter(|&i| stubs::slot(i).sp.load(Relaxed) != 0).count()
}

/// Return events lost so far because the pool was empty.
pub fn missed() -> u64 {
    all().map(|b| b.missed.load(Relaxed)).sum()
}
