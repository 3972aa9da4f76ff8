//! Catching the system calls of code that is not rewritten: syscall user dispatch.
//!
//! A thread asks the kernel to hand back every system call that is made outside of this library's text while the
//! thread's selector says so (prctl(2), PR_SET_SYSCALL_USER_DISPATCH); SIGSYS then leads it to arch/dispatch.rs. This
//! slows down every call of the thread by some 30 ns, so it is on only while programs wait for system calls and the
//! process has code whose calls cannot all be rewritten.
//!
//! # Rules
//! - Only a thread itself can turn it on, and it is off in every new one. So it is turned on where a thread passes a
//!   call that we see: its first, and behind every clone. A thread that was there before, and calls from generated
//!   code only, is seen from its first call through a library on.
//! - SIGSYS must not be blocked while the selector says dispatch: the kernel would end the process. Where the program
//!   blocks it the selector says let pass, and only rewritten calls are seen; masks of signal handlers never hold it
//!   (signals/actions.rs).
//! - It is turned off by each thread at its next dispatched call, which is then repeated in its place.
//! - Under a seccomp filter, or where the program has a SIGSYS handler that was there before us and may be there for
//!   the same purpose (Wine), we leave it alone.

use crate::arch::{dispatch, sys};
use crate::hook::{ThreadBlock, vfork_child};
use crate::signals::{self, SIGSYS_BIT};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::*};

/// prctl(2), from linux/prctl.h.
pub(crate) const PR_SET_SYSCALL_USER_DISPATCH: u64 = 59;
const PR_SYS_DISPATCH_OFF: usize = 0;
const PR_SYS_DISPATCH_ON: usize = 1;
/// Values of the selector.
const ALLOW: u8 = 0;
const BLOCK: u8 = 1;

/// Values of [`ThreadBlock::dispatch`].
mod state {
    /// The kernel dispatches nothing of this thread.
    pub const OFF: u8 = 0;
    /// It does, for us.
    pub const ON: u8 = 1;
    /// It does, and whether the thread blocks SIGSYS has to be looked at.
    pub const UNSURE: u8 = 2;
    /// The program uses it itself.
    pub const FOREIGN: u8 = 3;
}

/// Whether threads are to turn it on.
static WANTED: AtomicBool = AtomicBool::new(false);
/// See [`Readiness`].
static READY: AtomicU8 = AtomicU8::new(Readiness::Untried as u8);

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Readiness {
    Untried,
    Trying,
    Ready,
    Refused,
}

/// Turns it on or off for the process; false if it is wanted and cannot be had. Any thread, no allocation.
pub(super) fn want(on: bool) -> bool {
    let on = on && ready();
    if WANTED.swap(on, AcqRel) != on {
        super::refresh_gates();
    }
    on
}

/// Whether it is on.
pub(crate) fn wanted() -> bool {
    WANTED.load(Relaxed)
}

/// Makes the process ready for it, once.
fn ready() -> bool {
    let trying = Readiness::Trying as u8;
    match READY.compare_exchange(Readiness::Untried as u8, trying, AcqRel, Acquire) {
        Ok(_) => {
            let usable = !signals::seccomp_filtered() && kernel_has_it() && signals::take_sigsys();
            let verdict = if usable { Readiness::Ready } else { Readiness::Refused };
            READY.store(verdict as u8, Release);
            usable
        }
        Err(now) => now == Readiness::Ready as u8 && !signals::seccomp_filtered(),
    }
}

/// Turns it on and off again, letting everything pass. Not in a thread that has it on: only the first one tries.
fn kernel_has_it() -> bool {
    static PASS: AtomicU8 = AtomicU8::new(ALLOW);
    set(PR_SYS_DISPATCH_ON, &PASS) && set(PR_SYS_DISPATCH_OFF, &PASS)
}

fn set(mode: usize, selector: &AtomicU8) -> bool {
    let text = signals::own_text();
    let args = match mode {
        PR_SYS_DISPATCH_ON => [text.start, text.len(), std::ptr::from_ref(selector) as usize],
        _ => [0; 3],
    };
    let prctl = PR_SET_SYSCALL_USER_DISPATCH as usize;
    // SAFETY: the selector lives as long as the process; our own text goes on making system calls.
    unsafe { sys::syscall(libc::SYS_prctl, [prctl, mode, args[0], args[1], args[2], 0]) == 0 }
}

