//! Functions that take a path. The C library's answer comes first; where it fails for a file that we have, ours.

use crate::files::{self, Answer};
use crate::guard::guard;
use crate::{real, tool};
use std::ffi::{CStr, c_char, c_int, c_void};

/// What to return after a call for `path` has failed with `failed`: what `ours` makes of the file we have, if we have
/// one, else the failure with its errno.
pub(super) fn or_ours<T: Copy>(failed: T, path: *const c_char, ours: impl FnOnce(Answer) -> Option<T>) -> T {
    let errno = real::errno();
    let absent = [libc::ENOENT, libc::EACCES, libc::EPERM, libc::ENOTDIR].contains(&errno);
    if !absent || path.is_null() || tool::is_inert() {
        return failed;
    }
    // SAFETY: the kernel has just read the string, else it had said EFAULT.
    let path = unsafe { CStr::from_ptr(path) };
    guard(|| files::answer(path).and_then(ours), || None).unwrap_or_else(|| {
        real::set_errno(errno);
        failed
    })
}

/// The C library's answer for `path`, unless what it has is to be hidden behind ours.
pub(super) fn real_for(path: *const c_char, call: impl FnOnce() -> c_int) -> c_int {
    if tool::is_inert() || path.is_null() {
        return call();
    }
    // SAFETY: a C string by the contract of every caller.
    if guard(|| files::is_replaced(unsafe { CStr::from_ptr(path) }), || false) {
        real::set_errno(libc::ENOENT);
        return -1;
    }
    call()
}

/// The result of opening what we have.
fn opened(answer: Answer, flags: c_int, mode: libc::mode_t) -> Option<c_int> {
    match answer {
        Answer::StandIn(path) => Some(real::open(path.as_ptr(), flags, mode)),
        Answer::Contents(bytes) => files::serve(&bytes, flags),
        Answer::TracePipe => files::trace_pipe::open(flags),
        Answer::Directory => None,
        Answer::Bpf(path) => Some(open_bpf(&path, flags)),
    }
}

/// As in the kernel's BPF file system: directories can be opened, pins cannot, and files are made by bpf(2) only.
fn open_bpf(path: &CStr, flags: c_int) -> c_int {
    let fd = real::open(path.as_ptr(), flags & !libc::O_CREAT, 0);
    let errno = match real::errno() {
        libc::ENOENT if fd < 0 && flags & libc::O_CREAT != 0 => libc::EACCES,
        errno if fd < 0 => errno,
        _ if flags & libc::O_PATH != 0 || is_directory(fd) => return fd,
        _ => {
            real::close(fd);
            libc::EIO
        }
    };
    real::set_errno(errno);
    -1
}

fn is_directory(fd: c_int) -> bool {
    // SAFETY: stat is plain data, filled by the call; the descriptor was just opened.
    unsafe {
        let mut st: libc::stat = std::mem::zeroed();
        libc::fstat(fd, &mut st) == 0 && st.st_mode & libc::S_IFMT == libc::S_IFDIR
    }
}

/// `open(2)`. Variadic in C; the mode is only looked at by the C library.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    match real_for(path, || real::open(path, flags, mode)) {
        -1 => or_ours(-1, path, |a| opened(a, flags, mode)),
        fd => fd,
    }
}

/// `open64`: the same function on x86-64.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    // SAFETY: as our caller's.
    unsafe { open(path, flags, mode) }
}

/// `openat(2)`. Only absolute paths can be ours, and for those the directory does not matter.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    match real_for(path, || real::openat(dir, path, flags, mode)) {
        -1 => or_ours(-1, path, |a| opened(a, flags, mode)),
        fd => fd,
    }
}

/// `openat64`: the same function on x86-64.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mode: libc::mode_t,
) -> c_int {
    // SAFETY: as our caller's.
    unsafe { openat(dir, path, flags, mode) }
}

/// `fopen(3)`.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fopen(path: *const c_char, mode: *const c_char) -> *mut c_void {
    let mut file = std::ptr::null_mut();
    real_for(path, || {
        file = real::fopen(path, mode);
        0
    });
    if !file.is_null() || mode.is_null() {
        return file;
    }
    or_ours(file, path, |answer| match answer {
        Answer::StandIn(path) => Some(real::fopen(path.as_ptr(), mode)),
        Answer::Bpf(path) => {
            real::set_errno(libc::EIO);
            real::access(path.as_ptr(), libc::F_OK);
            Some(std::ptr::null_mut())
        }
        Answer::Contents(_) | Answer::TracePipe => {
            // SAFETY: the C library has just read the string.
            let how = unsafe { CStr::from_ptr(mode) };
            let fd = how.to_bytes().starts_with(b"r").then(|| opened(answer, libc::O_CLOEXEC, 0))??;
            // SAFETY: a fresh descriptor and a constant mode.
            Some(unsafe { libc::fdopen(fd, c"r".as_ptr()).cast() })
        }
        Answer::Directory => None,
    })
}

