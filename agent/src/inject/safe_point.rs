//! Choosing a thread, and judging whether it may run dlopen where it is.
//!
//! dlopen takes the loader's lock and allocates. Borrowing a thread inside malloc would enter malloc twice and
//! break the heap (single-threaded glibc takes no lock at all), so such a thread is let go and asked again.
//! A thread blocked in a system call that no allocator makes is always fine.

use std::time::{Duration, Instant};

use super::InjectError;
use super::call::needs_our_restart;
use super::check;
use super::procfs::{self, Doing, Memory, Status};
use super::ptrace::{Pause, Regs, Resume, Stop, TraceError, Tracee};
use super::runtime::{Text, within};

/// Until then a thread inside a signal handler is passed over: the handler may have interrupted malloc.
const PATIENCE: Duration = Duration::from_millis(500);
/// A thread that needs longer to stop is stuck in the kernel.
const STOP_TIME: Duration = Duration::from_millis(500);
/// More threads than this are not looked at in one round.
const MAX_THREADS: usize = 64;
/// Frames of malloc and its inner functions are small.
const NEAR_STACK: usize = 2048;
/// A signal frame with AVX-512 state is 3 KiB, with AMX 11 KiB.
const SIGNAL_STACK: usize = 16 * 1024;
/// User code segment of a 64-bit program (`asm/segment.h`, __USER_CS).
const USER_CS_64: u64 = 0x33;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Safe,
    /// In a signal handler.
    RatherNot,
    No,
}

/// Stops a thread of the process where it can be borrowed.
pub(super) fn acquire(pid: i32, mem: &Memory, text: &Text, deadline: Instant) -> Result<Tracee, InjectError> {
    let began = Instant::now();
    let mut pause = Pause::default();
    loop {
        for tid in candidates(pid) {
            let Some(mut tracee) = stop(pid, tid)? else { continue };
            let verdict = judge(&mut tracee, mem, text).unwrap_or(Verdict::No);
            if verdict == Verdict::Safe || (verdict == Verdict::RatherNot && began.elapsed() > PATIENCE) {
                return Ok(tracee);
            }
        }
        if Instant::now() >= deadline {
            return Err(InjectError::NoSafePoint { pid });
        }
        pause.wait();
    }
}

/// Threads worth asking, best first: blocked in a system call that the kernel restarts by itself, then in
/// one that we restart, then running.
fn candidates(pid: i32) -> Vec<i32> {
    let mut ranked: Vec<(u8, i32)> = procfs::threads(pid)
        .into_iter()
        .take(MAX_THREADS)
        .filter_map(|tid| Some((preference(pid, tid)?, tid)))
        .collect();
    ranked.sort_by_key(|&(rank, _)| rank);
    ranked.into_iter().map(|(_, tid)| tid).collect()
}

fn preference(pid: i32, tid: i32) -> Option<u8> {
    // A thread in state D does not stop for us until its disk or its vfork child lets it.
    let state = Status::read(&format!("{pid}/task/{tid}")).ok()?.state;
    if matches!(state, 'D' | 'Z' | 'X') {
        return None;
    }
    Some(match procfs::doing(pid, tid) {
        Doing::Syscall(nr) if is_memory_call(nr) => 3,
        Doing::Syscall(nr) if nr == libc::SYS_read || !needs_our_restart(nr) => 0,
        Doing::Syscall(_) => 1,
        Doing::Running | Doing::Unknown => 2,
    })
}

/// What an allocator does in the kernel, maybe with its lock held.
fn is_memory_call(nr: i64) -> bool {
    matches!(
        nr,
        libc::SYS_brk
            | libc::SYS_mmap
            | libc::SYS_munmap
            | libc::SYS_mremap
            | libc::SYS_mprotect
            | libc::SYS_madvise
            | libc::SYS_clone
            | libc::SYS_clone3
            | libc::SYS_vfork
            | libc::SYS_fork
            | libc::SYS_execve
            | libc::SYS_exit
            | libc::SYS_exit_group
    )
}

