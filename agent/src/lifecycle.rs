//! From being loaded to tracing: what the agent does at start, around fork, and what it finds out on the way.
//!
//! Everything here runs on threads of the host at moments where the C library may be called (a constructor, a fork
//! handler), or on the control thread.

use crate::control;
use crate::hook::{Callbacks, Engine, Mute};
use crate::run::{clock, enter, process};
use bpftime_shm::session::dir;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// How long a starting process waits for the links that are there already. A tool that is stopped or wedged must not
/// keep others from starting.
const START_LIMIT: Duration = Duration::from_millis(1500);

static RUNNING: AtomicBool = AtomicBool::new(false);
static LINKER_NOTIFY: AtomicUsize = AtomicUsize::new(0);

/// Starts the agent in this process; later calls only add `extra`, a directory to look for sessions in besides the
/// usual ones. Does not wait for anything: see [`wait_ready`].
pub fn start(extra: Option<PathBuf>) -> bool {
    if secure_execution() {
        return false;
    }
    if RUNNING.swap(true, Ordering::AcqRel) {
        control::look_into(extra);
        return true;
    }
    // A bug of ours loses a probe; it does not write into the host's standard error.
    std::panic::set_hook(Box::new(|_| ()));
    if !prepare() {
        return false;
    }
    let mut dirs = dir::candidates();
    dirs.splice(0..0, extra.filter(|d| !dirs.contains(d)));
    // SAFETY: registers handlers that live as long as this library, which is never unloaded.
    unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_parent), Some(after_fork_child)) };
    spawn(dirs)
}

/// What any program needs to run in this process: clocks, ids, and the handlers that make reads of bad addresses safe.
/// The tool calls it by itself for the programs it runs.
pub fn prepare() -> bool {
    static READY: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *READY.get_or_init(|| {
        let ready = process::init().is_ok();
        clock::init();
        find_host_symbols();
        crate::signals::install();
        crate::signals::read_seccomp();
        crate::run::helpers::task::read_cgroups();
        crate::run::helpers::task::read_pid_namespace();
        ready
    })
}

/// Waits until the links of live sessions stand in this process, bounded.
pub fn wait_ready() {
    control::wait_started(START_LIMIT);
    control::poke_and_wait(START_LIMIT);
}

/// Set-user-id programs and the like: an environment variable must not make them load our hooks.
pub fn secure_execution() -> bool {
    // SAFETY: getauxval only reads the auxiliary vector.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

fn spawn(dirs: Vec<PathBuf>) -> bool {
    spawn_quiet("bpftime", move || control::run(dirs, engine)).is_ok()
}

/// Starts a thread of ours with every signal blocked, so that it never runs a handler of the host; but for the three
/// that our own handlers answer (a thread that blocks SIGTRAP would die at a breakpoint of ours).
pub fn spawn_quiet(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    // SAFETY: sigset_t is plain data; the calls only fill and exchange this thread's mask.
    let (mut all, mut old): (libc::sigset_t, libc::sigset_t) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: as above.
    unsafe {
        libc::sigfillset(&mut all);
        for ours in [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS] {
            libc::sigdelset(&mut all, ours);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
    }
    let spawned = std::thread::Builder::new().name(name.into()).stack_size(256 * 1024).spawn(body);
    // SAFETY: gives the thread its own mask back.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut()) };
    spawned.map(drop)
}

fn engine() -> Option<Engine> {
    Some(Engine::new(Callbacks { entry: enter::on_entry, ret: enter::on_return }))
}

extern "C" fn before_fork() {
    let _quiet = Mute::new();
    control::hold_for_fork();
}

extern "C" fn after_fork_parent() {
    let _quiet = Mute::new();
    // SAFETY: the C library calls this on the forking thread after `before_fork`.
    unsafe { control::release_after_fork(false) };
}

extern "C" fn after_fork_child() {
    // What follows is our doing, not the program's.
    let _quiet = Mute::new();
    // Before any thread of ours is started: it would get a block, and lose it to `forked`.
    crate::hook::forked();
    process::refresh();
    // SAFETY: as in the parent.
    unsafe { control::release_after_fork(true) };
    // The child keeps the probes it inherited; its own control thread connects to the same sessions.
    spawn(dir::candidates());
}

/// Symbols of the C library that the probe path needs as plain addresses.
fn find_host_symbols() {
    // SAFETY: dlsym with constant names; the results are read as the types glibc documents.
    unsafe {
        let rseq = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>();
        if let Some(offset) = rseq.as_ref() {
            process::set_rseq_offset(*offset);
        }
        for (slot, name) in RETURNS_TWICE.iter().zip(crate::hook::RETURNS_TWICE) {
            let name = std::ffi::CString::new(*name).unwrap_or_default();
            slot.store(libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) as usize, Ordering::Relaxed);
        }
        let debug = libc::dlsym(libc::RTLD_DEFAULT, c"_r_debug".as_ptr()).cast::<RDebug>();
        if let Some(debug) = debug.as_ref() {
            LINKER_NOTIFY.store(debug.brk, Ordering::Relaxed);
        }
    }
}

/// Addresses of the C library's functions that return twice (`hook::RETURNS_TWICE`), 0 where it has none.
static RETURNS_TWICE: [AtomicUsize; crate::hook::RETURNS_TWICE.len()] =
    [const { AtomicUsize::new(0) }; crate::hook::RETURNS_TWICE.len()];

/// Whether a return probe at `addr` would send the second return through a slot that is no longer its own.
pub fn returns_twice(addr: usize) -> bool {
    RETURNS_TWICE.iter().any(|a| a.load(Ordering::Relaxed) == addr)
}

/// `struct r_debug` of `link.h`.
#[repr(C)]
struct RDebug {
    version: i32,
    map: usize,
    brk: usize,
}

/// Whether the program is made by Go, whose runtime takes every signal for itself: by the name of a section that its
/// linker writes. Opens a file.
pub(crate) fn is_go() -> bool {
    go_section(std::path::Path::new("/proc/self/exe")).unwrap_or(false)
}

/// Whether the names of an ELF file's sections hold the one of Go's line table.
fn go_section(path: &std::path::Path) -> Option<bool> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path).ok()?;
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    };
    let long = |b: &[u8], at: usize| Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?));
    let half = |b: &[u8], at: usize| Some(u16::from_le_bytes(b.get(at..at + 2)?.try_into().ok()?));
    let head = read(0, 64)?;
    // e_shoff, e_shentsize, e_shstrndx; sh_offset and sh_size of the names.
    let names = long(&head, 40)? + half(&head, 58)? as u64 * half(&head, 62)? as u64;
    let row = read(names, 64)?;
    let text = read(long(&row, 24)?, (long(&row, 32)? as usize).min(1 << 16))?;
    Some(text.windows(10).any(|w| w == b".gopclntab"))
}

/// The function the dynamic linker calls around every change of the set of libraries (`r_brk`).
pub fn linker_notify_address() -> Option<usize> {
    Some(LINKER_NOTIFY.load(Ordering::Relaxed)).filter(|a| *a != 0)
}
