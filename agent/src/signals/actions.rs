//! rt_sigaction as a system call of the program's that we see: what the C library's `sigaction` is in lib.rs of the
//! preload library, for callers that do without it; and SIGSYS, which we take only when calls are dispatched.
//!
//! A handler whose mask holds SIGSYS would die at a dispatched call. So no mask in the kernel holds it; the program is
//! shown what it set.

use super::chain::{self, KernelAction, Record};
use super::{INSTALLED, SIGSYS_BIT, on_sys, record};
use crate::arch::{PtRegs, copy};
use crate::syscalls::effects;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

pub(super) static APP_SYS: Record = Record::new();
pub(super) static HOLDS_SYS: AtomicBool = AtomicBool::new(false);
/// Signals, bit `sig - 1` each, in whose handler's mask the program has SIGSYS.
static STRIPPED: AtomicU64 = AtomicU64::new(0);

fn our_action() -> KernelAction {
    let flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    let faults = [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGSYS];
    // Nothing comes between the call and its place in the program but what cannot wait.
    let mask = faults.iter().fold(!0, |m, sig| m & !(1 << (sig - 1)));
    let handler: super::Handler = on_sys;
    KernelAction::new(handler as *const () as usize, flags as u64, mask)
}

/// Puts our SIGSYS handler in front of the program's. False where a handler was there before that may serve the same
/// purpose as ours: nothing tells whether the program has calls dispatched to it.
pub fn take_sigsys() -> bool {
    if HOLDS_SYS.load(Acquire) {
        return true;
    }
    let Some(before) = chain::kernel_sigaction(libc::SIGSYS, None) else { return false };
    if before.handler > libc::SIG_IGN && !crate::lifecycle::is_go() {
        return false;
    }
    APP_SYS.store(&before);
    HOLDS_SYS.store(true, Release);
    for sig in (1..=64).filter(|s| ![libc::SIGKILL, libc::SIGSTOP, libc::SIGSYS].contains(s)) {
        strip(sig);
    }
    chain::kernel_sigaction(libc::SIGSYS, Some(&our_action())).is_some()
}

/// Takes SIGSYS out of the mask of a handler that was there before us. Calls that replace it at this moment are seen
/// by [`sigaction_call`] already, or are over.
fn strip(sig: i32) {
    let Some(action) = chain::kernel_sigaction(sig, None) else { return };
    if action.handler > libc::SIG_IGN && action.mask & SIGSYS_BIT != 0 && !super::is_ours(&action) {
        STRIPPED.fetch_or(1 << (sig - 1), Relaxed);
        chain::kernel_sigaction(sig, Some(&KernelAction { mask: action.mask & !SIGSYS_BIT, ..action }));
    }
}

/// Makes the program's rt_sigaction for it: its result, or `None` if the kernel should.
pub(crate) fn sigaction_call(regs: &PtRegs) -> Option<i64> {
    let sig = regs.di as i32;
    if regs.r10 != 8 || !(1..=64).contains(&sig) || !INSTALLED.load(Acquire) {
        return None;
    }
    let held = held(sig);
    if held.is_none() && !HOLDS_SYS.load(Acquire) {
        return None;
    }
    let new = match regs.si {
        0 => None,
        addr => match effects::read::<[u64; 4]>(addr) {
            Some([handler, flags, restorer, mask]) => {
                Some(KernelAction { handler: handler as usize, flags, restorer: restorer as usize, mask })
            }
            None => return Some(-libc::EFAULT as i64),
        },
    };
    let old = match held {
        Some(record) => new.as_ref().map_or_else(|| record.load(), |new| record.replace(new)),
        None => match stripped(sig, new) {
            Ok(old) => old,
            Err(errno) => return Some(errno),
        },
    };
    if regs.dx != 0 && !give(regs.dx, &old) {
        return Some(-libc::EFAULT as i64);
    }
    Some(0)
}

/// The record of a signal that is ours in the kernel.
fn held(sig: i32) -> Option<&'static Record> {
    if sig == libc::SIGSYS { Some(&APP_SYS).filter(|_| HOLDS_SYS.load(Acquire)) } else { record(sig) }
}

/// The call with SIGSYS taken out of the mask; gives the action before as the program set it, or the kernel's error.
fn stripped(sig: i32, new: Option<KernelAction>) -> Result<KernelAction, i64> {
    let bit = 1 << (sig - 1);
    let had = STRIPPED.load(Relaxed) & bit != 0;
    let mine = new.map(|a| KernelAction { mask: a.mask & !SIGSYS_BIT, ..a });
    let mut old = chain::raw_sigaction(sig, mine.as_ref())?;
    if had {
        old.mask |= SIGSYS_BIT;
    }
    match new {
        Some(a) if a.mask & SIGSYS_BIT != 0 => STRIPPED.fetch_or(bit, Relaxed),
        Some(_) => STRIPPED.fetch_and(!bit, Relaxed),
        None => 0,
    };
    Ok(old)
}

fn give(addr: u64, action: &KernelAction) -> bool {
    // SAFETY: `action` is ours; a destination that cannot be written is reported.
    let left = unsafe {
        let src = std::ptr::from_ref(action).cast::<u8>();
        if super::faults_blocked() {
            return give_slowly(addr, action);
        }
        copy::probe_read(addr as *mut u8, src, size_of::<KernelAction>())
    };
    left == 0
}

/// By the kernel, in a thread that blocks SIGSEGV.
fn give_slowly(addr: u64, action: &KernelAction) -> bool {
    let (local, remote) = (
        [std::ptr::from_ref(action) as usize, size_of::<KernelAction>()],
        [addr as usize, size_of::<KernelAction>()],
    );
    let args =
        [crate::arch::sys::getpid() as usize, local.as_ptr() as usize, 1, remote.as_ptr() as usize, 1, 0];
    // SAFETY: the kernel checks the destination, which the program named.
    unsafe {
        crate::arch::sys::syscall(libc::SYS_process_vm_writev, args) == size_of::<KernelAction>() as isize
    }
}