/// `fopen64`: the same function on x86-64.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fopen64(path: *const c_char, mode: *const c_char) -> *mut c_void {
    // SAFETY: as our caller's.
    unsafe { fopen(path, mode) }
}

/// `glob(3)`: bpftrace looks for the formats of events that match a pattern. What of ours matches is added by the C
/// library itself, which the caller has free it.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn glob(
    pattern: *const c_char,
    flags: c_int,
    failed: *mut c_void,
    found: *mut libc::glob_t,
) -> c_int {
    let outcome = real::glob(pattern, flags, failed, found);
    if outcome != libc::GLOB_NOMATCH || pattern.is_null() || tool::is_inert() {
        return outcome;
    }
    // SAFETY: the C library has just read the string.
    let matching = guard(|| files::matching(unsafe { CStr::from_ptr(pattern) }), Vec::new);
    let mut outcome = outcome;
    for (i, path) in matching.iter().enumerate() {
        let append = if i == 0 { 0 } else { libc::GLOB_APPEND };
        // A path that is not there stands for itself.
        outcome = real::glob(path.as_ptr(), flags | append | libc::GLOB_NOCHECK, failed, found);
    }
    outcome
}

/// Fills `st` for what we have.
fn stated(answer: Answer, st: *mut libc::stat) -> Option<c_int> {
    let ours = match answer {
        Answer::StandIn(path) | Answer::Bpf(path) => return Some(real::stat(path.as_ptr(), st)),
        Answer::Contents(bytes) => files::status(Some(&bytes)),
        Answer::TracePipe => files::status(Some(&[])),
        Answer::Directory => files::status(None),
    };
    // SAFETY: the caller's own buffer, which stat(2) would have filled.
    unsafe { st.write(ours) };
    Some(0)
}

/// `stat(2)`.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stat(path: *const c_char, st: *mut libc::stat) -> c_int {
    match real_for(path, || real::stat(path, st)) {
        -1 => or_ours(-1, path, |a| stated(a, st)),
        done => done,
    }
}

/// `stat64`: the same function on x86-64.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stat64(path: *const c_char, st: *mut libc::stat) -> c_int {
    // SAFETY: as our caller's.
    unsafe { stat(path, st) }
}

/// `lstat(2)`. Nothing of ours is a link.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstat(path: *const c_char, st: *mut libc::stat) -> c_int {
    match real_for(path, || real::lstat(path, st)) {
        -1 => or_ours(-1, path, |a| stated(a, st)),
        done => done,
    }
}

/// `lstat64`: the same function on x86-64.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstat64(path: *const c_char, st: *mut libc::stat) -> c_int {
    // SAFETY: as our caller's.
    unsafe { lstat(path, st) }
}

/// `fstatat(2)`, for absolute paths as `stat`.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstatat(
    dir: c_int,
    path: *const c_char,
    st: *mut libc::stat,
    flags: c_int,
) -> c_int {
    match real_for(path, || real::fstatat(dir, path, st, flags)) {
        -1 => or_ours(-1, path, |a| stated(a, st)),
        done => done,
    }
}

/// `fstatat64`: the same function on x86-64.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstatat64(
    dir: c_int,
    path: *const c_char,
    st: *mut libc::stat,
    flags: c_int,
) -> c_int {
    // SAFETY: as our caller's.
    unsafe { fstatat(dir, path, st, flags) }
}

/// Whether what we have can be used so: ours can be read and searched, not written.
fn allowed(answer: &Answer, mode: c_int) -> Option<c_int> {
    match answer {
        Answer::StandIn(path) | Answer::Bpf(path) => Some(real::access(path.as_ptr(), mode)),
        Answer::Contents(_) | Answer::TracePipe => (mode & !libc::R_OK == 0).then_some(0),
        Answer::Directory => (mode & libc::W_OK == 0).then_some(0),
    }
}

/// `access(2)`.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn access(path: *const c_char, mode: c_int) -> c_int {
    match real_for(path, || real::access(path, mode)) {
        -1 => or_ours(-1, path, |a| allowed(&a, mode)),
        done => done,
    }
}

/// `faccessat(2)`, for absolute paths as `access`.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn faccessat(dir: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int {
    match real_for(path, || real::faccessat(dir, path, mode, flags)) {
        -1 => or_ours(-1, path, |a| allowed(&a, mode)),
        done => done,
    }
}

/// `chdir(2)`: bcc compiles inside of the headers.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn chdir(path: *const c_char) -> c_int {
    match real_for(path, || real::chdir(path)) {
        -1 => or_ours(-1, path, |answer| match answer {
            Answer::StandIn(path) | Answer::Bpf(path) => Some(real::chdir(path.as_ptr())),
            Answer::Contents(_) | Answer::TracePipe | Answer::Directory => None,
        }),
        done => done,
    }
}
