//! The hook engine: calls us when a running program reaches an address, or returns from a function.
//!
//! # Rules
//! - One control thread owns the [`Engine`], and must not block SIGTRAP, SIGSEGV or SIGBUS (its libc calls may meet
//!   an int3 like anyone's). It is muted while it works. Everything it does may allocate and open files.
//! - The probe path (`on_entry`, `on_return` and what they call) may not: no allocation, lock, libc, or panic. See
//!   arch/x86_64/mod.rs for what it may clobber.
//! - [`Site`]s and thunks are never freed: a thread may be suspended anywhere in them. A detached site is reused
//!   when its address is probed again.
//!
//! # Why patching running code is sound
//! A site is in one of these states; every step below is one atomic write (a byte, or 2-8 bytes that no thread can be
//! executing), followed by a serialising interrupt of all cores (membarrier SYNC_CORE) before the next.
//!
//! ```text
//!   bare    -> trap     int3 on the first byte. Its table entry was published before, so every thread that
//!                       executes it goes to the thunk. Threads past it are not affected.
//!   trap    -> fenced   int3 on each further instruction boundary b < 5. A thread that is suspended at b, or branches
//!                       to b, goes to b's relocated copy. From here on no thread executes any byte of the window
//!                       except int3s, so the bytes between the boundaries may change freely.
//!   fenced  -> punned   those bytes become the jump's displacement, whose bytes at the boundaries are int3 already
//!                       because the thunk's address was chosen so. Then the first byte becomes the jump. Boundaries
//!                       keep trapping for ever: branches into the window and second entry points stay right.
//!   fenced  -> jump     where no such address exists: the boundaries too become displacement, but only after every
//!                       thread was seen outside, and if no branch of the function leads in. Until then, fenced.
//!   trap    -> short    a 2-byte jump over the first instruction's own bytes, to a 5-byte one in padding. No boundary.
//!   trap                stays, if nothing else is possible: right, but 2 us per hit.
//! ```
//! A first instruction of 5 bytes or more has no further boundary: bare -> trap -> jump. Undoing goes back the same
//! way: first byte to int3, then the bytes between, then the boundaries, then the first byte. A trap taken just
//! before its int3 vanished finds its table entry retired, sees that the byte is no int3 any more and repeats it.
//!
//! Assumed: instruction boundaries found by decoding from the probed address are those that threads use (a caller
//! that names an address inside an instruction breaks this); nobody else writes to the same text; a function's code
//! is not read as data (it reads patched bytes, as with any breakpoint).
//!
//! An int3 kills a thread that blocks SIGTRAP. While any does, only forms that need no int3 are used, written by
//! one locked 8-byte store; else the site is refused.

mod engine;
mod keep;
mod made;
mod maps;
mod near;
mod plan;
mod returns;
mod session;
mod site;
mod syscall;
mod tasks;
mod text;
mod thread;
mod thunk;
mod trap;

pub use engine::{BATCH, CannotHook, Detached, Engine, Form};
pub use engine::{Call, fits_a_line, short_reaches};
pub use returns::{missed as missed_returns, real_return, slots_in_use};
pub use session::Carried;
pub use site::{Site, Want};
pub use thread::{BLOCKLESS, Mute, ThreadBlock};

pub(crate) use made::original_rip;
pub(crate) use returns::{RUN, STEP};
pub(crate) use site::{DIRECT_OFFSET, RETURN as RETURN_ONLY, THUNK_OFFSET, WANT_OFFSET};
pub(crate) use syscall::{
    SyscallSite, on_dispatch_enter, on_dispatch_exit, on_syscall_enter, on_syscall_exit, vfork_child,
};
pub(crate) use thread::{CURSOR_OFFSET, FIRST_RUN_OFFSET};
pub(crate) use thunk::{COPY, LEAVE};
pub(crate) use trap::trapped;

use crate::arch::{PtRegs, stubs};
use site::{ENTRY, RETURN};
use std::sync::atomic::Ordering::Relaxed;

/// What the engine calls. Both run on the target's stack (about 1 KiB of it is theirs), under the rules above.
///
/// At entry, `ip` is the probed address and `sp` its value there; at return, as in a kernel uretprobe, `ip` is
/// the address returned to, `sp` its value after the return, `ax` the result.
#[derive(Clone, Copy)]
pub struct Callbacks {
    /// Before the probed instruction. 0: go on. 1: return `regs.ax` to the caller without running the function. 2: go on,
    /// and [`Callbacks::ret`] is not wanted. What is put into `carried` is there again at the return.
    pub entry: unsafe extern "C" fn(site: *const Site, regs: *mut PtRegs, carried: &mut Carried) -> u64,
    /// After the probed function returned.
    pub ret: unsafe extern "C" fn(site: *const Site, regs: *mut PtRegs, carried: &mut Carried),
}

/// Functions that return twice or whose return address is stored elsewhere: a return probe on one would send the
/// second return through a slot that is no longer its own. Resolvers must refuse return probes on them.
pub const RETURNS_TWICE: &[&str] =
    &["vfork", "__vfork", "setjmp", "_setjmp", "__sigsetjmp", "sigsetjmp", "getcontext", "savectx"];

