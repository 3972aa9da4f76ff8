//! A tool's side: finds the holder, or starts it.

use super::{LOCK, SUFFIX};
use crate::tool;
use bpftime_abi::config;
use bpftime_shm::session::dir;
use bpftime_shm::session::inspect::{self, Kind, Reply, Request};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long an answer may take: a link that is taken over has to be in force in every process first.
const LIMIT: Duration = Duration::from_secs(10);

/// Has an object kept under `path`, which is made.
pub fn pin(kind: Kind, id: u32, path: &Path, fd: BorrowedFd) -> Result<(), Errno> {
    let dir = dir::own().map_err(|_| Errno::ACCESS)?;
    // Until the answer is there: the holder does not end meanwhile.
    let _lock = lock(&dir)?;
    let request = Request::Pin(kind, id, path.as_os_str().as_bytes().to_vec());
    // The others it opens itself, with rights of its own.
    let fd = (kind == Kind::Link).then_some(fd);
    let answer = match ask(&dir, &request, fd) {
        Err(Errno::NOENT) => start(&dir).and_then(|()| ask(&dir, &request, fd))?,
        answer => answer?,
    };
    match answer.0 {
        Reply::Done => Ok(()),
        Reply::Refused(errno) => Err(Errno::from_raw_os_error(errno)),
        _ => Err(Errno::PROTO),
    }
}

/// What is kept for the file with this identity; `ENOENT` when nothing is.
pub fn pinned((dev, ino): (u64, u64)) -> Result<(Kind, u32, Option<OwnedFd>), Errno> {
    let dir = dir::own().map_err(|_| Errno::ACCESS)?;
    match ask(&dir, &Request::Pinned(dev, ino), None)? {
        (Reply::Pinned(kind, id), fd) => Ok((kind, id, fd)),
        (Reply::Refused(errno), _) => Err(Errno::from_raw_os_error(errno)),
        _ => Err(Errno::PROTO),
    }
}

/// Asks the holder; `ENOENT` when none runs. What a killed one left, or one that dies while it is asked, is removed.
fn ask(dir: &Path, request: &Request, fd: Option<BorrowedFd>) -> Result<(Reply, Option<OwnedFd>), Errno> {
    for socket in sockets(dir) {
        match inspect::ask(&socket, request.clone(), fd, Some(LIMIT)) {
            Err(Errno::CONNREFUSED | Errno::CONNRESET | Errno::PIPE) => drop(std::fs::remove_file(&socket)),
            answer => return answer,
        }
    }
    Err(Errno::NOENT)
}

fn sockets(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    entries.filter(|p| p.as_os_str().as_bytes().ends_with(SUFFIX.as_bytes())).collect()
}

fn lock(dir: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(dir.join(LOCK), flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Starts a holder and waits until it answers.
///
/// # Errors
/// `EOPNOTSUPP` when bpftime-agent is not installed beside the library, `EIO` when it does not start.
fn start(dir: &Path) -> Result<(), Errno> {
    let (Some(program), Some(library)) = (tool::injector(), tool::own_path()) else {
        tracing::warn!("bpftime-agent is not installed beside the library: nothing can be pinned");
        return Err(Errno::OPNOTSUPP);
    };
    let mut cmd = Command::new(program);
    cmd.arg("hold").env("LD_PRELOAD", library).env(config::RUNTIME_DIR, dir).env_remove(config::FAKE_ROOT);
    let out = cmd.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output();
    let out = out.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    if out.status.success() {
        return Ok(());
    }
    tracing::warn!(reason = %String::from_utf8_lossy(&out.stderr).trim_end(), "nothing can be pinned");
    Err(Errno::IO)
}
