//! Signals to the process or thread itself: helpers 109 and 117.
//!
//! The kernel queues them until the thread goes back to user mode. Here they are sent once all programs of the hit have
//! run, outside of the callback: a handler may then leave by longjmp, or never return, as at any other instruction.

use super::{EINVAL, errno, helper};
use crate::arch::sys::syscall;
use crate::hook::ThreadBlock;
use crate::run::Run;
use rustix::io::Errno;
use std::sync::atomic::Ordering::Relaxed;

/// Signals that wait in a thread's block ([`ThreadBlock::run`]): a byte each, bit 7 set for the thread rather than the
/// process. runner.rs looks at the word, too.
pub(crate) const QUEUE: usize = 2;
const TO_THREAD: u64 = 0x80;
/// `_NSIG`.
const LAST: u32 = 64;

/// Puts a signal into the thread's queue of eight.
fn queue(sig: u64, to: u64) -> u64 {
    let sig = sig as u32;
    if sig > LAST {
        return EINVAL;
    }
    if sig == 0 {
        return 0;
    }
    let Some(block) = ThreadBlock::existing() else { return errno(Errno::BUSY) };
    let waiting = block.run[QUEUE].load(Relaxed);
    if waiting >> 56 != 0 {
        return errno(Errno::BUSY);
    }
    block.run[QUEUE].store(waiting << 8 | u64::from(sig) | to, Relaxed);
    0
}

/// Whether programs of this hit sent signals.
#[inline]
pub fn waiting(block: &ThreadBlock) -> bool {
    block.run[QUEUE].load(Relaxed) != 0
}

/// Sends what waits, oldest first. The caller holds nothing: this may not return.
#[cold]
pub fn deliver(block: &ThreadBlock) {
    let waiting = block.run[QUEUE].swap(0, Relaxed);
    for byte in waiting.to_be_bytes().into_iter().filter(|b| *b != 0) {
        send(u64::from(byte) & !TO_THREAD, u64::from(byte) & TO_THREAD != 0);
    }
}

/// `siginfo_t` as the kernel fills it in for signals of its own.
#[repr(C)]
struct Info {
    signo: i32,
    errno: i32,
    code: i32,
    rest: [u32; 29],
}
const _: () = assert!(size_of::<Info>() == 128);

fn send(sig: u64, to_thread: bool) {
    const SI_KERNEL: i32 = 0x80;
    let info = Info { signo: sig as i32, errno: 0, code: SI_KERNEL, rest: [0; 29] };
    let (info, sig) = (&raw const info as usize, sig as usize);
    // SAFETY: system calls without arguments.
    let (pid, tid) = unsafe { (syscall(libc::SYS_getpid, [0; 6]), syscall(libc::SYS_gettid, [0; 6])) };
    let (pid, tid) = (pid as usize, tid as usize);
    // SAFETY: `info` is a siginfo_t that the kernel copies.
    unsafe {
        match to_thread {
            true => syscall(libc::SYS_rt_tgsigqueueinfo, [pid, tid, sig, info, 0, 0]),
            false => syscall(libc::SYS_rt_sigqueueinfo, [pid, sig, info, 0, 0, 0]),
        }
    };
}

helper! {
    /// 109 `send_signal(sig)`: to the process.
    fn send_signal(run, sig) { queue(sig, 0) }
}

helper! {
    /// 117 `send_signal_thread(sig)`: to the thread.
    fn send_signal_thread(run, sig) { queue(sig, TO_THREAD) }
}
