//! SIGTRAP, SIGSEGV and SIGBUS: ours in the kernel, the application's in its own eyes. SIGSYS too, from the moment
//! when system calls are dispatched (syscalls/dispatch.rs).
//!
//! Rules for this module: a handler may run at any instruction of any thread, also inside malloc or our own
//! code. So: raw system calls, atomics, no allocation, no lock that the interrupted code could hold (writers of
//! the records block all signals first).
//!
//! What is ours: an int3 the engine wrote; a timer or an event that samples; a fault in a guarded copy; a fault in BPF code under
//! `run_guarded`.
//! Everything else goes to the disposition the application set, with its mask and flags: a handler is called in
//! place, SIG_DFL is restored and the signal happens again, SIG_IGN returns unless the signal was forced.

mod actions;
mod chain;
mod ranges;

use crate::arch::{copy, guarded, sys};
use crate::hook::{self, ThreadBlock};
use crate::sample;
use crate::syscalls::dispatch;
use chain::{KernelAction, Record};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::*};

pub(crate) use actions::{sigaction_call, take_sigsys};
pub(crate) use ranges::{in_library as is_own_code, is_program, own_text};
pub use ranges::{register_code_range, unregister_code_range};

/// SIGSYS in a signal mask.
pub(crate) const SIGSYS_BIT: u64 = 1 << (libc::SIGSYS - 1);

const SIGNALS: [i32; 3] = [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS];
static APP: [Record; 3] = [const { Record::new() }; 3];
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// 0 = not read yet, 1 = no filter, 2 = filtered.
static SECCOMP: AtomicU8 = AtomicU8::new(0);

fn record(sig: i32) -> Option<&'static Record> {
    SIGNALS.iter().position(|&s| s == sig).map(|i| &APP[i])
}

type Handler = unsafe extern "C-unwind" fn(i32, *mut libc::siginfo_t, *mut libc::ucontext_t);

fn our_action(sig: i32) -> KernelAction {
    let f: Handler = if sig == libc::SIGTRAP { on_trap } else { on_fault };
    // NODEFER and an empty mask: a guarded copy in the application's handler for the same signal works too.
    // RESTART: what of ours arrives during a system call must not end it.
    let flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER | libc::SA_RESTART;
    KernelAction::new(f as *const () as usize, flags as u64, 0)
}

/// Whether an action is one that [`install`] set.
fn is_ours(action: &KernelAction) -> bool {
    SIGNALS.iter().any(|sig| our_action(*sig).handler == action.handler)
}

/// Installs the handlers and remembers what was there. May be called again.
pub fn install() {
    if INSTALLED.swap(true, AcqRel) {
        reassert();
        return;
    }
    ranges::find_library();
    for (i, sig) in SIGNALS.into_iter().enumerate() {
        if let Some(old) = chain::kernel_sigaction(sig, Some(&our_action(sig))) {
            APP[i].store(&old);
        }
    }
}

/// Checks that our handlers are still in the kernel; a handler that replaced one (by a raw system call) becomes the
/// application's, and ours goes back in front. True if anything had to be put right.
pub fn reassert() -> bool {
    let mut changed = false;
    for (i, sig) in SIGNALS.into_iter().enumerate() {
        let ours = our_action(sig);
        let Some(now) = chain::kernel_sigaction(sig, None) else { continue };
        if now.handler != ours.handler {
            APP[i].store(&now);
            chain::kernel_sigaction(sig, Some(&ours));
            changed = true;
        }
    }
    changed
}

/// Answers the application's `sigaction(sig, new, old)` for the signals we hold. False: not ours, pass it on.
///
/// # Safety
/// `new` and `old` are null or point to libc's `struct sigaction`.
pub unsafe fn on_sigaction(sig: i32, new: *const libc::sigaction, old: *mut libc::sigaction) -> bool {
    let record = match sig {
        libc::SIGSYS => Some(&actions::APP_SYS).filter(|_| actions::HOLDS_SYS.load(Acquire)),
        _ => record(sig).filter(|_| INSTALLED.load(Acquire)),
    };
    let Some(record) = record else { return false };
    // SAFETY: the caller's promise; read before `old` is written, they may be the same object.
    let wanted = unsafe { new.as_ref() }.map(KernelAction::from_libc);
    let before = match &wanted {
        Some(action) => record.replace(action),
        None => record.load(),
    };
    // SAFETY: the caller's promise.
    if let Some(old) = unsafe { old.as_mut() } {
        before.to_libc(old);
    }
    // The program made a system call, as far as it knows.
    let args = [sig as u64, new as u64, old as u64, 8];
    crate::syscalls::report(libc::SYS_rt_sigaction as i32, args, 0);
    true
}

/// Takes our signals out of a set that the application is about to block: a thread that blocks SIGTRAP dies at an
/// int3. For the preload library's sigprocmask and pthread_sigmask.
pub fn keep_unblocked(set: &mut u64) {
    for sig in SIGNALS {
        *set &= !(1 << (sig - 1));
    }
}

