//! Kernel files that tools read and an ordinary user, or a machine without tracefs, does not have.
//!
//! The real file comes first: only when opening it fails is ours served, as a sealed memfd.

pub(crate) mod tracefs;

use bpftime_shm::session::sealed;
use rustix::fd::IntoRawFd;
use std::ffi::CStr;

/// A descriptor with the contents of `path`, if it is one of ours and is to be read.
pub fn open(path: &CStr, flags: i32) -> Option<i32> {
    if flags & libc::O_ACCMODE == libc::O_WRONLY {
        return None;
    }
    let bytes = tracefs::contents(path.to_str().ok()?)?;
    let fd = sealed::create("bpftime-file", &bytes).ok()?;
    if flags & libc::O_CLOEXEC == 0 {
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).ok()?;
    }
    Some(fd.into_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_to_be_written_is_not_served() {
        assert!(open(c"/sys/kernel/tracing/uprobe_events", libc::O_WRONLY).is_none());
    }
}
