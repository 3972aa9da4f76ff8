//! Functions that tools use on `/sys/fs/bpf` beside those in [`super::paths`]: there they mean the directory of ours.

use crate::files::{bpffs, proc};
use crate::guard::guard;
use crate::{real, tool};
use std::cell::Cell;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// The path to use in place of `path`: ours for one below `/sys/fs/bpf`, else the same. Lives as long as the second.
fn meant(path: *const c_char) -> (*const c_char, Option<CString>) {
    if path.is_null() || tool::is_inert() {
        return (path, None);
    }
    // SAFETY: a C string by the contract of every caller.
    let ours = guard(|| bpffs::stand_in(unsafe { CStr::from_ptr(path) }), || None);
    (ours.as_ref().map_or(path, |p| p.as_ptr()), ours)
}

/// Functions of one or two paths, with everything else passed on.
macro_rules! on_paths {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) paths $($path:ident)+;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> c_int {
            $(let ($path, _owner) = meant($path);)+
            real::$name($($arg),*)
        }
    )*};
}

on_paths! {
    /// `mkdir(2)`.
    mkdir(path: *const c_char, mode: libc::mode_t) paths path;
    /// `mkdirat(2)`.
    mkdirat(dir: c_int, path: *const c_char, mode: libc::mode_t) paths path;
    /// `rmdir(2)`.
    rmdir(path: *const c_char) paths path;
    /// `unlink(2)`: the end of a pin.
    unlink(path: *const c_char) paths path;
    /// `unlinkat(2)`.
    unlinkat(dir: c_int, path: *const c_char, flags: c_int) paths path;
    /// `remove(3)`.
    remove(path: *const c_char) paths path;
    /// `chmod(2)`.
    chmod(path: *const c_char, mode: libc::mode_t) paths path;
    /// `rename(2)`.
    rename(from: *const c_char, to: *const c_char) paths from to;
    /// `renameat(2)`.
    renameat(a: c_int, from: *const c_char, b: c_int, to: *const c_char) paths from to;
    /// `renameat2(2)`.
    renameat2(a: c_int, from: *const c_char, b: c_int, to: *const c_char, flags: c_uint) paths from to;
    /// `link(2)`.
    link(from: *const c_char, to: *const c_char) paths from to;
    /// `linkat(2)`.
    linkat(a: c_int, from: *const c_char, b: c_int, to: *const c_char, flags: c_int) paths from to;
    /// `statx(2)`.
    statx(dir: c_int, path: *const c_char, flags: c_int, mask: c_uint, out: *mut c_void) paths path;
}

/// `statfs(2)`: what decides for a tool whether it can pin there.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statfs(path: *const c_char, out: *mut libc::statfs) -> c_int {
    if path.is_null() || tool::is_inert() {
        return real::statfs(path, out);
    }
    // SAFETY: a C string by the caller's contract.
    let ours = guard(|| bpffs::is_below_ours(unsafe { CStr::from_ptr(path) }), || None);
    let Some(ours) = ours else { return real::statfs(path, out) };
    let done = real::statfs(ours.as_ptr(), out);
    if done == 0 {
        // SAFETY: the C library has just filled it.
        unsafe { (*out).f_type = bpffs::MAGIC };
    }
    done
}

/// `statfs64`: the same function on x86-64.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statfs64(path: *const c_char, out: *mut libc::statfs) -> c_int {
    // SAFETY: as our caller's.
    unsafe { statfs(path, out) }
}

/// `mount(2)`: a tool that would pin mounts the kernel's BPF file system, which takes no objects of ours.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mount(
    source: *const c_char,
    target: *const c_char,
    kind: *const c_char,
    flags: u64,
    data: *const c_void,
) -> c_int {
    // SAFETY: a C string by the caller's contract.
    let is_bpf = !kind.is_null() && unsafe { CStr::from_ptr(kind) } == c"bpf";
    if is_bpf && tool::is_tool() && !tool::is_inert() {
        real::set_errno(libc::EPERM);
        return -1;
    }
    real::mount(source, target, kind, flags, data)
}

/// `readlink(2)`: tools tell objects apart by what their entries in /proc/self/fd are links to.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn readlink(path: *const c_char, buf: *mut c_char, len: usize) -> isize {
    if !path.is_null() && !buf.is_null() && !tool::is_inert() {
        // SAFETY: a C string by the caller's contract.
        let text = guard(|| proc::link_text(unsafe { CStr::from_ptr(path) }), || None);
        if let Some(text) = text {
            let n = text.len().min(len);
            // SAFETY: the caller's buffer has `len` bytes.
            unsafe { buf.copy_from_nonoverlapping(text.as_ptr().cast(), n) };
            return n as isize;
        }
    }
    real::readlink(path, buf, len) as isize
}

/// `setmntent(3)`, which opens its file by itself.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setmntent(path: *const c_char, mode: *const c_char) -> *mut c_void {
    // SAFETY: a C string by the caller's contract.
    if !path.is_null() && unsafe { CStr::from_ptr(path) } == c"/proc/mounts" && !tool::is_inert() {
        // SAFETY: as our caller's.
        return unsafe { super::paths::fopen(path, mode) };
    }
    real::setmntent(path, mode)
}

/// What nftw(3) calls for each file.
type Visit = unsafe extern "C" fn(*const c_char, *const libc::stat, c_int, *mut Place) -> c_int;

/// `struct FTW`.
#[repr(C)]
struct Place {
    base: c_int,
    level: c_int,
}

thread_local! {
    /// The tool's function, while its walk is under way.
    static VISIT: Cell<Option<Visit>> = const { Cell::new(None) };
}

/// Calls the tool's function with the path as the tool knows it.
unsafe extern "C" fn visit(
    path: *const c_char,
    st: *const libc::stat,
    kind: c_int,
    place: *mut Place,
) -> c_int {
    let Some(theirs) = VISIT.get() else { return 0 };
    // SAFETY: the C library's own string.
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
    let shown = guard(
        || {
            let shown = bpffs::shown(&bpffs::root()?, Path::new(OsStr::from_bytes(bytes)))?;
            CString::new(shown.into_os_string().into_vec()).ok()
        },
        || None,
    );
    let Some(shown) = shown else { return 0 };
    let less = bytes.len() as c_int - shown.as_bytes().len() as c_int;
    // SAFETY: the C library's own struct, which it goes on with after this call.
    let mut place = unsafe { place.read() };
    place.base -= less;
    // SAFETY: the tool's function, with what nftw gives it.
    unsafe { theirs(shown.as_ptr(), st, kind, &mut place) }
}

/// `nftw(3)`, by which bpftool finds pins.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nftw(
    dir: *const c_char,
    visitor: *const c_void,
    open: c_int,
    flags: c_int,
) -> c_int {
    let (ours, owner) = meant(dir);
    if owner.is_none() || visitor.is_null() {
        return real::nftw(dir, visitor, open, flags);
    }
    // SAFETY: the tool's function has this prototype.
    let theirs = unsafe { std::mem::transmute::<*const c_void, Visit>(visitor) };
    let outer = VISIT.replace(Some(theirs));
    let done = real::nftw(ours, visit as Visit as *const c_void, open, flags);
    VISIT.set(outer);
    done
}

/// `nftw64`: the same function on x86-64.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nftw64(
    dir: *const c_char,
    visitor: *const c_void,
    open: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: as our caller's.
    unsafe { nftw(dir, visitor, open, flags) }
}
