//! What the engine keeps per thread of the target.
//!
//! A block is one mapping made by raw mmap on the thread's first hit, linked into a list that only grows, and taken
//! over by a new thread when its owner is gone. Nothing here needs the thread to announce its end.

use super::returns;
use crate::arch::guarded::{self, Outcome, Recover};
use crate::arch::{sys, tls};
use std::sync::atomic::{
    AtomicI32, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering::*, compiler_fence,
};

/// One thread's state. Written by its thread, read by the control thread.
#[repr(C, align(64))]
pub struct ThreadBlock {
    /// Depth of callbacks in the low 16 bits; above them, how often the outermost one ended.
    pub active: AtomicU64,
    /// Process and thread (`pid << 32 | tid`) while hits of this thread are nothing special, so that the assembly runs
    /// them: see [`Self::settle`]. Else [`NOBODY`].
    pub(crate) usual: AtomicU64,
    /// The guarded program run in progress, or null. For the SIGSEGV handler: see [`guarded::resume`].
    pub recover: AtomicPtr<Recover>,
    /// Where the next return slot is taken: see returns.rs.
    pub(super) cursor: AtomicU64,
    /// First run of return stubs, `returns::NO_RUN` if none.
    pub(super) first_run: AtomicU64,
    /// Not 0 in the agent's own threads: their hits are ignored.
    pub mute: AtomicU64,
    /// Number of runs from which on to look for dropped slots before taking another.
    pub(super) collect_at: AtomicU64,
    /// Return events lost because no stub was free.
    pub missed: AtomicU64,
    /// Owner, and the process it lived in.
    pub tid: AtomicI32,
    pid: AtomicI32,
    next: AtomicPtr<ThreadBlock>,
    /// For the layer that runs programs. [`NOBODY`], then zeroes in a new thread. 0: run/process.rs, 1: hook/syscall.rs, 2:
    /// run/helpers/signal.rs, 3: syscalls/tasks.rs, 4: run/session.rs.
    pub run: [AtomicU64; 8],
    /// What the kernel looks at when this thread makes a system call outside of our text (syscalls/dispatch.rs).
    pub(crate) selector: AtomicU8,
    /// Whether it does, and whose doing that is.
    pub(crate) dispatch: AtomicU8,
    /// The thread's name, as last asked for.
    pub(crate) comm: [AtomicU64; 2],
}

/// Ids that no thread has: they are not known yet, or whoever has them is not to be treated as the others.
const NOBODY: u64 = u64::MAX;

/// For entry.rs, as the next.
pub(crate) const CURSOR_OFFSET: usize = std::mem::offset_of!(ThreadBlock, cursor);
/// For entry.rs.
pub(crate) const FIRST_RUN_OFFSET: usize = std::mem::offset_of!(ThreadBlock, first_run);

static BLOCKS: AtomicPtr<ThreadBlock> = AtomicPtr::new(std::ptr::null_mut());
/// Hits in threads for which no block could be made (mmap refused).
pub static BLOCKLESS: AtomicUsize = AtomicUsize::new(0);

const DEPTH: u64 = 0xffff;

impl ThreadBlock {
    /// The calling thread's block, made on first use; `None` when memory is refused.
    #[inline(always)]
    pub fn current() -> Option<&'static ThreadBlock> {
        let p = tls::get() as *const ThreadBlock;
        // SAFETY: the word is 0 or what `acquire` stored, and blocks are never unmapped.
        match unsafe { p.as_ref() } {
            None => acquire(),
            some => some,
        }
    }

    /// As [`Self::current`], without making one: for signal handlers.
    pub fn existing() -> Option<&'static ThreadBlock> {
        // SAFETY: as in `current`.
        unsafe { (tls::get() as *const ThreadBlock).as_ref() }
    }

    /// A callback begins. Pairs with the fence in `quiesce`: the store is before the callback's loads in program
    /// order, which membarrier turns into memory order.
    #[inline(always)]
    pub(crate) fn enter(&self) {
        self.active.store(self.active.load(Relaxed) + 1, Relaxed);
        compiler_fence(SeqCst);
    }

    /// A callback ends. Release: what the callback read happened before a quiesce that sees this.
    #[inline(always)]
    pub(crate) fn leave(&self) {
        let a = self.active.load(Relaxed);
        let next = if a & DEPTH == 1 { a + DEPTH } else { a.wrapping_sub(1) };
        self.active.store(next, Release);
    }

    /// The thread is known to be thread `tid` of process `pid`, and its hits may be run by the assembly, unless it is
    /// one of ours. Whatever changes that (a fork, a block that is taken over or muted) makes it nobody again; what
    /// changes it for a whole process is said in the page of `run::process`, whose word has to match.
    pub(crate) fn settle(&self, pid: u32, tid: u32) {
        if self.mute.load(Relaxed) == 0 {
            self.usual.store(u64::from(pid) << 32 | u64::from(tid), Relaxed);
        }
    }

    /// The reverse: somebody else runs on this block.
    pub(super) fn unsettle(&self) {
        self.usual.store(NOBODY, Relaxed);
    }

    /// From now on hits of this thread are ignored, once more than before.
    pub(super) fn silence(&self) {
        self.mute.store(self.mute.load(Relaxed) + 1, Relaxed);
        self.unsettle();
    }

    /// How many callbacks this thread is inside of.
    pub fn depth(&self) -> u64 {
        self.active.load(Relaxed) & DEPTH
    }

    /// Runs `f(args)` so that a fault in registered code abandons it ([`guarded::run_guarded`]).
    ///
    /// # Safety
    /// As for [`guarded::run_guarded`]; `self` is the calling thread's block.
    #[inline]
    pub unsafe fn run_guarded(
        &self,
        f: unsafe extern "C" fn(u64, u64, u64, u64) -> u64,
        args: [u64; 4],
        recover: &mut Recover,
    ) -> Outcome {
        let outer = self.recover.swap_relaxed(recover);
        // SAFETY: the caller's promise.
        let outcome = unsafe { guarded::run_guarded(f, args, recover) };
        self.recover.store(outer, Relaxed);
        outcome
    }
}

