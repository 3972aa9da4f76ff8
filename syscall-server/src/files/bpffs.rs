//! `/sys/fs/bpf` as tools see it: a directory of ours, in the runtime directory.
//!
//! The kernel's own would take no objects of ours, and an ordinary user has none. A pin is an empty file; what it stands
//! for is with the holder ([`crate::holder`]), by the file's inode, so that renaming and linking work as anywhere.

use crate::fds;
use bpftime_shm::session::dir;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Where tools look.
pub const MOUNT: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC`.
pub const MAGIC: i64 = 0xcafe_4a11;
/// Our directory in the runtime directory.
pub const NAME: &str = "bpffs";

/// The directory, made when it is missing; `None` without a runtime directory.
pub fn root() -> Option<PathBuf> {
    let root = dir::own().ok()?.join(NAME);
    dir::ensure(&root).ok().map(|()| root)
}

/// What stands behind [`MOUNT`] in a path of this directory: empty, or with the slash in front.
fn below(path: &[u8]) -> Option<&[u8]> {
    path.strip_prefix(MOUNT.as_bytes()).filter(|rest| rest.is_empty() || rest[0] == b'/')
}

fn climbs(rest: &[u8]) -> bool {
    rest.split(|b| *b == b'/').any(|name| name == b"..")
}

/// Whether a path leads to what is ours here.
pub fn is(path: &CStr) -> bool {
    below(path.to_bytes()).is_some_and(|rest| !climbs(rest))
}

/// The file of ours that a path means.
pub fn stand_in(path: &CStr) -> Option<CString> {
    let rest = below(path.to_bytes()).filter(|rest| !climbs(rest))?;
    let mut full = root()?.into_os_string().into_vec();
    full.extend_from_slice(rest);
    CString::new(full).ok()
}

/// The path below [`MOUNT`] of a file of ours.
pub fn shown(root: &Path, path: &Path) -> Option<PathBuf> {
    path.strip_prefix(root).ok().map(|rest| Path::new(MOUNT).join(rest))
}

/// Whether statfs(2) of a path is to say that it is a BPF file system, and of which file then.
pub fn is_below_ours(path: &CStr) -> Option<CString> {
    let ours = || {
        let path = Path::new(OsStr::from_bytes(path.to_bytes()));
        (path.is_absolute() && path.starts_with(root()?)).then(|| path.as_os_str().as_bytes().to_vec())
    };
    let looks = path.to_bytes().windows(NAME.len()).any(|w| w == NAME.as_bytes());
    stand_in(path).or_else(|| looks.then(ours).flatten().and_then(|p| CString::new(p).ok()))
}

/// What a path given to bpf(2) means.
pub enum Place {
    /// In our directory, whether it is there or not.
    Ours(PathBuf),
    /// Anywhere else.
    Elsewhere(PathBuf),
}

/// Where `path` leads, from directory `at` if it is relative.
///
/// # Errors
/// As the kernel's look-up: ENOENT for an empty path, EBADF and ENOTDIR for a descriptor that is no directory, EPERM for a
/// name with a dot below ours.
pub fn place(path: &[u8], at: Option<i32>) -> Result<Place, Errno> {
    if path.is_empty() {
        return Err(Errno::NOENT);
    }
    let full = match path[0] {
        b'/' => PathBuf::from(OsStr::from_bytes(path)),
        _ => base(at)?.join(OsStr::from_bytes(path)),
    };
    let bytes = full.as_os_str().as_bytes();
    let root = root().ok_or(Errno::ACCESS)?;
    let rest = match below(bytes) {
        Some(rest) => Some(rest),
        None => bytes.strip_prefix(root.as_os_str().as_bytes()).filter(|r| r.is_empty() || r[0] == b'/'),
    };
    match rest {
        Some(rest) if rest.contains(&b'.') => Err(Errno::PERM),
        Some(rest) => {
            let mut ours = root.into_os_string().into_vec();
            ours.extend_from_slice(rest);
            Ok(Place::Ours(PathBuf::from(std::ffi::OsString::from_vec(ours))))
        }
        None => Ok(Place::Elsewhere(full)),
    }
}

fn base(at: Option<i32>) -> Result<PathBuf, Errno> {
    let Some(fd) = at else { return std::env::current_dir().map_err(|_| Errno::NOENT) };
    let st = rustix::fs::fstat(fds::borrow(fd)?)?;
    if FileType::from_raw_mode(st.st_mode) != FileType::Directory {
        return Err(Errno::NOTDIR);
    }
    std::fs::read_link(format!("/proc/self/fd/{fd}")).map_err(|_| Errno::BADF)
}

/// Device and inode of the pin at `path`; `EACCES` for anything that is no pin, as the kernel has it.
pub fn pin(path: &Path) -> Result<(u64, u64), Errno> {
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let st = rustix::fs::statat(&fd, c"", AtFlags::EMPTY_PATH)?;
    match FileType::from_raw_mode(st.st_mode) {
        FileType::RegularFile => Ok((st.st_dev, st.st_ino)),
        _ => Err(Errno::ACCESS),
    }
}

/// What BPF_OBJ_PIN says of a path outside of ours: what is there is in the way, the directory is none that takes pins.
pub fn refuse_pin(path: &Path) -> Errno {
    let trailing = path.as_os_str().as_bytes().ends_with(b"/");
    match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Errno::EXIST,
        Err(Errno::NOENT) if !trailing && path.parent().is_some_and(Path::is_dir) => Errno::PERM,
        Err(errno) => errno,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_directory_and_what_is_below_is_ours() {
        for ours in [c"/sys/fs/bpf", c"/sys/fs/bpf/", c"/sys/fs/bpf/a/b"] {
            assert!(is(ours), "{ours:?}");
        }
        for other in [c"/sys/fs/bpfx", c"/sys/fs", c"/sys/fs/bpf/../x", c"sys/fs/bpf"] {
            assert!(!is(other), "{other:?}");
        }
    }

    #[test]
    fn names_come_back_as_the_tool_knows_them() {
        let (root, path) = (Path::new("/run/b/bpffs"), Path::new("/run/b/bpffs/d/m"));
        assert_eq!(shown(root, path), Some("/sys/fs/bpf/d/m".into()));
        assert_eq!(shown(root, Path::new("/run/b")), None);
    }
}
