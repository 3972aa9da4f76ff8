//! The control thread's loop, and how the process's threads reach it.

use super::notify;
use super::state::{State, Summary};
use crate::arch::sys;
use crate::fds;
use crate::hook::{Engine, Mute};
use crate::memory::Reserve;
use bpftime_shm::session::{dir, sock};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, ReadFlags};
use rustix::thread::futex;
use rustix::time::Timespec;
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Held by the control thread while it changes anything; fork holds it, so a child never inherits a half-made change.
static STATE: Mutex<Option<State>> = Mutex::new(None);

/// Requests to look at the process again, and how many are done. Waiters sleep on the second.
static ASKED: AtomicU32 = AtomicU32::new(1);
static DONE: AtomicU32 = AtomicU32::new(0);
static THREAD: AtomicU32 = AtomicU32::new(0);
static STARTED: AtomicBool = AtomicBool::new(false);

/// The signal that wakes the control thread. It is blocked there and waited for, or read from a signalfd; sent to that thread
/// only, so the process never sees it, whatever it uses the signal for itself.
pub(super) const WAKE_SIGNAL: i32 = libc::SIGPWR;

fn lock() -> std::sync::MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Body of the control thread. `engine` makes the hook engine on this thread, which owns it.
pub fn run(dirs: Vec<PathBuf>, engine: impl FnOnce() -> Option<Engine>) {
    let tid = sys::gettid() as u32;
    // For the life of the thread.
    std::mem::forget(Mute::new());
    if fds::make_private(&[]).is_ok() && prepare(dirs, engine) {
        THREAD.store(tid, Ordering::Release);
        if (catch_unwind(serve).is_err() || Reserve::in_use())
            && let Some(state) = lock().take()
        {
            // A bug of ours, or no memory: take the probes out and go quiet.
            let _ = catch_unwind(AssertUnwindSafe(|| state.abandon()));
        }
        STARTED.store(false, Ordering::Release);
        THREAD.store(0, Ordering::Release);
    }
    finish(u32::MAX);
}

fn prepare(dirs: Vec<PathBuf>, engine: impl FnOnce() -> Option<Engine>) -> bool {
    crate::run::helpers::task::read_cgroups();
    crate::run::helpers::task::read_pid_namespace();
    crate::run::shadow::refresh_if_used();
    crate::run::build_id::refresh_if_used(true);
    let mut state = lock();
    match state.as_mut() {
        // A forked child: the copy of the parent's state is consistent, only its connections are not ours.
        Some(state) => state.forget_connections(),
        None => match engine() {
            Some(engine) => *state = Some(State::new(engine, dirs)),
            None => return false,
        },
    }
    true
}

/// Wakes whoever waits for `seq` or earlier.
fn finish(seq: u32) {
    // Release: pairs with the Acquire in `wait_done`.
    DONE.store(seq, Ordering::Release);
    let _ = futex::wake(&DONE, futex::Flags::PRIVATE, i32::MAX as u32);
}

fn serve() {
    let Some(wake) = signal_fd() else { return };
    let mut watch = Watch::new();
    // Whether a session may have come, or time has passed: a tool that adds thousands of links has a round for each.
    let mut look = true;
    let mut reasserted = None::<Instant>;
    loop {
        let asked = ASKED.load(Ordering::Acquire);
        let nap;
        {
            let mut guard = lock();
            let Some(state) = guard.as_mut().filter(|_| !Reserve::in_use()) else { return };
            if asked != DONE.load(Ordering::Relaxed) {
                state.rescan();
                look = true;
            }
            watch.refresh(&state.dirs);
            if look || state.wants_retry() {
                state.discover();
            }
            state.pump_all();
            state.take_off_failed();
            STARTED.store(true, Ordering::Release);
            // A handler that was replaced behind our back (by a raw system call) would see our faults.
            let traces = state.sessions.iter().any(|s| !s.links.is_empty());
            if traces && reasserted.is_none_or(|then| then.elapsed() >= REASSERT) {
                crate::signals::reassert();
                reasserted = Some(Instant::now());
            }
            if traces {
                crate::run::build_id::refresh_if_used(false);
            }
            nap = match (state.finish(), state.wants_retry() || traces) {
                (true, _) => Some(Timespec { tv_sec: 0, tv_nsec: 20_000_000 }),
                (false, true) => Some(Timespec { tv_sec: 1, tv_nsec: 0 }),
                (false, false) => None,
            };
        }
        if asked != DONE.load(Ordering::Relaxed) {
            finish(asked);
        }
        look = sleep(&wake, &watch, nap);
        look |= drain(&wake);
        look |= watch.drain();
    }
}