/// True when this thread blocks SIGSEGV or SIGBUS, so that guarded copies must not be used. About 100 ns.
pub fn faults_blocked() -> bool {
    const FAULTS: u64 = 1 << (libc::SIGSEGV - 1) | 1 << (libc::SIGBUS - 1);
    sys::blocked_signals().is_none_or(|set| set & FAULTS != 0)
}

/// True when the process has a seccomp filter, as last seen by [`read_seccomp`].
pub fn seccomp_filtered() -> bool {
    SECCOMP.load(Relaxed) == 2
}

/// The program is installing a filter.
pub(crate) fn seccomp_comes() {
    SECCOMP.store(2, Relaxed);
}

/// Reads the seccomp mode of every thread: a filter may be one thread's. Called by the control thread: opens files. A filter
/// that was seen stays.
pub fn read_seccomp() {
    if seccomp_filtered() {
        return;
    }
    let filtered = |tid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/self/task/{tid}/status")).unwrap_or_default();
        status.lines().find_map(|l| l.strip_prefix("Seccomp:")).is_some_and(|mode| mode.trim() != "0")
    };
    let any = hook::threads::tids().iter().any(filtered);
    SECCOMP.store(if any { 2 } else { 1 }, Relaxed);
}

const RIP: usize = libc::REG_RIP as usize;
const RSP: usize = libc::REG_RSP as usize;
/// si_code of an int3 (and of a general protection fault): sent by the kernel, no address.
const SI_KERNEL: i32 = 0x80;
/// si_code of a perf event's signal.
const TRAP_PERF: i32 = 6;

/// # Safety
/// Called by the kernel as a signal handler.
unsafe extern "C-unwind" fn on_trap(sig: i32, info: *mut libc::siginfo_t, uc: *mut libc::ucontext_t) {
    // SAFETY: the kernel passes valid pointers to objects on the signal stack.
    let (code, regs) = unsafe { ((*info).si_code, &mut (*uc).uc_mcontext.gregs) };
    // An int3 as the kernel reports it, and as valgrind does.
    if matches!(code, SI_KERNEL | libc::TRAP_BRKPT)
        && let Some(rip) = hook::trapped(regs[RIP] as usize)
    {
        regs[RIP] = rip as i64;
        return;
    }
    // SAFETY: the kernel's arguments; the context is read only.
    if code == libc::SI_TIMER && unsafe { sample::on_timer(info, &*uc) } {
        return;
    }
    // SAFETY: as above.
    if code == TRAP_PERF && unsafe { sample::on_event(info, &*uc) } {
        return;
    }
    // SAFETY: the kernel's arguments, passed on.
    unsafe { chain::to_application(&APP[0], sig, info, uc) };
}

/// # Safety
/// Called by the kernel as a signal handler.
unsafe extern "C-unwind" fn on_fault(sig: i32, info: *mut libc::siginfo_t, uc: *mut libc::ucontext_t) {
    // SAFETY: the kernel passes valid pointers to objects on the signal stack.
    let (code, regs) = unsafe { ((*info).si_code, &mut (*uc).uc_mcontext.gregs) };
    let rip = regs[RIP] as usize;
    // si_code <= 0: sent by a process, the instruction is innocent.
    if code > 0 {
        if let Some(to) = copy::fixup(rip) {
            regs[RIP] = to as i64;
            return;
        }
        if abandon_run(rip, regs) {
            return;
        }
        if let Some(record) = record(sig)
            && record.has_handler()
            && let Some(original) = hook::original_rip(rip)
        {
            regs[RIP] = original as i64;
        }
    }
    if let Some(record) = record(sig) {
        // SAFETY: the kernel's arguments, passed on.
        unsafe { chain::to_application(record, sig, info, uc) };
    }
}

/// # Safety
/// Called by the kernel as a signal handler.
unsafe extern "C-unwind" fn on_sys(sig: i32, info: *mut libc::siginfo_t, uc: *mut libc::ucontext_t) {
    /// si_code of syscall user dispatch (asm-generic/siginfo.h).
    const SYS_USER_DISPATCH: i32 = 2;
    // SAFETY: the kernel passes valid pointers to objects on the signal stack.
    let (code, regs) = unsafe { ((*info).si_code, &mut (*uc).uc_mcontext.gregs) };
    if code == SYS_USER_DISPATCH
        && let Some(to) = dispatch::dispatched(regs[RIP] as usize)
    {
        regs[libc::REG_RCX as usize] = regs[RIP];
        regs[RIP] = to as i64;
        return;
    }
    // SAFETY: the kernel's arguments, passed on.
    unsafe { chain::to_application(&actions::APP_SYS, sig, info, uc) };
}

/// Ends the guarded run that faulted, if this fault is one's.
fn abandon_run(rip: usize, regs: &mut [i64; 23]) -> bool {
    let Some(block) = ThreadBlock::existing() else { return false };
    // SAFETY: the thread's own block.
    let to = unsafe {
        guarded::resume(block.recover.load(Relaxed), ranges::contains(rip), || ranges::in_library(rip))
    };
    let Some((rsp, rip)) = to else { return false };
    regs[RSP] = rsp as i64;
    regs[RIP] = rip as i64;
    true
}