/// Whether the kernel dispatches this thread's calls to us.
pub(super) fn is_on(block: &ThreadBlock) -> bool {
    matches!(block.dispatch.load(Relaxed), state::ON | state::UNSURE)
}

/// Brings the calling thread in line with what is wanted, where it passes.
#[inline]
pub(super) fn follow(block: &ThreadBlock) {
    match block.dispatch.load(Relaxed) {
        state::OFF if wanted() => turn_on(block),
        state::UNSURE => sync(block),
        _ => {}
    }
}

#[cold]
fn turn_on(block: &ThreadBlock) {
    // A vfork child runs on its parent's block.
    if vfork_child(block).is_some() || signals::seccomp_filtered() {
        return;
    }
    block.selector.store(ALLOW, Relaxed);
    if set(PR_SYS_DISPATCH_ON, &block.selector) {
        sync(block);
    } else {
        READY.store(Readiness::Refused as u8, Release);
        WANTED.store(false, Release);
    }
}

/// Sets the selector by the thread's signal mask.
#[cold]
pub(super) fn sync(block: &ThreadBlock) {
    let blocked = sys::blocked_signals().is_none_or(|set| set & SIGSYS_BIT != 0);
    block.selector.store(if blocked { ALLOW } else { BLOCK }, Relaxed);
    block.dispatch.store(state::ON, Relaxed);
}

/// Lets calls pass until the thread is looked at again: it may be going to block SIGSYS.
pub(super) fn let_pass(block: &ThreadBlock) {
    if is_on(block) {
        block.selector.store(ALLOW, Relaxed);
        block.dispatch.store(state::UNSURE, Relaxed);
    }
}

/// The thread's mask is going to be `mask`, by a call that does not come back.
pub(super) fn mask_returns(block: &ThreadBlock, mask: u64) {
    if is_on(block) && mask & SIGSYS_BIT != 0 {
        block.selector.store(ALLOW, Relaxed);
    } else if is_on(block) && block.selector.load(Relaxed) == ALLOW {
        block.dispatch.store(state::UNSURE, Relaxed);
    }
}

/// The program sets its own dispatch.
pub(super) fn belongs_to_program(block: &ThreadBlock, on: bool) {
    block.dispatch.store(if on { state::FOREIGN } else { state::OFF }, Relaxed);
}

/// Behind a call that made a child; `ret` is what it returned here.
pub(super) fn after_fork(block: &ThreadBlock, ret: i64) {
    if ret != 0 {
        // A vfork child changed the selector with its own mask.
        if is_on(block) {
            sync(block);
        }
    } else if vfork_child(block).is_some() {
        let blocked = sys::blocked_signals().is_none_or(|set| set & SIGSYS_BIT != 0);
        if wanted() && !blocked && !signals::seccomp_filtered() {
            block.selector.store(BLOCK, Relaxed);
            set(PR_SYS_DISPATCH_ON, &block.selector);
        }
    } else {
        // A copy of the parent's block, or a new one: the kernel dispatches nothing here.
        block.dispatch.store(state::OFF, Relaxed);
        follow(block);
    }
}

/// What the SIGSYS handler does about a call that was dispatched from in front of `after`: where the thread goes on.
/// `None` when it was not we who asked for that.
pub(crate) fn dispatched(after: usize) -> Option<usize> {
    let at = after - INSTRUCTION;
    let block = ThreadBlock::existing()?;
    if !is_on(block) && vfork_child(block).is_none() {
        return None;
    }
    if !wanted() {
        set(PR_SYS_DISPATCH_OFF, &block.selector);
        if vfork_child(block).is_none() {
            block.dispatch.store(state::OFF, Relaxed);
        }
        return Some(at);
    }
    note(at);
    Some(dispatch::entrance())
}

/// Length of `syscall`.
const INSTRUCTION: usize = 2;

/// Instructions that were dispatched and may be rewritten, for the control thread.
static SEEN: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];

/// Notes an instruction at its first call.
fn note(at: usize) {
    for cell in &SEEN {
        match cell.load(Relaxed) {
            0 if cell.compare_exchange(0, at, Relaxed, Relaxed).is_ok() => {
                if !signals::seccomp_filtered() {
                    crate::control::ask();
                }
                return;
            }
            seen if seen == at => return,
            _ => {}
        }
    }
}

/// The instructions noted so far.
pub(super) fn seen() -> impl Iterator<Item = usize> {
    SEEN.iter().map(|c| c.load(Relaxed)).filter(|at| *at != 0)
}
