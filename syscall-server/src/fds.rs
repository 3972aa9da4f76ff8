//! Descriptors: ours beside the tool's, and which numbers of the tool's are ours.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::sync::atomic::{AtomicU64, Ordering};

/// Our own descriptors are moved up here, away from the numbers a tool counts on (0, 1, 2, "the next is 3").
const HIDDEN_FROM: RawFd = 700;

/// A second descriptor for the same file, out of the tool's way where the limit allows.
pub fn hidden(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(&fd, HIDDEN_FROM).or_else(|_| rustix::io::fcntl_dupfd_cloexec(&fd, 3))
}

/// `BPF_F_RDONLY` and `BPF_F_WRONLY`.
pub const ACCESS_FLAGS: u32 = 1 << 3 | 1 << 4;

/// What bpf(2) may do with a map through a descriptor, which is what read(2) and write(2) might.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Look at it and change it.
    Both,
    /// Look at it.
    Read,
    /// Change it.
    Write,
}

impl Access {
    /// As flags ask for; `EINVAL` for both (`bpf_get_file_flag`).
    pub fn from_flags(flags: u32) -> Result<Self, Errno> {
        match flags & ACCESS_FLAGS {
            0 => Ok(Self::Both),
            0x8 => Ok(Self::Read),
            0x10 => Ok(Self::Write),
            _ => Err(Errno::INVAL),
        }
    }

    /// That of a descriptor; `EBADF` when it is closed.
    pub fn of(fd: BorrowedFd) -> Result<Self, Errno> {
        let mode = rustix::fs::fcntl_getfl(fd).map_err(|_| Errno::BADF)? & OFlags::RWMODE;
        Ok(match mode {
            OFlags::RDONLY => Self::Read,
            OFlags::WRONLY => Self::Write,
            _ => Self::Both,
        })
    }

    /// Whether it allows all that `needed` does.
    pub fn covers(self, needed: Self) -> bool {
        self == Self::Both || self == needed
    }
}

/// Another descriptor of a memory file, with this access. A socket, whose file has but one, is the same for all.
pub fn open_as(fd: impl AsFd, access: Access) -> Result<OwnedFd, Errno> {
    let flags = match access {
        Access::Both => return rustix::io::fcntl_dupfd_cloexec(&fd, 3),
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::WRONLY,
    };
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    match rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NXIO) => rustix::io::fcntl_dupfd_cloexec(&fd, 3),
        opened => opened,
    }
}

/// What identifies an open file whatever number it has: device and inode.
pub type FileId = (u64, u64);

/// The identity of the file behind `fd`.
pub fn identity(fd: BorrowedFd) -> Result<FileId, Errno> {
    let st = rustix::fs::fstat(fd)?;
    Ok((st.st_dev, st.st_ino))
}

/// A pair of connected descriptors: the tool waits on the first and its closing is seen at the second. There is nothing to
/// read, which a tool that tries is told at once.
pub fn event_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (tool, ours) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let ours = hidden(&ours)?;
    Ok((tool, ours))
}

/// Makes the other end readable. Full is as good as sent.
pub fn signal(ours: &OwnedFd) {
    let _ = rustix::net::send(ours, b"!", SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

/// Makes the other end unwritable, or writable again: fills what we can take, or takes it.
///
/// A socket is writable while less than a quarter of its buffer is on its way.
pub fn set_full(tool: BorrowedFd, ours: &OwnedFd, full: bool) {
    let mut bytes = [0u8; 4096];
    while full && rustix::net::send(tool, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok() {}
    while !full && rustix::net::recv(ours, &mut bytes, RecvFlags::DONTWAIT).is_ok_and(|(_, n)| n != 0) {}
}

/// Takes what [`signal`] sent back off, from our end's peer being unknown: sends are few, so one read is enough.
pub fn drain(tool: BorrowedFd) {
    let mut buf = [0u8; 64];
    let _ = rustix::net::recv(tool, &mut buf, RecvFlags::DONTWAIT);
}

/// Numbers that were handed to the tool as objects whose closing must be looked at.
static WATCHED: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

/// Hands `fd` to the tool, with or without close-on-exec.
pub fn give(fd: OwnedFd) -> i64 {
    fd.into_raw_fd() as i64
}

/// Remembers that closing this number detaches something.
pub fn watch(fd: &OwnedFd) {
    let n = fd.as_raw_fd() as usize;
    if let Some(word) = WATCHED.get(n / 64) {
        word.fetch_or(1 << (n % 64), Ordering::Relaxed);
    }
}

/// Whether closing number `fd` detaches something; forgets it.
pub fn unwatch(fd: RawFd) -> bool {
    let n = fd as usize;
    let Some(word) = WATCHED.get(n / 64).filter(|_| fd >= 0) else { return false };
    let bit = 1 << (n % 64);
    word.load(Ordering::Relaxed) & bit != 0 && word.fetch_and(!bit, Ordering::Relaxed) & bit != 0
}

/// A duplicate of one of the tool's descriptors of this file, where it has one.
pub fn another(file: FileId) -> Option<OwnedFd> {
    let numbers = std::fs::read_dir("/proc/self/fd").ok()?.flatten();
    let numbers = numbers.filter_map(|e| e.file_name().to_str()?.parse().ok());
    let fd = numbers.filter_map(|n| borrow(n).ok()).find(|fd| identity(*fd) == Ok(file))?;
    rustix::io::fcntl_dupfd_cloexec(fd, 3).ok()
}

/// Borrows a number the tool gave; `EBADF` when it is not open.
pub fn borrow(fd: RawFd) -> Result<BorrowedFd<'static>, Errno> {
    if fd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: only used for the duration of one call of the tool, which vouches for the number.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}
