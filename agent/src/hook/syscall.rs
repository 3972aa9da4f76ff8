//! A system call of the program, as its thunk sees it (arch/x86_64/syscall.rs).

use super::ThreadBlock;
use crate::arch::syscall::{FORKS, OWN, Parts};
use crate::arch::{PtRegs, dispatch, sys};
use crate::run::process;
use crate::syscalls::{self, Before, effects as calls};
use std::mem::offset_of;
use std::sync::atomic::Ordering::*;

/// One rewritten `syscall` instruction. Never freed.
#[repr(C)]
pub struct SyscallSite {
    /// Address behind the instruction. First, because the assembly and the unwind information read it there.
    after: usize,
    /// Where the thunk's parts are.
    thunk: usize,
    parts: Parts,
}
const _: () = assert!(offset_of!(SyscallSite, after) == 0);

impl SyscallSite {
    /// Memory for a site; its address goes into the thunk.
    pub(super) fn blank() -> *mut Self {
        Box::into_raw(Box::new(Self { after: 0, thunk: 0, parts: Parts::default() }))
    }

    /// Completes a site.
    ///
    /// # Safety
    /// `site` is from [`Self::blank`], and no thread can reach its thunk yet.
    pub(super) unsafe fn fill(site: *mut Self, after: usize, thunk: usize, parts: Parts) {
        // SAFETY: the caller's promise.
        unsafe { site.write(Self { after, thunk, parts }) };
    }

    pub(crate) const THUNK: usize = offset_of!(Self, thunk);
    /// Offsets of offsets in the thunk.
    pub(crate) const QUIET: usize = offset_of!(Self, parts.quiet);
    /// See above.
    pub(crate) const EVENTS: usize = offset_of!(Self, parts.events);
    /// See above.
    pub(crate) const LEAVE: usize = offset_of!(Self, parts.leave);

    fn at(&self, part: usize) -> usize {
        self.thunk + part
    }
}

fn fork_like(nr: i32) -> Option<usize> {
    FORKS.iter().position(|f| *f == nr).filter(|_| nr != OWN)
}

/// How a system call goes on whose beginning was reported.
#[derive(Clone, Copy)]
enum Next {
    /// As if we were not there: we know nothing of the thread.
    Plain,
    /// The call, and nothing after it.
    Quiet,
    /// The call, then its end is reported.
    Events,
    /// A call that makes a child, by its place in [`FORKS`].
    Fork(usize),
    /// rt_sigreturn.
    Return,
    /// It was done here.
    Done,
}

/// Called by every system call thunk that the gate lets through. Gives the address at which the thunk goes on.
///
/// # Safety
/// Called by the thunk with its site and the saved registers.
pub(crate) unsafe extern "C" fn on_syscall_enter(site: *const SyscallSite, regs: *mut PtRegs) -> usize {
    // SAFETY: sites are never freed; the registers are on our stack.
    let (site, regs) = unsafe { (&*site, &mut *regs) };
    match begin(regs) {
        Next::Plain => site.at(site.parts.plain),
        Next::Quiet => site.at(site.parts.quiet),
        Next::Events => site.at(site.parts.events),
        Next::Fork(k) => site.at(site.parts.forks[k]),
        Next::Return => dispatch::thunk_sigreturn(),
        Next::Done => {
            regs.cx = site.after as u64;
            site.at(site.parts.leave)
        }
    }
}

/// As [`on_syscall_enter`], for a call that the kernel dispatched.
///
/// # Safety
/// Called by `bpft_dispatch` with the address behind the instruction and the saved registers.
pub(crate) unsafe extern "C" fn on_dispatch_enter(after: usize, regs: *mut PtRegs) -> usize {
    // SAFETY: the registers are on our stack.
    let regs = unsafe { &mut *regs };
    match begin(regs) {
        Next::Plain | Next::Quiet => dispatch::quiet(),
        Next::Events => dispatch::events(),
        Next::Fork(k) => dispatch::fork_stub(after, FORKS[k]).unwrap_or_else(|| {
            calls::let_pass();
            dispatch::again()
        }),
        Next::Return => dispatch::sigreturn(),
        Next::Done => dispatch::leave(),
    }
}

