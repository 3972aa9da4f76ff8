//! The C library's functions about signals, for the three that the agent's handlers answer.
//!
//! The application sees and sets "its" SIGTRAP, SIGSEGV and SIGBUS dispositions; ours stay in the kernel and pass on
//! what is not ours. A thread that blocks SIGTRAP would die at a breakpoint, so those three never get blocked. An
//! injected agent is behind the C library in the search order; there the control thread looks after the handlers.

use bpftime_agent::signals::{keep_unblocked, on_sigaction};
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// The next definition of a function, looked up at its first call.
struct Next {
    name: &'static std::ffi::CStr,
    found: AtomicPtr<c_void>,
}

impl Next {
    const fn new(name: &'static std::ffi::CStr) -> Self {
        Self { name, found: AtomicPtr::new(std::ptr::null_mut()) }
    }

    fn get(&self) -> *mut c_void {
        let known = self.found.load(Ordering::Relaxed);
        if !known.is_null() {
            return known;
        }
        // SAFETY: a terminated constant; RTLD_NEXT searches behind this library.
        let f = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        self.found.store(f, Ordering::Relaxed);
        f
    }
}

static SIGACTION: Next = Next::new(c"sigaction");
static SIGNAL: Next = Next::new(c"signal");
static SIGPROCMASK: Next = Next::new(c"sigprocmask");
static PTHREAD_SIGMASK: Next = Next::new(c"pthread_sigmask");

type Mask = unsafe extern "C" fn(c_int, *const libc::sigset_t, *mut libc::sigset_t) -> c_int;

/// `sigaction(2)`.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(
    sig: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    type F = unsafe extern "C" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;
    // SAFETY: the caller's pointers; the symbol has this prototype.
    unsafe {
        if on_sigaction(sig, new, old) {
            return 0;
        }
        let next: F = std::mem::transmute(SIGACTION.get());
        next(sig, new, old)
    }
}

/// `signal(2)`.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn signal(sig: c_int, handler: libc::sighandler_t) -> libc::sighandler_t {
    // SAFETY: plain data; the C library's own meaning of signal(): restart, handler stays.
    unsafe {
        let (mut new, mut old): (libc::sigaction, libc::sigaction) = (std::mem::zeroed(), std::mem::zeroed());
        new.sa_sigaction = handler;
        new.sa_flags = libc::SA_RESTART;
        if on_sigaction(sig, &new, &mut old) {
            return old.sa_sigaction;
        }
        let next: unsafe extern "C" fn(c_int, libc::sighandler_t) -> libc::sighandler_t =
            std::mem::transmute(SIGNAL.get());
        next(sig, handler)
    }
}

/// Calls `next` with our signals taken out of a set to be blocked.
///
/// # Safety
/// As the C function `next`.
unsafe fn mask(next: &Next, how: c_int, set: *const libc::sigset_t, old: *mut libc::sigset_t) -> c_int {
    // SAFETY: sigset_t begins with the kernel's 64 signals on x86-64; `set` is the caller's, or null.
    unsafe {
        let next: Mask = std::mem::transmute(next.get());
        let Some(wanted) = set.as_ref().filter(|_| how != libc::SIG_UNBLOCK) else {
            return next(how, set, old);
        };
        let mut mine = *wanted;
        keep_unblocked(&mut *(&raw mut mine).cast::<u64>());
        next(how, &mine, old)
    }
}

/// `sigprocmask(2)`.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigprocmask(
    how: c_int,
    set: *const libc::sigset_t,
    old: *mut libc::sigset_t,
) -> c_int {
    // SAFETY: as our caller's.
    unsafe { mask(&SIGPROCMASK, how, set, old) }
}

/// `pthread_sigmask(3)`.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_sigmask(
    how: c_int,
    set: *const libc::sigset_t,
    old: *mut libc::sigset_t,
) -> c_int {
    // SAFETY: as our caller's.
    unsafe { mask(&PTHREAD_SIGMASK, how, set, old) }
}