/// Stops one thread. None when it went away meanwhile.
fn stop(pid: i32, tid: i32) -> Result<Option<Tracee>, InjectError> {
    let mut tracee = match Tracee::seize(tid) {
        Ok(tracee) => tracee,
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
            return Err(InjectError::Refused(check::seize_refused(pid)));
        }
        Err(e) => return Err(InjectError::os("PTRACE_SEIZE", e)),
    };
    match stop_seized(&mut tracee) {
        Ok(Stop::Group(_)) => Err(InjectError::Refused(check::stopped(pid))),
        Ok(_) => Ok(Some(tracee)),
        Err(TraceError::Gone) => Ok(None),
        Err(TraceError::Timeout) => Err(InjectError::Unresponsive { pid, tid }),
        Err(e) => Err(InjectError::trace("stopping a thread", e)),
    }
}

fn stop_seized(tracee: &mut Tracee) -> Result<Stop, TraceError> {
    let deadline = Instant::now() + STOP_TIME;
    tracee.interrupt()?;
    loop {
        match tracee.wait(deadline)? {
            // It was about to take a signal: let it, our stop is still due.
            Stop::Signal(signal) => tracee.resume(Resume::Run, signal)?,
            Stop::Syscall => tracee.resume(Resume::Run, 0)?,
            stop => return Ok(stop),
        }
    }
}

fn judge(tracee: &mut Tracee, mem: &Memory, text: &Text) -> Result<Verdict, TraceError> {
    let regs = tracee.regs()?;
    let in_rseq = tracee.rseq_area().is_some_and(|area| in_critical_section(mem, area, regs.rip));
    if regs.cs != USER_CS_64 || in_rseq || !may_call(&regs, mem, text) {
        return Ok(Verdict::No);
    }
    Ok(if in_signal_handler(&regs, mem, text) { Verdict::RatherNot } else { Verdict::Safe })
}

fn may_call(regs: &Regs, mem: &Memory, text: &Text) -> bool {
    let (rip, nr) = (regs.rip, regs.orig_rax as i64);
    if within(&text.loader, rip) || within(&text.allocator, rip) || within(&text.not_reentrant, rip) {
        return false;
    }
    match nr {
        // Waits for a lock, maybe malloc's.
        libc::SYS_futex => !under_malloc(regs, mem, text, NEAR_STACK / 4),
        nr if nr >= 0 => !is_memory_call(nr),
        // Inner functions of libc, or memcpy called by realloc.
        _ if within(&text.libc, rip) => !text.is_musl() && !under_malloc(regs, mem, text, NEAR_STACK),
        _ => true,
    }
}

/// Does a return address near the top of the stack lie in a function that must not be entered twice?
/// Leftovers of earlier calls count too: that costs a retry, the opposite mistake would cost the heap.
fn under_malloc(regs: &Regs, mem: &Memory, text: &Text, depth: usize) -> bool {
    stack_words(regs, mem, depth).into_iter().any(|word| {
        within(&text.not_reentrant, word) || within(&text.allocator, word) || within(&text.loader, word)
    })
}

/// Does the stack hold the return address of a signal frame, that is code which calls rt_sigreturn?
fn in_signal_handler(regs: &Regs, mem: &Memory, text: &Text) -> bool {
    // mov $15,%rax; syscall (glibc, musl, Go) and mov $15,%eax; syscall
    const SIGRETURN: [&[u8]; 2] =
        [&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]];
    let mut words = stack_words(regs, mem, SIGNAL_STACK);
    words.retain(|&word| within(&text.any, word));
    words.sort_unstable();
    words.dedup();
    words.into_iter().any(|word| {
        let code = mem.read_some(word, 9);
        SIGRETURN.iter().any(|pattern| code.starts_with(pattern))
    })
}

fn stack_words(regs: &Regs, mem: &Memory, depth: usize) -> Vec<u64> {
    let bytes = mem.read_some(regs.rsp & !7, depth);
    bytes.chunks_exact(8).map(|w| u64::from_ne_bytes(w.try_into().unwrap_or_default())).collect()
}

/// `linux/rseq.h`: rseq_cs at offset 8 points to {u32 version, u32 flags, u64 start, u64 length, u64 abort}.
/// Leaving such a section half-way and coming back into its middle would break its promise.
fn in_critical_section(mem: &Memory, area: u64, rip: u64) -> bool {
    let Ok(section) = mem.read_u64(area + 8) else { return false };
    let read = |at: u64| mem.read_u64(section.wrapping_add(at)).unwrap_or(0);
    section != 0 && rip.wrapping_sub(read(8)) < read(16)
}