fn begin(regs: &mut PtRegs) -> Next {
    // The kernel looks at the low half only.
    let nr = regs.ax as i32;
    let returns = nr == libc::SYS_rt_sigreturn as i32;
    let Some(block) = ThreadBlock::current() else {
        return if returns { Next::Return } else { Next::Plain };
    };
    let fork = fork_like(nr);
    if block.mute.load(Relaxed) != 0 {
        // A thread that one of ours starts is ours from its first instruction on.
        return match fork {
            Some(_) => {
                calls::let_pass();
                Next::Fork(FORKS.len() - 1)
            }
            None if returns => Next::Return,
            None => Next::Quiet,
        };
    }
    regs.orig_ax = nr as u64;
    block.enter();
    let exit_wanted = syscalls::enter(block, nr, regs);
    block.leave();
    let before = calls::before(block, nr, regs);
    match (fork, before) {
        (Some(k), _) => Next::Fork(k),
        _ if returns => Next::Return,
        (None, Before::Done(result)) => {
            regs.ax = result as u64;
            report_end(block, nr, regs);
            Next::Done
        }
        (None, Before::WatchEnd) => watch_end(regs, nr),
        (None, Before::Nothing) if exit_wanted => watch_end(regs, nr),
        (None, Before::Nothing) => Next::Quiet,
    }
}

/// The number travels in a register that the call itself clobbers.
fn watch_end(regs: &mut PtRegs, nr: i32) -> Next {
    regs.cx = nr as u32 as u64;
    Next::Events
}

/// Called after the system call.
///
/// # Safety
/// As [`on_syscall_enter`].
pub(crate) unsafe extern "C" fn on_syscall_exit(site: *const SyscallSite, regs: *mut PtRegs) -> usize {
    // SAFETY: as above.
    let (site, regs) = unsafe { (&*site, &mut *regs) };
    end(site.after, regs);
    site.at(site.parts.leave)
}

/// As [`on_syscall_exit`], for a call that the kernel dispatched.
///
/// # Safety
/// As [`on_dispatch_enter`].
pub(crate) unsafe extern "C" fn on_dispatch_exit(after: usize, regs: *mut PtRegs) -> usize {
    // SAFETY: as above.
    end(after, unsafe { &mut *regs });
    dispatch::leave()
}

fn end(after: usize, regs: &mut PtRegs) {
    let nr = regs.cx as i32;
    regs.cx = after as u64;
    let Some(block) = ThreadBlock::current() else { return };
    if nr == OWN {
        own_thread(block, regs.ax as i64);
        return calls::own_thread_made(block, regs.ax as i64);
    }
    if fork_like(nr).is_some() {
        note_child(block, regs.ax as i64);
    }
    if block.mute.load(Relaxed) == 0 {
        calls::after(block, nr, after, regs);
        regs.orig_ax = nr as u64;
        report_end(block, nr, regs);
    }
}

fn report_end(block: &ThreadBlock, nr: i32, regs: &PtRegs) {
    block.enter();
    syscalls::exit(block, nr, regs);
    block.leave();
}

/// A thread with a block of its own, not a process that borrows its parent's.
fn own_thread(block: &ThreadBlock, ret: i64) {
    if ret == 0 && block.tid.load(Relaxed) == sys::gettid() && sys::getpid() as u32 == process::pid() {
        block.silence();
    }
}

/// Word of [`ThreadBlock::run`]: pid and tid of the vfork child that runs on this block, else 0.
const CHILD: usize = 1;

/// A vfork child shares everything with its waiting parent, this block too, and is somebody else all the same.
fn note_child(block: &ThreadBlock, ret: i64) {
    let pid = if ret == 0 { sys::getpid() as u32 } else { 0 };
    let borrowed = ret == 0 && pid != process::pid();
    let word = if borrowed { (pid as u64) << 32 | sys::gettid() as u64 } else { 0 };
    if borrowed {
        block.unsettle();
    }
    block.run[CHILD].store(word, Relaxed);
}

/// Process and thread that run on `block`, if they are not the block's own.
pub(crate) fn vfork_child(block: &ThreadBlock) -> Option<(u32, u32)> {
    match block.run[CHILD].load(Relaxed) {
        0 => None,
        word => Some(((word >> 32) as u32, word as u32)),
    }
}
