//! The functions behind our exports: the next definition in the process, found once at load.

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

macro_rules! real {
    ($($name:ident : fn($($arg:ident : $ty:ty),*) -> $ret:ty;)*) => {
        #[allow(non_upper_case_globals)]
        mod slot {
            use super::*;
            $(pub static $name: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());)*
        }

        /// Looks every function up.
        pub fn init() {
            $(slot::$name.store(next(concat!(stringify!($name), "\0")), Ordering::Relaxed);)*
        }

        $(
            /// The C library's function of this name.
            pub fn $name($($arg: $ty),*) -> $ret {
                let f = look_up(&slot::$name, concat!(stringify!($name), "\0"));
                if f.is_null() {
                    return missing();
                }
                // SAFETY: the symbol has this C prototype.
                let f: unsafe extern "C" fn($($ty),*) -> $ret = unsafe { std::mem::transmute(f) };
                // SAFETY: the arguments are the caller's own.
                unsafe { f($($arg),*) }
            }
        )*
    };
}

real! {
    syscall: fn(nr: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long;
    ioctl: fn(fd: c_int, request: u64, arg: usize) -> c_int;
    mmap: fn(addr: *mut c_void, len: usize, prot: c_int, flags: c_int, fd: c_int, off: i64) -> *mut c_void;
    epoll_wait: fn(ep: c_int, ev: *mut libc::epoll_event, n: c_int, timeout: c_int) -> c_int;
    epoll_pwait: fn(ep: c_int, ev: *mut libc::epoll_event, n: c_int, t: c_int, m: *const libc::sigset_t) -> c_int;
    poll: fn(fds: *mut libc::pollfd, n: libc::nfds_t, timeout: c_int) -> c_int;
    ppoll: fn(fds: *mut libc::pollfd, n: libc::nfds_t, t: *const libc::timespec, m: *const libc::sigset_t) -> c_int;
    select: fn(n: c_int, r: *mut libc::fd_set, w: *mut libc::fd_set, e: *mut libc::fd_set, t: *mut libc::timeval) -> c_int;
    pselect: fn(n: c_int, r: *mut libc::fd_set, w: *mut libc::fd_set, e: *mut libc::fd_set, t: *const libc::timespec, m: *const libc::sigset_t) -> c_int;
    close: fn(fd: c_int) -> c_int;
    open: fn(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int;
    openat: fn(dir: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int;
    fopen: fn(path: *const c_char, mode: *const c_char) -> *mut c_void;
    glob: fn(pattern: *const c_char, flags: c_int, failed: *mut c_void, found: *mut libc::glob_t) -> c_int;
    opendir: fn(path: *const c_char) -> *mut c_void;
    readdir: fn(dir: *mut c_void) -> *mut c_void;
    closedir: fn(dir: *mut c_void) -> c_int;
    rewinddir: fn(dir: *mut c_void) -> ();
    telldir: fn(dir: *mut c_void) -> c_long;
    seekdir: fn(dir: *mut c_void, at: c_long) -> ();
    dirfd: fn(dir: *mut c_void) -> c_int;
    scandir: fn(path: *const c_char, list: *mut c_void, filter: usize, order: usize) -> c_int;
    stat: fn(path: *const c_char, st: *mut libc::stat) -> c_int;
    lstat: fn(path: *const c_char, st: *mut libc::stat) -> c_int;
    fstatat: fn(dir: c_int, path: *const c_char, st: *mut libc::stat, flags: c_int) -> c_int;
    access: fn(path: *const c_char, mode: c_int) -> c_int;
    faccessat: fn(dir: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int;
    chdir: fn(path: *const c_char) -> c_int;
    mkdir: fn(path: *const c_char, mode: libc::mode_t) -> c_int;
    mkdirat: fn(dir: c_int, path: *const c_char, mode: libc::mode_t) -> c_int;
    rmdir: fn(path: *const c_char) -> c_int;
    unlink: fn(path: *const c_char) -> c_int;
    unlinkat: fn(dir: c_int, path: *const c_char, flags: c_int) -> c_int;
    remove: fn(path: *const c_char) -> c_int;
    chmod: fn(path: *const c_char, mode: libc::mode_t) -> c_int;
    rename: fn(from: *const c_char, to: *const c_char) -> c_int;
    renameat: fn(a: c_int, from: *const c_char, b: c_int, to: *const c_char) -> c_int;
    renameat2: fn(a: c_int, from: *const c_char, b: c_int, to: *const c_char, flags: u32) -> c_int;
    link: fn(from: *const c_char, to: *const c_char) -> c_int;
    linkat: fn(a: c_int, from: *const c_char, b: c_int, to: *const c_char, flags: c_int) -> c_int;
    statx: fn(dir: c_int, path: *const c_char, flags: c_int, mask: u32, out: *mut c_void) -> c_int;
    statfs: fn(path: *const c_char, out: *mut libc::statfs) -> c_int;
    mount: fn(s: *const c_char, t: *const c_char, kind: *const c_char, flags: u64, data: *const c_void) -> c_int;
    readlink: fn(path: *const c_char, buf: *mut c_char, len: usize) -> c_long;
    setmntent: fn(path: *const c_char, mode: *const c_char) -> *mut c_void;
    nftw: fn(dir: *const c_char, visitor: *const c_void, open: c_int, flags: c_int) -> c_int;
    geteuid: fn() -> libc::uid_t;
    setrlimit: fn(resource: c_int, limit: *const libc::rlimit) -> c_int;
    prlimit: fn(pid: libc::pid_t, resource: c_int, new: *const libc::rlimit, old: *mut libc::rlimit) -> c_int;
}

/// The function in `slot`. Other libraries' constructors may run, and call us, before ours does.
fn look_up(slot: &AtomicPtr<c_void>, name: &str) -> *mut c_void {
    let known = slot.load(Ordering::Relaxed);
    if !known.is_null() {
        return known;
    }
    let found = next(name);
    slot.store(found, Ordering::Relaxed);
    found
}

fn next(name: &str) -> *mut c_void {
    let Ok(name) = CStr::from_bytes_with_nul(name.as_bytes()) else { return std::ptr::null_mut() };
    // SAFETY: a terminated string; RTLD_NEXT searches behind this library.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
}

/// A C library without the function: nothing can have called us by that name through it.
fn missing<T: Missing>() -> T {
    set_errno(libc::ENOSYS);
    T::MISSING
}

/// The failure value of a C return type.
trait Missing {
    const MISSING: Self;
}

impl Missing for c_int {
    const MISSING: Self = -1;
}
impl Missing for u32 {
    const MISSING: Self = u32::MAX;
}
impl Missing for c_long {
    const MISSING: Self = -1;
}
impl Missing for () {
    const MISSING: Self = ();
}
impl Missing for *mut c_void {
    // What mmap returns when it fails; fopen, opendir and readdir, which return null, are in every C library.
    const MISSING: Self = usize::MAX as *mut c_void;
}

/// The tool's errno.
pub fn errno() -> i32 {
    // SAFETY: the C library's own per-thread errno.
    unsafe { *libc::__errno_location() }
}

/// Sets the tool's errno.
pub fn set_errno(errno: i32) {
    // SAFETY: the C library's own per-thread errno.
    unsafe { *libc::__errno_location() = errno };
}
