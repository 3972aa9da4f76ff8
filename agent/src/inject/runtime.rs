//! The target's C library and dynamic loader: what to call, and where a call would be dangerous.

use super::image::{self, Function, Image};
use super::procfs::{Mapping, Memory};
use super::stub;

/// dlfcn.h, the same in glibc and musl.
const RTLD_NOW: u64 = 2;
/// glibc's __RTLD_DLOPEN, which `__libc_dlopen_mode` wants beside the mode.
const GLIBC_RTLD_DLOPEN: u64 = 0x8000_0000;

/// Exported functions that hold locks or have half-changed state while they run, and that dlopen or thread
/// creation needs.
const NOT_REENTRANT: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "free",
    "memalign",
    "aligned_alloc",
    "posix_memalign",
    "valloc",
    "malloc_trim",
    "mallinfo",
    "mallinfo2",
    "fork",
    "_Fork",
    "vfork",
    "pthread_create",
    "pthread_exit",
    "dlopen",
    "dlmopen",
    "dlclose",
    "dl_iterate_phdr",
    "setenv",
    "putenv",
    "unsetenv",
    "clearenv",
    "__cxa_atexit",
    "__cxa_finalize",
];

/// Where to find what in the target.
#[derive(Debug)]
pub(super) struct Runtime {
    pub(super) dlopen: u64,
    pub(super) dlopen_mode: u64,
    pub(super) dlsym: u64,
    pub(super) dlerror: Option<u64>,
    pub(super) errno_location: Option<u64>,
    /// Address of a syscall instruction.
    pub(super) syscall_insn: u64,
    pub(super) text: Text,
    /// Where the stub can lie without a mapping of its own.
    pub(super) padding: Option<u64>,
}

/// Executable ranges by owner, each sorted by nothing: they are few.
#[derive(Debug, Default)]
pub(super) struct Text {
    pub(super) libc: Vec<(u64, u64)>,
    /// Empty with musl, whose loader is its libc.
    pub(super) loader: Vec<(u64, u64)>,
    /// An allocator that replaces libc's.
    pub(super) allocator: Vec<(u64, u64)>,
    pub(super) not_reentrant: Vec<(u64, u64)>,
    pub(super) any: Vec<(u64, u64)>,
}

/// Is the address in one of the ranges?
pub(super) fn within(ranges: &[(u64, u64)], addr: u64) -> bool {
    ranges.iter().any(|&(start, end)| (start..end).contains(&addr))
}

/// A file name of a C library or, before glibc 2.34, of its dlopen part.
fn rank(name: &str) -> Option<u8> {
    const LIBC: [&str; 5] = ["libc.so", "libc-2.", "libc-3.", "ld-musl-", "libc.musl-"];
    if LIBC.iter().any(|p| name.starts_with(p)) {
        Some(0)
    } else if name.starts_with("libdl.so") || name.starts_with("libdl-") {
        Some(1)
    } else {
        None
    }
}

/// Room behind the code of a mapped file.
fn padding(mem: &Memory, maps: &[Mapping]) -> Option<u64> {
    let executable = |at: u64| maps.iter().any(|m| m.executable && (m.start..m.end).contains(&at));
    image::bases(maps)
        .filter_map(|m| Image::at(mem, m.start)?.padding(stub::LEN as u64))
        .find(|&at| executable(at))
}

/// Is this the file name of a C library that can load others?
pub(super) fn is_libc(name: &str) -> bool {
    rank(name) == Some(0)
}

impl Runtime {
    /// Looks through the C libraries that are mapped. None when nothing there can load a library.
    pub(super) fn discover(mem: &Memory, maps: &[Mapping]) -> Option<Self> {
        let mut ranked: Vec<_> = image::bases(maps)
            .filter_map(|m| Some((rank(m.base_name())?, Image::at(mem, m.start)?)))
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let images: Vec<Image> = ranked.into_iter().map(|(_, image)| image).collect();
        let anywhere = |name: &str| images.iter().find_map(|i| i.function(name));
        let pair = |open: &str, sym: &str| {
            images.iter().find_map(|i| Some((i.function(open)?.addr, i.function(sym)?.addr)))
        };
        let (dlopen, dlsym, extra) = pair("dlopen", "dlsym")
            .map(|(o, s)| (o, s, 0))
            .or_else(|| pair("__libc_dlopen_mode", "__libc_dlsym").map(|(o, s)| (o, s, GLIBC_RTLD_DLOPEN)))?;
        Some(Self {
            dlopen,
            dlopen_mode: RTLD_NOW | extra,
            dlsym,
            dlerror: if extra == 0 { anywhere("dlerror").map(|f| f.addr) } else { None },
            errno_location: anywhere("__errno_location").map(|f| f.addr),
            syscall_insn: ["getpid", "getppid", "getuid"]
                .iter()
                .filter_map(|n| anywhere(n))
                .find_map(|f| syscall_in(mem, f))?,
            text: Text::of(mem, maps),
            padding: padding(mem, maps),
        })
    }
}

impl Text {
    fn of(mem: &Memory, maps: &[Mapping]) -> Self {
        let mut text = Self::default();
        for m in maps.iter().filter(|m| m.executable) {
            let (name, range) = (m.base_name(), (m.start, m.end));
            text.any.push(range);
            if is_libc(name) {
                text.libc.push(range);
            } else if name.starts_with("ld-linux") || name.starts_with("ld-2.") || name == "ld.so" {
                text.loader.push(range);
            } else if is_allocator(name) {
                text.allocator.push(range);
            }
        }
        for base in image::bases(maps).filter(|m| is_libc(m.base_name()) || is_program(maps, m)) {
            let Some(image) = Image::at(mem, base.start) else { continue };
            let ranges = NOT_REENTRANT.iter().filter_map(|n| image.function(n));
            text.not_reentrant.extend(ranges.map(|f| (f.addr, f.addr + f.size)));
        }
        text
    }

    /// musl: the allocator's inner functions carry no names, so all of libc counts as the allocator.
    pub(super) fn is_musl(&self) -> bool {
        self.loader.is_empty()
    }
}

fn is_allocator(name: &str) -> bool {
    ["jemalloc", "tcmalloc", "mimalloc", "snmalloc", "hoard"].iter().any(|a| name.contains(a))
}

/// A program may bring its own malloc; it is the first file mapped, or the one after nothing else.
fn is_program(maps: &[Mapping], m: &Mapping) -> bool {
    maps.iter().find(|x| x.file.1 != 0).is_some_and(|first| first.path == m.path)
}

fn syscall_in(mem: &Memory, f: Function) -> Option<u64> {
    let code = mem.read_some(f.addr, 64);
    let at = code.windows(2).position(|w| w == [0x0f, 0x05])?;
    Some(f.addr + at as u64)
}
