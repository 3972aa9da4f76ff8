//! A descriptor table of a thread's own.
//!
//! The agent's and the broker's threads live in somebody else's process. With a table of their own the process neither
//! sees nor inherits nor closes their descriptors, and they hold none of its files open.

use crate::arch::sys;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::Errno;

/// Leaves the process's descriptor table for one that holds /dev/null as 0, 1 and 2 (nothing a library prints may land
/// in a socket) and `keep`, whose new owners are returned in order.
pub fn make_private(keep: &[BorrowedFd]) -> Result<Vec<OwnedFd>, Errno> {
    const CLONE_FILES: usize = 0x400;
    const CLOSE_RANGE_UNSHARE: usize = 2;
    // close_range first: container sandboxes refuse unshare(2). The range holds no descriptor.
    // SAFETY: both change the descriptor table of this thread only.
    let mut r = unsafe {
        let none = u32::MAX as usize;
        sys::syscall(libc::SYS_close_range, [none, none, CLOSE_RANGE_UNSHARE, 0, 0, 0])
    };
    if r != 0 {
        // SAFETY: as above.
        r = unsafe { sys::syscall(libc::SYS_unshare, [CLONE_FILES, 0, 0, 0, 0, 0]) };
    }
    if r != 0 {
        return Err(Errno::from_raw_os_error(-r as i32));
    }
    let numbers: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    close_all_but(&numbers);
    // SAFETY: these numbers are open in this table and belong to nobody else in it.
    let kept = numbers.into_iter().map(|n| unsafe { OwnedFd::from_raw_fd(n) }).collect();
    fill_standard()?;
    Ok(kept)
}

/// Closes everything in this thread's own table but `keep`.
fn close_all_but(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep.iter().map(|n| *n as u32).collect();
    keep.sort_unstable();
    let mut from = 0;
    for n in keep {
        if n > from {
            close_range(from, n - 1);
        }
        from = n + 1;
    }
    close_range(from, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: the copies in this thread's table belong to nobody else.
    let r = unsafe { sys::syscall(libc::SYS_close_range, [first as usize, last as usize, 0, 0, 0, 0]) };
    if r == 0 {
        return;
    }
    // Before Linux 5.9: one by one, as far as /proc tells what is open.
    let open = std::fs::read_dir("/proc/thread-self/fd").into_iter().flatten().flatten();
    let open: Vec<u32> = open.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    for n in open.into_iter().filter(|n| (first..=last).contains(n)) {
        // SAFETY: as above.
        unsafe { sys::syscall(libc::SYS_close, [n as usize, 0, 0, 0, 0, 0]) };
    }
}

/// Puts /dev/null on 0, 1 and 2 where nothing is kept there. They stay open as long as the thread.
fn fill_standard() -> Result<(), Errno> {
    loop {
        let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        std::mem::forget(null);
    }
}
