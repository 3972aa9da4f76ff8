//! The runtime directory where sessions are found.

use bpftime_abi::config;
use rustix::fs::{self, Mode};
use rustix::io::Errno;
use rustix::process::getuid;
use std::path::{Path, PathBuf};

/// Suffix of a session's socket file.
pub const SOCKET_SUFFIX: &str = ".session";

/// Why a directory cannot hold session sockets.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// The path is not a directory, or a link.
    #[error("runtime directory {0} is not a directory")]
    NotADirectory(PathBuf),
    /// Somebody else owns it.
    #[error("runtime directory {path} belongs to uid {owner}, not to uid {me}")]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The uid of this process.
        me: u32,
    },
    /// Group or others may enter or write.
    #[error("runtime directory {path} has mode {mode:o}, must not be accessible to group or others")]
    Mode {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A system call failed.
    #[error("runtime directory {path}: {errno}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },
}

impl DirError {
    /// What a system call that needs the directory fails with.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Io { errno, .. } => *errno,
            Self::NotADirectory(_) | Self::Owner { .. } | Self::Mode { .. } => Errno::ACCESS,
        }
    }
}

/// The directories a process of this user looks for sessions in, most specific first. The first one is where a tool
/// started with the same environment puts its own.
pub fn candidates() -> Vec<PathBuf> {
    if let Some(dir) = non_empty(config::RUNTIME_DIR) {
        return vec![dir.into()];
    }
    let mut dirs = Vec::with_capacity(2);
    if let Some(xdg) = non_empty("XDG_RUNTIME_DIR") {
        dirs.push(Path::new(&xdg).join("bpftime"));
    }
    dirs.push(PathBuf::from(format!("/tmp/bpftime-{}", getuid().as_raw())));
    dirs
}

fn non_empty(var: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(var).filter(|v| !v.is_empty())
}

/// Creates `path` with mode 0700 when it is missing, and checks owner and mode.
pub fn ensure(path: &Path) -> Result<(), DirError> {
    match fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => check(path),
        Err(errno) => Err(DirError::Io { path: path.into(), errno }),
    }
}

/// Checks that `path` is a directory that only this user can enter.
pub fn check(path: &Path) -> Result<(), DirError> {
    let st = fs::lstat(path).map_err(|errno| DirError::Io { path: path.into(), errno })?;
    if fs::FileType::from_raw_mode(st.st_mode) != fs::FileType::Directory {
        return Err(DirError::NotADirectory(path.into()));
    }
    let me = getuid().as_raw();
    if st.st_uid != me {
        return Err(DirError::Owner { path: path.into(), owner: st.st_uid, me });
    }
    match st.st_mode & 0o077 {
        0 => Ok(()),
        _ => Err(DirError::Mode { path: path.into(), mode: st.st_mode & 0o777 }),
    }
}

/// The first candidate that exists or can be made: where this tool puts its socket.
pub fn own() -> Result<PathBuf, DirError> {
    let mut last = None;
    for dir in candidates() {
        match ensure(&dir) {
            Ok(()) => return Ok(dir),
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or(DirError::NotADirectory(PathBuf::new())))
}

/// The session sockets in `dir`; none when the directory is missing or not ours.
pub fn sockets(dir: &Path) -> Vec<PathBuf> {
    if check(dir).is_err() {
        return Vec::new();
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| is_socket_name(p)).collect()
}

/// Whether a file name is that of a session socket.
pub fn is_socket_name(path: &Path) -> bool {
    path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.ends_with(SOCKET_SUFFIX))
}
