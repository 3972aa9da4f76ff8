//! System calls without libc: no errno, no cancellation point, nothing a host could have interposed.

use std::arch::asm;

/// Makes a system call and returns the kernel's raw result (`-errno` on failure).
///
/// # Safety
/// Whatever the call does with its arguments must be sound.
#[inline(always)]
pub unsafe fn syscall(nr: i64, a: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: the x86-64 system call convention clobbers rcx and r11 only; the caller vouches for the arguments.
    unsafe {
        asm!("syscall", inlateout("rax") nr as isize => ret, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
             in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    ret
}

/// The calling thread's id.
pub fn gettid() -> i32 {
    // SAFETY: takes no pointer and cannot fail.
    unsafe { syscall(libc::SYS_gettid, [0; 6]) as i32 }
}

/// The process id, from the kernel (libc would cache nothing either, but could be interposed).
pub fn getpid() -> i32 {
    // SAFETY: takes no pointer and cannot fail.
    unsafe { syscall(libc::SYS_getpid, [0; 6]) as i32 }
}

/// True when `tid` is a thread of process `pid`.
pub fn thread_exists(pid: i32, tid: i32) -> bool {
    // SAFETY: signal 0 only checks.
    unsafe { syscall(libc::SYS_tgkill, [pid as usize, tid as usize, 0, 0, 0, 0]) == 0 }
}

/// Fresh zeroed private memory, or null.
pub fn map_zeroed(len: usize) -> *mut u8 {
    let prot = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
    // SAFETY: a new anonymous mapping touches nothing that exists.
    let p = unsafe { syscall(libc::SYS_mmap, [0, len, prot, flags, usize::MAX, 0]) };
    if p < 0 && p > -4096 { std::ptr::null_mut() } else { p as *mut u8 }
}

/// The calling thread's blocked signals, bit `sig - 1` each; `None` if the kernel will not say.
pub fn blocked_signals() -> Option<u64> {
    let mut set = 0u64;
    // SAFETY: a null new set changes nothing; `set` is the 8 bytes the kernel writes.
    let rc = unsafe { syscall(libc::SYS_rt_sigprocmask, [0, 0, &raw mut set as usize, 8, 0, 0]) };
    (rc == 0).then_some(set)
}