/// A swap that no other thread competes for.
trait SwapRelaxed<T> {
    fn swap_relaxed(&self, new: *mut T) -> *mut T;
}
impl<T> SwapRelaxed<T> for AtomicPtr<T> {
    #[inline(always)]
    fn swap_relaxed(&self, new: *mut T) -> *mut T {
        let old = self.load(Relaxed);
        self.store(new, Relaxed);
        old
    }
}

/// Makes the calling thread's hits invisible while the value lives. For the agent's own threads.
pub struct Mute(());

impl Mute {
    /// Mutes the calling thread.
    pub fn new() -> Self {
        if let Some(b) = ThreadBlock::current() {
            b.silence();
        }
        Self(())
    }
}

impl Default for Mute {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        if let Some(b) = ThreadBlock::existing() {
            b.mute.store(b.mute.load(Relaxed).saturating_sub(1), Relaxed);
        }
    }
}

/// Every block ever made, live or not.
pub(super) fn all() -> impl Iterator<Item = &'static ThreadBlock> {
    // SAFETY: blocks are linked when complete and never unmapped.
    let mut p = unsafe { BLOCKS.load(Acquire).as_ref() };
    std::iter::from_fn(move || {
        let b = p?;
        // SAFETY: as above.
        p = unsafe { b.next.load(Relaxed).as_ref() };
        Some(b)
    })
}

/// True when the block's owner is gone. A block from before a fork belongs to whoever it belonged to: the thread
/// that forked may still be using it under its new id.
pub(super) fn orphaned(b: &ThreadBlock, pid: i32, me: i32) -> bool {
    let tid = b.tid.load(Acquire);
    b.pid.load(Relaxed) == pid && (tid == 0 || tid == me || !sys::thread_exists(pid, tid))
}

#[cold]
#[inline(never)]
fn acquire() -> Option<&'static ThreadBlock> {
    let (pid, me) = (sys::getpid(), sys::gettid());
    let block = all().find(|b| take_over(b, pid, me)).or_else(|| fresh(pid, me));
    match block {
        Some(b) => tls::set(std::ptr::from_ref(b) as usize),
        None => {
            BLOCKLESS.fetch_add(1, Relaxed);
        }
    }
    block
}

fn take_over(b: &'static ThreadBlock, pid: i32, me: i32) -> bool {
    let old = b.tid.load(Acquire);
    if !orphaned(b, pid, me) || b.tid.compare_exchange(old, me, AcqRel, Relaxed).is_err() {
        return false;
    }
    if old == me && tls::get() == std::ptr::from_ref(b) as usize {
        return true;
    }
    b.mute.store(0, Relaxed);
    b.recover.store(std::ptr::null_mut(), Relaxed);
    b.run.iter().for_each(|w| w.store(0, Relaxed));
    b.run[0].store(NOBODY, Relaxed);
    b.usual.store(NOBODY, Relaxed);
    b.dispatch.store(0, Relaxed);
    b.comm.iter().for_each(|w| w.store(0, Relaxed));
    // The generation moves: a quiesce that waits for the dead owner is released.
    b.active.store((b.active.load(Relaxed) | DEPTH) + 1, Release);
    returns::rewind(b);
    true
}

fn fresh(pid: i32, me: i32) -> Option<&'static ThreadBlock> {
    let p = sys::map_zeroed(size_of::<ThreadBlock>()).cast::<ThreadBlock>();
    // SAFETY: a fresh zeroed mapping of the right size; all-zero is a valid ThreadBlock.
    let b = unsafe { p.as_ref() }?;
    b.tid.store(me, Relaxed);
    b.pid.store(pid, Relaxed);
    b.run[0].store(NOBODY, Relaxed);
    b.usual.store(NOBODY, Relaxed);
    b.cursor.store(returns::NO_CURSOR, Relaxed);
    b.first_run.store(returns::NO_RUN as u64, Relaxed);
    let mut head = BLOCKS.load(Relaxed);
    loop {
        b.next.store(head, Relaxed);
        // Release: whoever walks the list sees a complete block.
        match BLOCKS.compare_exchange_weak(head, p, Release, Relaxed) {
            Ok(_) => return Some(b),
            Err(now) => head = now,
        }
    }
}

/// In the child of a fork, in its only thread: its block gets its new id, the others' owners are gone.
///
/// Runs once per child, by whichever fork handler comes first.
pub(super) extern "C" fn forked() {
    static SEEN: AtomicI32 = AtomicI32::new(0);
    let child = sys::getpid();
    if SEEN.swap(child, AcqRel) == child {
        return;
    }
    let mine = tls::get() as *const ThreadBlock;
    let (pid, me) = (sys::getpid(), sys::gettid());
    for b in all() {
        b.pid.store(pid, Relaxed);
        // The child may have its parent's ids, in a namespace of its own, and they need not be this thread's.
        b.run[0].store(NOBODY, Relaxed);
        b.usual.store(NOBODY, Relaxed);
        b.tid.store(if std::ptr::eq(b, mine) { me } else { 0 }, Release);
    }
}