/// How long a replaced signal handler may go unnoticed.
const REASSERT: Duration = Duration::from_millis(500);

/// Waits until a session speaks, the directory changes, or somebody asks; at most `nap`. True if that has passed.
fn sleep(wake: &OwnedFd, watch: &Watch, nap: Option<Timespec>) -> bool {
    // The sockets are dup'ed out of the state so that the lock is free while this thread sleeps.
    let socks: Vec<OwnedFd> = {
        let guard = lock();
        let sessions = guard.iter().flat_map(|s| &s.sessions);
        sessions.filter_map(|s| s.fd()).filter_map(|fd| rustix::io::dup(fd).ok()).collect()
    };
    let mut fds: Vec<PollFd> = socks.iter().map(|s| PollFd::new(s, PollFlags::IN)).collect();
    fds.push(PollFd::new(wake, PollFlags::IN));
    if let Some(fd) = &watch.fd {
        fds.push(PollFd::new(fd, PollFlags::IN));
    }
    let timeout = nap.or_else(|| watch.timeout());
    let told = socks.iter().chain(&watch.fd).all(notify::by_signal);
    // Until something is there to read, or somebody asks; false when the time has passed.
    let mut wait = |limit: Option<&Timespec>| {
        // What came before the descriptors were to tell is found at once.
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let quietly = told && rustix::event::poll(&mut fds, Some(&now)) == Ok(0);
        match if quietly { notify::wait(limit) } else { None } {
            Some(woken) => woken,
            None => rustix::event::poll(&mut fds, limit) != Ok(0),
        }
    };
    let Some(mut pace) = lock().as_mut().and_then(State::samples) else {
        return !wait(timeout.as_ref());
    };
    // New threads do not wake us: a look at their number in between, without a round of everything.
    let end = timeout.map(|t| Instant::now() + Duration::new(t.tv_sec as u64, t.tv_nsec as u32));
    let glance =
        |pace: Duration| Timespec { tv_sec: pace.as_secs() as i64, tv_nsec: pace.subsec_nanos().into() };
    while !wait(Some(&glance(pace))) {
        if end.is_some_and(|end| Instant::now() >= end) {
            return true;
        }
        pace = lock().as_mut().and_then(State::follow_threads).unwrap_or(pace);
    }
    false
}

