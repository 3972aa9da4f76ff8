//! The agent library: where it is on our side, and how the target can open it.

use std::ffi::{CStr, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use object::read::elf::ElfFile64;
use object::{Object, ObjectSymbol};

use super::procfs::Mapping;
use super::{ENTRY, InjectError};

/// The file name that `scripts/build` gives it.
pub const LIBRARY: &str = "libbpftime-agent.so";
/// The file name that cargo gives it.
const CARGO_LIBRARY: &str = "libbpftime_agent_preload.so";

/// A library that is there and is an agent.
#[derive(Debug, Clone)]
pub(super) struct Library {
    pub(super) path: PathBuf,
    dev: u64,
    ino: u64,
}

impl Library {
    /// The library to inject: the one asked for, else the one installed with us.
    pub(super) fn find(asked: Option<&Path>) -> Result<Self, InjectError> {
        let path = match asked {
            Some(path) => path.to_owned(),
            None => locate(&[LIBRARY, CARGO_LIBRARY]).ok_or_else(|| InjectError::Library {
                path: LIBRARY.into(),
                why: "not found beside this program".into(),
                next: "give its place with --library or BPFTIME_LIB_DIR".into(),
            })?,
        };
        Self::check(&path)
    }

    fn check(path: &Path) -> Result<Self, InjectError> {
        let bad = |why: String, next: &str| InjectError::Library {
            path: path.to_owned(),
            why,
            next: next.to_owned(),
        };
        let open = |e: std::io::Error| bad(e.to_string(), "check the path given with --library");
        let path_abs = fs::canonicalize(path).map_err(open)?;
        let meta = fs::metadata(&path_abs).map_err(open)?;
        let bytes = fs::read(&path_abs).map_err(open)?;
        let rebuild = "build it with scripts/build";
        let elf = ElfFile64::<object::NativeEndian>::parse(&*bytes)
            .map_err(|e| bad(format!("not a 64-bit ELF file ({e})"), rebuild))?;
        if elf.architecture() != object::Architecture::X86_64 || elf.kind() != object::ObjectKind::Dynamic {
            return Err(bad("not a shared library for x86-64".into(), rebuild));
        }
        let entry = ENTRY.to_bytes();
        if !elf.dynamic_symbols().any(|s| s.is_definition() && s.name_bytes() == Ok(entry)) {
            return Err(bad(format!("does not export {}", ENTRY.to_string_lossy()), rebuild));
        }
        Ok(Self { path: path_abs, dev: meta.dev(), ino: meta.ino() })
    }

    /// True when the target opens the same file under the same path and may map code from it.
    pub(super) fn visible_to(&self, pid: i32) -> bool {
        let theirs = in_root_of(pid, &self.path);
        let same = fs::metadata(&theirs).is_ok_and(|m| (m.dev(), m.ino()) == (self.dev, self.ino));
        same && !rustix::fs::statvfs(&theirs)
            .is_ok_and(|fs| fs.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC))
    }

    /// The mapping of this library, or of an agent by another path, in the target.
    pub(super) fn mapped<'m>(&self, maps: &'m [Mapping]) -> Option<&'m Mapping> {
        let dev = rustix::fs::major(self.dev) as u64;
        let file = (format!("{dev:02x}:{:02x}", rustix::fs::minor(self.dev)), self.ino);
        let own_name = self.path.file_name().unwrap_or(OsStr::new(LIBRARY));
        maps.iter().filter(|m| m.offset == 0).find(|m| {
            let name = m.base_name();
            let name = name.strip_prefix("memfd:").unwrap_or(name);
            m.file == file || name == LIBRARY || name == CARGO_LIBRARY || OsStr::new(name) == own_name
        })
    }

    /// The file's content, for a target that cannot see the file.
    pub(super) fn bytes(&self) -> Result<Vec<u8>, InjectError> {
        fs::read(&self.path).map_err(|e| InjectError::os("reading the library", e))
    }

    /// File name for a memfd.
    pub(super) fn name(&self) -> Vec<u8> {
        self.path.file_name().map_or_else(|| LIBRARY.into(), |n| n.as_bytes().to_vec())
    }
}

fn in_root_of(pid: i32, path: &Path) -> PathBuf {
    Path::new(&format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap_or(path))
}

/// Looks for a file of ours: BPFTIME_LIB_DIR, then the directory of the object that this code is in (a
/// preloaded library knows its own place, a program its own), then its ../lib.
#[must_use]
pub fn locate(names: &[&str]) -> Option<PathBuf> {
    let own = own_dir();
    let dirs = [
        std::env::var_os("BPFTIME_LIB_DIR").map(PathBuf::from),
        own.as_ref().map(|d| d.join("../lib")),
        own.clone(),
        own.map(|d| d.join("../lib/bpftime")),
    ];
    let candidates = dirs.into_iter().flatten().flat_map(|d| names.iter().map(move |n| d.join(n)));
    candidates.filter(|p| p.is_file()).find_map(|p| fs::canonicalize(p).ok())
}

fn own_dir() -> Option<PathBuf> {
    // SAFETY: Dl_info is pointers only, for which zeroes are a value.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked for; `info` is live.
    if unsafe { libc::dladdr(own_dir as *const libc::c_void, &raw mut info) } != 0
        && !info.dli_fname.is_null()
    {
        // SAFETY: dladdr gave a string that lives as long as the object, which is this one.
        let name = unsafe { CStr::from_ptr(info.dli_fname) };
        let path = Path::new(OsStr::from_bytes(name.to_bytes()));
        // The main program is named as it was called: "bpftime-agent" may come from PATH.
        if path.is_absolute() {
            return fs::canonicalize(path).ok()?.parent().map(Path::to_owned);
        }
        if name.to_bytes().windows(3).any(|w| w == b".so") {
            return fs::canonicalize(path).ok()?.parent().map(Path::to_owned);
        }
    }
    std::env::current_exe().ok()?.parent().map(Path::to_owned)
}