/// What the kernel tells about this process's threads.
pub mod threads {
    pub use super::tasks::{is_blocked as blocks_trap, is_debugged, tids};

    /// Whether the thread is one of our own.
    pub fn is_muted(tid: i32) -> bool {
        use std::sync::atomic::Ordering::Relaxed;
        super::thread::all().any(|b| b.tid.load(Relaxed) == tid && b.mute.load(Relaxed) != 0)
    }
}

/// The child side of fork, before a thread of ours is started in it.
pub fn forked() {
    thread::forked();
}

/// Whether thread `tid` of this process is one of our own.
pub(crate) fn is_own_thread(tid: i32) -> bool {
    thread::all().any(|b| b.tid.load(Relaxed) == tid && b.mute.load(Relaxed) != 0)
}

/// Whether the calling thread is one of our own.
pub fn is_muted() -> bool {
    ThreadBlock::existing().is_some_and(|b| b.mute.load(Relaxed) != 0)
}

/// Called for the thunks of sites that have no list to run directly, and wherever something is unusual. Gives the
/// address at which the thunk goes on.
///
/// # Safety
/// Called by `entry_common` only, with a site and the saved registers of its thread.
pub(crate) unsafe extern "C" fn on_entry(site: *const Site, regs: *mut PtRegs) -> usize {
    // SAFETY: sites are never freed.
    let at = unsafe { &*site };
    let want = at.wanted();
    let Some(block) = ThreadBlock::current() else { return at.go_on() };
    if want == 0 || block.mute.load(Relaxed) != 0 {
        return at.go_on();
    }
    let mut carried = Carried::none();
    if want & ENTRY != 0 {
        block.enter();
        // SAFETY: the engine's creator vouches for its callbacks.
        let verdict = unsafe { (at.callbacks().entry)(site, regs, &mut carried) };
        block.leave();
        match verdict {
            // SAFETY: `regs` is on our stack.
            1 => return unsafe { overridden(at, (*regs).sp as usize) },
            2 => return at.go_on(),
            _ => {}
        }
    }
    if want & RETURN != 0 {
        // SAFETY: return probes sit at function entries, where sp points to the return address.
        return unsafe { by_stub_carrying(site, (*regs).sp as usize, &carried) };
    }
    at.go_on()
}

/// Back to the caller: the thunk drops the return address and jumps to what is below it.
///
/// # Safety
/// `sp` points to a return address: the site is a function's entry.
#[cold]
unsafe fn overridden(at: &Site, sp: usize) -> usize {
    // SAFETY: the caller's promise; below sp nothing lives at a function's entry.
    unsafe { ((sp - 8) as *mut usize).write((sp as *const usize).read()) };
    at.leave()
}

/// Into the function by way of a return stub, if there is one to be had.
///
/// # Safety
/// As for [`overridden`].
pub(crate) unsafe extern "C" fn by_stub(site: *const Site, sp: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { by_stub_carrying(site, sp, &Carried::none()) }
}

/// As [`by_stub`], with what the call carries to its return.
///
/// # Safety
/// As for [`overridden`].
unsafe fn by_stub_carrying(site: *const Site, sp: usize, carried: &Carried) -> usize {
    // SAFETY: sites are never freed.
    let at = unsafe { &*site };
    let Some(block) = ThreadBlock::current() else { return at.go_on() };
    // SAFETY: the caller's promise.
    let Some(stub) = (unsafe { returns::push(block, site as usize, at.copy(), sp) }) else {
        return at.go_on();
    };
    session::keep(stubs::index_of_stub(stub), carried);
    // SAFETY: as in `overridden`.
    unsafe { ((sp - 8) as *mut usize).write(stub) };
    at.leave()
}

/// Behind the freeing of a slot whose call came back to its stub, where it is not simply the newest.
pub(crate) extern "C" fn settled(after_call: usize) {
    if let Some(block) = ThreadBlock::current() {
        returns::freed(block, stubs::index_of_call(after_call));
    }
}

/// Called when a function came back to its return stub.
///
/// # Safety
/// Called by `exit_common` only, with its return address and the saved registers.
pub(crate) unsafe extern "C" fn on_return(after_call: usize, regs: *mut PtRegs) {
    let i = stubs::index_of_call(after_call);
    let slot = stubs::slot(i);
    let site = slot.site.load(Relaxed) as *const Site;
    // SAFETY: the slot was filled in for this call with a site, which is never freed.
    let at = unsafe { &*site };
    let block = ThreadBlock::current();
    if let Some(block) = block
        && at.wanted() & RETURN != 0
        && block.mute.load(Relaxed) == 0
    {
        // SAFETY: `regs` is on our stack.
        unsafe { (*regs).ip = slot.real.load(Relaxed) as u64 };
        block.enter();
        // SAFETY: the engine's creator vouches for its callbacks; the row is ours until the slot is given up below.
        unsafe { (at.callbacks().ret)(site, regs, &mut *session::row(i)) };
        block.leave();
    }
    returns::pop(block, i);
}
