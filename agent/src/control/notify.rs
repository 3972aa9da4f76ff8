//! Sleeping without being woken by the process's own signals.
//!
//! poll(2) on a signalfd wakes its thread for each signal that is sent to the process, whatever it is and for whomever: 200
//! times a second while a thread is sampled, and for each SIGURG of a Go program. So descriptors tell the control thread by
//! signal that there is something to read (O_ASYNC), the same signal that wakes it for all else, and it sleeps in
//! sigtimedwait(2), which only signals for this thread end.

use super::r#loop::WAKE_SIGNAL;
use crate::arch::sys;
use rustix::fd::{AsFd, AsRawFd};
use rustix::time::Timespec;

const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;
const F_OWNER_TID: i32 = 0;

/// `struct f_owner_ex`.
#[repr(C)]
struct Owner {
    kind: i32,
    pid: i32,
}

fn fcntl(fd: &impl AsFd, cmd: i32, arg: usize) -> isize {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the callers' arguments are numbers, or an `Owner` that outlives the call.
    unsafe { sys::syscall(libc::SYS_fcntl, [fd as usize, cmd as usize, arg, 0, 0, 0]) }
}

/// Has the calling thread get [`WAKE_SIGNAL`] when there is something to read from `fd`, from now on; false if that
/// cannot be.
pub fn by_signal(fd: &impl AsFd) -> bool {
    let owner = Owner { kind: F_OWNER_TID, pid: sys::gettid() };
    let flags = fcntl(fd, libc::F_GETFL, 0);
    // Each time: the kernel sends signals as whoever the thread was when it said this, and setuid(2) makes it another. The C
    // library's interrupts the wait.
    flags >= 0
        && fcntl(fd, F_SETOWN_EX, &raw const owner as usize) == 0
        && (flags as i32 & libc::O_ASYNC != 0
            || fcntl(fd, F_SETSIG, WAKE_SIGNAL as usize) == 0
                && fcntl(fd, libc::F_SETFL, flags as usize | libc::O_ASYNC as usize) == 0)
}

/// Waits for [`WAKE_SIGNAL`], which the thread blocks, and takes it; false when `limit` has passed, `None` when the kernel
/// does not let us.
pub fn wait(limit: Option<&Timespec>) -> Option<bool> {
    let set: u64 = 1 << (WAKE_SIGNAL - 1);
    let limit = limit.map(|limit| [limit.tv_sec, limit.tv_nsec]);
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let args = [&raw const set as usize, 0, limit as usize, 8, 0, 0];
    // SAFETY: a set of eight bytes, as the kernel has it, no siginfo, and null or a timespec.
    match unsafe { sys::syscall(libc::SYS_rt_sigtimedwait, args) } as i32 {
        WAKE_SIGNAL => Some(true),
        e if e == -libc::EAGAIN => Some(false),
        e if e == -libc::EINTR => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

    const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    const LATE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

    #[test]
    fn what_arrives_ends_the_wait_and_nothing_else_does() {
        let block: u64 = 1 << (WAKE_SIGNAL - 1);
        let args = [libc::SIG_BLOCK as usize, &raw const block as usize, 0, 8, 0, 0];
        // SAFETY: a set of eight bytes; of this thread only.
        assert_eq!(unsafe { sys::syscall(libc::SYS_rt_sigprocmask, args) }, 0);
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (here, there) = socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        assert!(by_signal(&here) && by_signal(&here));
        assert_eq!(wait(Some(&SOON)), Some(false));
        for _ in 0..2 {
            send(&there, b"x", SendFlags::empty()).unwrap();
            assert_eq!(wait(Some(&LATE)), Some(true));
            assert_eq!(wait(Some(&SOON)), Some(false));
        }
        drop(there);
        assert_eq!(wait(Some(&LATE)), Some(true));
    }
}
