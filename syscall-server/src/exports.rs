//! The functions of the C library that this library takes the place of.

mod bpffs;
mod directories;
mod paths;

use crate::guard::guard;
use crate::{cmd, fds, object, perf, real, tool, wait};
use std::ffi::{c_char, c_int, c_long, c_void};

/// Turns a result of ours into what a C function returns.
fn to_c(r: Result<i64, rustix::io::Errno>) -> i64 {
    r.unwrap_or_else(|errno| {
        real::set_errno(errno.raw_os_error());
        -1
    })
}

/// `syscall(2)`: how every tool reaches bpf and perf_event_open. Variadic in C; all arguments are machine words.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    nr: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let theirs = || real::syscall(nr, a, b, c, d, e, f);
    if tool::is_inert() {
        return theirs();
    }
    match nr {
        libc::SYS_bpf => guard(|| to_c(cmd::bpf(a as u32, b as u64, c as u32)), theirs),
        libc::SYS_perf_event_open => {
            guard(|| to_c(perf::open(a as u64, b as i32, c as i32, d as i32, e as u64)), theirs)
        }
        libc::SYS_close => close(a as c_int).into(),
        _ => theirs(),
    }
}

/// Keeps pinned objects until there are none: what `bpftime-agent hold` calls. `ready` is called once tools can ask; gives
/// an errno, 0 at the regular end.
#[unsafe(no_mangle)]
pub extern "C" fn bpftime_hold(ready: extern "C" fn()) -> c_int {
    let served = guard(|| crate::holder::serve(|| ready()), || Err(rustix::io::Errno::IO));
    served.err().map_or(0, |errno| errno.raw_os_error())
}

/// `ioctl(2)`: PERF_EVENT_IOC_* on our perf events.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: u64, arg: usize) -> c_int {
    let theirs = || real::ioctl(fd, request, arg);
    if !object::any() {
        return theirs();
    }
    guard(|| perf::ioctl(fd, request, arg).map_or_else(theirs, |r| to_c(r) as c_int), theirs)
}

/// `mmap(2)`: maps, ring buffers and perf buffers.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    off: i64,
) -> *mut c_void {
    let theirs = || real::mmap(addr, len, prot, flags, fd, off);
    if fd < 0 || !object::any() {
        return theirs();
    }
    let call = perf::mmap::Request { addr: addr as usize, len, prot, flags, off };
    guard(|| perf::mmap::mmap(fd, &call).map_or_else(theirs, |r| to_c(r) as *mut c_void), theirs)
}

/// `mmap64`: the same function on x86-64.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    off: i64,
) -> *mut c_void {
    // SAFETY: as our caller's.
    unsafe { mmap(addr, len, prot, flags, fd, off) }
}

/// `close(2)`: the detach. When it returns, no probe that it took off runs any more.
#[unsafe(no_mangle)]
pub extern "C" fn close(fd: c_int) -> c_int {
    // A thread of ours has a descriptor table of its own: the number means something else there.
    let watched = object::any() && !bpftime_agent::hook::is_muted() && fds::unwatch(fd);
    let ret = real::close(fd);
    if watched {
        guard(cmd::link::settle, || ());
    }
    ret
}

/// Waits begin with a look at the rings.
fn look() {
    if object::any() {
        guard(wait::before_wait, || ());
    }
}

/// `epoll_wait(2)`.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_wait(
    ep: c_int,
    ev: *mut libc::epoll_event,
    n: c_int,
    timeout: c_int,
) -> c_int {
    look();
    real::epoll_wait(ep, ev, n, timeout)
}

/// `epoll_pwait(2)`.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_pwait(
    ep: c_int,
    ev: *mut libc::epoll_event,
    n: c_int,
    timeout: c_int,
    mask: *const libc::sigset_t,
) -> c_int {
    look();
    real::epoll_pwait(ep, ev, n, timeout, mask)
}

/// `poll(2)`.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn poll(p: *mut libc::pollfd, n: libc::nfds_t, timeout: c_int) -> c_int {
    look();
    real::poll(p, n, timeout)
}

/// `ppoll(2)`.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ppoll(
    p: *mut libc::pollfd,
    n: libc::nfds_t,
    timeout: *const libc::timespec,
    mask: *const libc::sigset_t,
) -> c_int {
    look();
    real::ppoll(p, n, timeout, mask)
}

/// `select(2)`.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn select(
    n: c_int,
    r: *mut libc::fd_set,
    w: *mut libc::fd_set,
    e: *mut libc::fd_set,
    timeout: *mut libc::timeval,
) -> c_int {
    look();
    real::select(n, r, w, e, timeout)
}

/// `pselect(2)`.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pselect(
    n: c_int,
    r: *mut libc::fd_set,
    w: *mut libc::fd_set,
    e: *mut libc::fd_set,
    timeout: *const libc::timespec,
    mask: *const libc::sigset_t,
) -> c_int {
    look();
    real::pselect(n, r, w, e, timeout, mask)
}

/// `geteuid(2)`: 0 for tools that refuse to run otherwise.
#[unsafe(no_mangle)]
pub extern "C" fn geteuid() -> libc::uid_t {
    if tool::fakes_root() { 0 } else { real::geteuid() }
}

/// Locked memory is not charged for maps here, so raising its limit succeeds.
fn is_memlock(resource: c_int) -> bool {
    resource == libc::RLIMIT_MEMLOCK as c_int && !tool::is_inert()
}

/// `setrlimit(2)`.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setrlimit(resource: c_int, limit: *const libc::rlimit) -> c_int {
    let r = real::setrlimit(resource, limit);
    if r != 0 && is_memlock(resource) { 0 } else { r }
}

/// `setrlimit64`: the same function on x86-64.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setrlimit64(resource: c_int, limit: *const libc::rlimit) -> c_int {
    // SAFETY: as our caller's.
    unsafe { setrlimit(resource, limit) }
}

/// `prlimit(2)`.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prlimit(
    pid: libc::pid_t,
    resource: c_int,
    new: *const libc::rlimit,
    old: *mut libc::rlimit,
) -> c_int {
    let r = real::prlimit(pid, resource, new, old);
    if r != 0 && is_memlock(resource) && !new.is_null() { 0 } else { r }
}

/// `prlimit64`: the same function on x86-64.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prlimit64(
    pid: libc::pid_t,
    resource: c_int,
    new: *const libc::rlimit,
    old: *mut libc::rlimit,
) -> c_int {
    // SAFETY: as our caller's.
    unsafe { prlimit(pid, resource, new, old) }
}

/// Marks the library, for `bpftime doctor` and for the agent when both are preloaded.
#[unsafe(no_mangle)]
pub extern "C" fn bpftime_syscall_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
