//! System calls whose effects we must know of: those that change signal masks and handlers, that make code, and those
//! that forbid or replace what we do.

use super::dispatch;
use crate::arch::{PtRegs, copy};
use crate::hook::{Mute, ThreadBlock};
use crate::signals;
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::time::Duration;

/// What a call needs besides being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing.
    Nothing,
    /// [`after`] has to see its end.
    WatchEnd,
    /// It is done; this is its result.
    Done(i64),
}

const PR_SET_SECCOMP: u64 = 22;
/// Not in libc.
const SYS_IO_PGETEVENTS: i64 = 333;
const EXEC: u64 = libc::PROT_EXEC as u64;

/// Whether nothing has to be done about system call `nr` but to report it, in a thread whose calls are not dispatched:
/// [`before`] and [`after`], and what `syscalls::enter` and `exit` do besides, would do nothing.
pub(super) fn is_plain(nr: i64) -> bool {
    const SPECIAL: [i64; 15] = [
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigreturn,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_pkey_mprotect,
        libc::SYS_prctl,
        libc::SYS_seccomp,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    !SPECIAL.contains(&nr)
}

/// Before system call `nr`, whose beginning was reported.
pub(crate) fn before(block: &ThreadBlock, nr: i32, regs: &PtRegs) -> Before {
    dispatch::follow(block);
    // A number with an arm of its own belongs into `is_plain`, too.
    match nr as i64 {
        libc::SYS_rt_sigaction => signals::sigaction_call(regs).map_or(Before::Nothing, Before::Done),
        libc::SYS_rt_sigreturn => {
            returns(block, regs);
            Before::Nothing
        }
        libc::SYS_clone | libc::SYS_vfork | libc::SYS_clone3 => {
            // Its instruction lies outside of our text.
            dispatch::let_pass(block);
            Before::Nothing
        }
        // The child has a copy of the stack: it may come back by any way.
        libc::SYS_fork => Before::WatchEnd,
        libc::SYS_mmap | libc::SYS_mprotect | libc::SYS_pkey_mprotect if regs.dx & EXEC != 0 => {
            Before::WatchEnd
        }
        libc::SYS_prctl if regs.di == dispatch::PR_SET_SYSCALL_USER_DISPATCH => {
            dispatch::belongs_to_program(block, regs.si != 0);
            Before::Nothing
        }
        libc::SYS_prctl if regs.di == PR_SET_SECCOMP => {
            signals::seccomp_comes();
            Before::Nothing
        }
        libc::SYS_seccomp if regs.di <= 1 => {
            signals::seccomp_comes();
            Before::Nothing
        }
        nr if dispatch::is_on(block) && blocks_sigsys(nr, regs) => {
            dispatch::let_pass(block);
            Before::WatchEnd
        }
        _ => Before::Nothing,
    }
}

/// After system call `nr`, which came from in front of `after`; `regs` hold its result and, still, its arguments.
pub(crate) fn after(block: &ThreadBlock, nr: i32, after: usize, regs: &PtRegs) {
    let ok = !(-4095..0).contains(&(regs.ax as i64));
    match nr as i64 {
        libc::SYS_clone | libc::SYS_vfork | libc::SYS_clone3 | libc::SYS_fork => {
            dispatch::after_fork(block, regs.ax as i64);
        }
        libc::SYS_mmap | libc::SYS_mprotect | libc::SYS_pkey_mprotect if ok && regs.dx & EXEC != 0 => {
            code_came(nr, after, regs);
        }
        _ => {}
    }
    dispatch::follow(block);
}

/// Behind a call that made a thread of ours.
pub(crate) fn own_thread_made(block: &ThreadBlock, ret: i64) {
    if ret != 0 {
        super::tasks::note_own(ret.max(0) as u32);
        dispatch::after_fork(block, ret);
    }
}

/// Lets calls of the thread pass until the next one that is seen.
pub(crate) fn let_pass() {
    if let Some(block) = ThreadBlock::existing() {
        dispatch::let_pass(block);
    }
}

/// Whether the call may block SIGSYS, for a while or until further notice.
fn blocks_sigsys(nr: i64, regs: &PtRegs) -> bool {
    let mask = match nr {
        libc::SYS_rt_sigprocmask if regs.di != libc::SIG_UNBLOCK as u64 => regs.si,
        // Unblocking may end a time of letting pass.
        libc::SYS_rt_sigprocmask => return regs.si != 0,
        libc::SYS_rt_sigsuspend => regs.di,
        libc::SYS_ppoll => regs.r10,
        libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => regs.r8,
        libc::SYS_pselect6 | SYS_IO_PGETEVENTS => read::<u64>(regs.r9).unwrap_or(0),
        _ => return false,
    };
    // SETMASK without the bit may unblock.
    let sets = nr == libc::SYS_rt_sigprocmask;
    mask != 0 && (sets || read::<u64>(mask).is_some_and(|set| set & signals::SIGSYS_BIT != 0))
}

/// Reads a value of the program's; `None` where it cannot be read.
pub(crate) fn read<T: Copy + Default>(addr: u64) -> Option<T> {
    let mut value = T::default();
    let (dst, src, len) = ((&raw mut value).cast::<u8>(), addr as *const u8, size_of::<T>());
    // SAFETY: `value` is plain data of `len` bytes, here u64s; the source may be anything.
    let left = unsafe {
        match (signals::faults_blocked(), signals::seccomp_filtered()) {
            (false, _) => copy::probe_read(dst, src, len),
            (true, false) => copy::probe_read_slow(dst, src, len),
            (true, true) => len,
        }
    };
    (left == 0).then_some(value)
}

/// rt_sigreturn: the mask comes from the frame; and a call that the frame repeats is seen here only.
fn returns(block: &ThreadBlock, regs: &PtRegs) {
    // The kernel's struct ucontext, which lies at the stack pointer.
    const GREGS: u64 = 40;
    const SIGMASK: u64 = 296;
    if let Some(mask) = read::<u64>(regs.sp + SIGMASK) {
        dispatch::mask_returns(block, mask);
    }
    if let Some(gregs) = read::<[u64; 23]>(regs.sp + GREGS) {
        super::restarted(block, regs, &gregs);
    }
}

/// Where the dynamic linker's code is; it tells of libraries by itself when it is done with them.
static LINKER: (AtomicUsize, AtomicUsize) = (AtomicUsize::new(0), AtomicUsize::new(0));

/// Tells where the dynamic linker is.
pub(super) fn set_linker(range: std::ops::Range<usize>) {
    LINKER.0.store(range.start, Relaxed);
    LINKER.1.store(range.end, Relaxed);
}

/// There is code that nobody looked at. A piece of a file is looked at before the program can run it; what it
/// generates itself it may change at any time, so that is left alone, and its calls dispatched.
fn code_came(nr: i32, after: usize, regs: &PtRegs) {
    const WAIT: Duration = Duration::from_millis(500);
    let linker = LINKER.0.load(Relaxed)..LINKER.1.load(Relaxed);
    // Asking takes a call that a filter may kill for.
    if linker.contains(&after) || signals::seccomp_filtered() {
        return;
    }
    let of_file = nr as i64 == libc::SYS_mmap
        && regs.r10 & libc::MAP_ANONYMOUS as u64 == 0
        && regs.dx & libc::PROT_WRITE as u64 == 0;
    if super::active() && (of_file || !dispatch::wanted()) {
        let _quiet = Mute::new();
        crate::control::ask_and_wait(WAIT);
    }
}
