//! The kernel's trace_pipe as a tool opens it: a pipe that a thread of ours fills with what the tool's programs print.

use super::tracefs::ROOTS;
use crate::{broker, fds};
use bpftime_agent::run::enter::Session;
use bpftime_shm::session::text::{Next, Patience};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{IntoRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use std::sync::Arc;
use std::time::Duration;

/// How often an idle thread looks whether its reader is still there.
const LOOK: Duration = Duration::from_secs(1);

/// Whether this is the file.
pub fn is(path: impl AsRef<[u8]>) -> bool {
    ROOTS.iter().any(|root| path.as_ref().strip_prefix(root.as_bytes()) == Some(b"trace_pipe"))
}

/// Opens it for reading; the descriptor.
pub fn open(flags: i32) -> Option<i32> {
    if flags & libc::O_ACCMODE != libc::O_RDONLY {
        return None;
    }
    start(flags).inspect_err(|errno| tracing::error!(%errno, "trace_pipe")).ok()
}

fn start(flags: i32) -> Result<i32, Errno> {
    let session = broker::session()?;
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    if flags & libc::O_NONBLOCK != 0 {
        rustix::fs::fcntl_setfl(&read, rustix::fs::OFlags::NONBLOCK)?;
    }
    if flags & libc::O_CLOEXEC == 0 {
        rustix::io::fcntl_setfd(&read, rustix::io::FdFlags::empty())?;
    }
    let write = fds::hidden(&write)?;
    let body = move || {
        std::mem::forget(bpftime_agent::hook::Mute::new());
        pump(&session, &write);
    };
    bpftime_agent::lifecycle::spawn_quiet("bpftime-text", body).map_err(|_| Errno::AGAIN)?;
    Ok(read.into_raw_fd())
}

/// Moves lines from the session to the pipe until nobody can read it any more.
fn pump(session: &Arc<Session>, write: &OwnedFd) {
    let (text, mut patience) = (session.page.text(), Patience::default());
    loop {
        let bytes = match text.next(&mut patience) {
            Next::Line(line) => line.to_bytes(),
            Next::Lost(n) => format!("CPU:0 [LOST {n} EVENTS]\n").into_bytes(),
            Next::Unfinished | Next::Empty => {
                text.doze(LOOK);
                if is_deserted(write) {
                    return;
                }
                continue;
            }
        };
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match rustix::io::write(write, rest) {
                Ok(n) => rest = &rest[n..],
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

fn is_deserted(write: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(write, PollFlags::empty())];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    let _ = rustix::event::poll(&mut fds, Some(&now));
    fds[0].revents().contains(PollFlags::ERR)
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_trace_pipe_below_tracefs_is_meant() {
        assert!(super::is("/sys/kernel/debug/tracing/trace_pipe"));
        assert!(super::is("/sys/kernel/tracing/trace_pipe"));
        assert!(!super::is("/sys/kernel/tracing/trace"));
        assert!(!super::is("/tmp/trace_pipe"));
    }
}