fn signal_fd() -> Option<OwnedFd> {
    use std::os::fd::FromRawFd;
    let mask: u64 = 1 << (WAKE_SIGNAL - 1);
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the mask is 8 bytes as the kernel wants; -1 asks for a new descriptor.
    let fd = unsafe {
        sys::syscall(libc::SYS_signalfd4, [usize::MAX, &raw const mask as usize, 8, flags as usize, 0, 0])
    };
    // SAFETY: a descriptor the kernel just made for us.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Empties the descriptor; whether there was anything.
fn drain(fd: &OwnedFd) -> bool {
    let mut buf = [0u8; 4096];
    let mut any = false;
    while rustix::io::read(fd, &mut buf).is_ok_and(|n| n > 0) {
        any = true;
    }
    any
}

/// Watches the runtime directories for new sockets.
struct Watch {
    fd: Option<OwnedFd>,
    watched: Vec<PathBuf>,
    /// Tells starting tools that this process is there.
    presence: Vec<OwnedFd>,
    /// How many directories were watched before one went: it may come back.
    before: usize,
}

impl Watch {
    fn new() -> Self {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok();
        Self { fd, watched: Vec::new(), presence: Vec::new(), before: 0 }
    }

    /// A directory is created when it can be, so that there is something to watch; a session that a tool starts later
    /// is then seen at once.
    fn refresh(&mut self, dirs: &[PathBuf]) {
        let Some(fd) = &self.fd else { return };
        for path in dirs {
            // Whoever removed it did not ask for it to come back at once.
            let usable = if self.before == 0 { dir::ensure } else { dir::check };
            if self.watched.contains(path) || usable(path).is_err() {
                continue;
            }
            self.presence.extend(sock::announce(path));
            let flags = inotify::WatchFlags::CREATE
                | inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::DELETE_SELF
                | inotify::WatchFlags::MOVE_SELF;
            if inotify::add_watch(fd, path.as_path(), flags).is_ok() {
                self.watched.push(path.clone());
            }
        }
    }

    /// Without inotify (out of watches), or while one is missing, the directories are looked at every second.
    fn timeout(&self) -> Option<Timespec> {
        let blind = self.fd.is_none() || self.watched.is_empty() || self.watched.len() < self.before;
        blind.then_some(Timespec { tv_sec: 1, tv_nsec: 0 })
    }

    /// Takes the events; whether there were any. When a directory went, all are looked at anew: another of the same
    /// name is another directory.
    fn drain(&mut self) -> bool {
        let Some(fd) = &self.fd else { return false };
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(fd, &mut space);
        let gone = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED;
        let (mut any, mut lost) = (false, false);
        while let Ok(event) = events.next() {
            any = true;
            lost |= event.events().intersects(gone);
        }
        if lost {
            *self = Self { before: self.watched.len().max(self.before), ..Self::new() };
        }
        any
    }
}

/// Adds a directory to look for sessions in.
pub fn look_into(dir: Option<PathBuf>) {
    if let (Some(dir), Some(state)) = (dir, lock().as_mut())
        && !state.dirs.contains(&dir)
    {
        state.dirs.insert(0, dir);
    }
    ask();
}

/// Asks the control thread to look at the process again and waits until it has, at most `limit`.
pub fn poke_and_wait(limit: Duration) {
    let seq = ASKED.fetch_add(1, Ordering::AcqRel) + 1;
    poke();
    wait_done(seq, limit);
}

/// Asks the control thread to look at the process again. One system call; may be used in a signal handler.
pub(crate) fn ask() {
    ASKED.fetch_add(1, Ordering::AcqRel);
    poke();
}

/// [`poke_and_wait`], if there is a control thread and this is another.
pub(crate) fn ask_and_wait(limit: Duration) {
    let me = sys::gettid() as u32;
    if STARTED.load(Ordering::Acquire) && me != THREAD.load(Ordering::Acquire) {
        poke_and_wait(limit);
    }
}

fn poke() {
    let tid = THREAD.load(Ordering::Acquire);
    if tid != 0 {
        // Not by the C library, where it would be the program's call.
        let pid = sys::getpid() as usize;
        // SAFETY: sends a signal to the control thread, which blocks it.
        unsafe { sys::syscall(libc::SYS_tgkill, [pid, tid as usize, WAKE_SIGNAL as usize, 0, 0, 0]) };
    }
}

fn wait_done(seq: u32, limit: Duration) {
    let deadline = Instant::now() + limit;
    loop {
        // Acquire: pairs with the Release in `finish`; the text is as the control thread left it.
        let done = DONE.load(Ordering::Acquire);
        if done.wrapping_sub(seq) < u32::MAX / 2 || done == u32::MAX {
            return;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let ts = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos() as i64 };
        let _ = futex::wait(&DONE, futex::Flags::PRIVATE, done, Some(&ts));
    }
}

/// Called by the thread that changes the set of libraries, inside the dynamic linker. The control thread never takes
/// the dynamic linker's lock, so waiting here cannot deadlock; the bound is for a control thread that was stopped.
pub fn on_linker_change() {
    // What the wait takes of the C library is not the program's doing.
    let _quiet = Mute::new();
    ask_and_wait(Duration::from_millis(500));
}

/// The lock, held over a fork by the forking thread.
struct ForkGuard(UnsafeCell<Option<MutexGuard<'static, Option<State>>>>);

// SAFETY: only the thread that holds `STATE` touches the cell.
unsafe impl Sync for ForkGuard {}

static FORK_GUARD: ForkGuard = ForkGuard(UnsafeCell::new(None));

/// Before fork: waits until the control thread is between two steps, and keeps it there.
pub fn hold_for_fork() {
    let guard = lock();
    // SAFETY: this thread holds the lock.
    unsafe { *FORK_GUARD.0.get() = Some(guard) };
}

/// After fork, on both sides: lets the control thread go on, or makes the child ready for one of its own.
///
/// # Safety
/// Only after [`hold_for_fork`] on this thread, or on the thread this one is the forked copy of.
pub unsafe fn release_after_fork(in_child: bool) {
    if in_child {
        THREAD.store(0, Ordering::Release);
        STARTED.store(false, Ordering::Release);
        DONE.store(ASKED.load(Ordering::Relaxed), Ordering::Release);
    }
    // SAFETY: this thread holds the lock.
    drop(unsafe { (*FORK_GUARD.0.get()).take() });
}

/// Waits until the control thread has been through its first round, at most `limit`.
pub fn wait_started(limit: Duration) {
    wait_done(1, limit);
}

/// What stands in this process.
pub fn summary() -> Summary {
    lock().as_ref().map(State::summary).unwrap_or_default()
}
