//! Kernel files that tools read and an ordinary user, or a machine without tracefs, does not have.
//!
//! The real file comes first: only when opening it fails is ours served, as a sealed memfd with the same bytes.

use bpftime_shm::session::sealed;
use rustix::fd::{IntoRawFd, OwnedFd};
use std::ffi::CStr;

/// Where tracefs may be mounted.
const TRACEFS: &[&str] = &["/sys/kernel/tracing/", "/sys/kernel/debug/tracing/"];

/// One served file: its path below tracefs, and its contents.
struct Served {
    path: &'static str,
    contents: fn() -> Vec<u8>,
}

/// libbcc looks for events of its own in these at detach; ours are never in them.
const FILES: &[Served] = &[
    Served { path: "uprobe_events", contents: Vec::new },
    Served { path: "kprobe_events", contents: Vec::new },
];

fn contents_of(path: &str) -> Option<Vec<u8>> {
    let below = TRACEFS.iter().find_map(|root| path.strip_prefix(root))?;
    FILES.iter().find(|f| f.path == below).map(|f| (f.contents)())
}

/// A descriptor with the contents of `path`, if it is one of ours and is to be read.
pub fn open(path: &CStr, flags: i32) -> Option<i32> {
    if flags & libc::O_ACCMODE == libc::O_WRONLY {
        return None;
    }
    let bytes = contents_of(path.to_str().ok()?)?;
    let fd: OwnedFd = sealed::create("bpftime-file", &bytes).ok()?;
    if flags & libc::O_CLOEXEC == 0 {
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).ok()?;
    }
    Some(fd.into_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_ours_below_tracefs_are_served() {
        assert!(contents_of("/sys/kernel/tracing/uprobe_events").is_some());
        assert!(contents_of("/sys/kernel/debug/tracing/kprobe_events").is_some());
        assert!(contents_of("/sys/kernel/tracing/trace").is_none());
        assert!(contents_of("/etc/passwd").is_none());
    }

    #[test]
    fn a_file_to_be_written_is_not_served() {
        assert!(open(c"/sys/kernel/tracing/uprobe_events", libc::O_WRONLY).is_none());
    }
}
