//! BPF_ENABLE_STATS: runs of all programs of the user are counted and timed while a tool wants it.
//!
//! The switch is a lock on a file in the runtime directory, of the kind that belongs to an open file: the tool's
//! descriptor is that file, so it is off when the last copy is closed, by whatever way. Sessions are told when a tool
//! switches on, or off by close(2); that somebody was killed they see within half a second.

use crate::broker;
use crate::cmd::Attr;
use crate::object::ProgObject;
use crate::{elsewhere, fds};
use bpftime_abi::attr::OneFd;
use bpftime_agent::run::clock;
use bpftime_shm::session::dir;
use bpftime_shm::session::inspect::{self, Request};
use bpftime_shm::session::page::Page;
use bpftime_shm::session::stats::{ROWS, Runs};
use bpftime_shm::session::wire::NO_STATS;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Name of the file.
const FILE: &str = "stats";
/// How long a session may take to have all its processes count.
const LIMIT: Duration = Duration::from_secs(5);

/// Whether runs in the tool are counted.
static COUNTING: AtomicBool = AtomicBool::new(false);
/// Whether this process has switched on and may be switching off.
static OURS: AtomicBool = AtomicBool::new(false);

/// BPF_ENABLE_STATS.
pub fn enable(attr: &Attr) -> Result<i64, Errno> {
    const BPF_STATS_RUN_TIME: u32 = 0;
    let a: OneFd = attr.get();
    if a.fd != BPF_STATS_RUN_TIME {
        return Err(Errno::INVAL);
    }
    let file = open(OFlags::CREATE)?;
    lock(&file, libc::F_OFD_SETLK, libc::F_RDLCK)?;
    OURS.store(true, Ordering::Relaxed);
    tell();
    fds::watch(&file);
    Ok(fds::give(file))
}

/// After a close that may have switched off: when this returns nothing is counted, unless somebody else wants it.
pub fn settle() {
    if OURS.load(Ordering::Relaxed) && !wanted() {
        OURS.store(false, Ordering::Relaxed);
        tell();
    }
}

fn tell() {
    let sockets = dir::candidates().into_iter().flat_map(|d| dir::sockets(&d));
    for path in sockets {
        let _ = inspect::ask(&path, Request::Stats, None, Some(LIMIT));
    }
}

/// Whether any tool wants runs to be counted.
pub fn wanted() -> bool {
    // A lock for writing would be in the way of those that are held.
    open(OFlags::empty()).and_then(|file| lock(&file, libc::F_OFD_GETLK, libc::F_WRLCK)).unwrap_or(false)
}

fn open(more: OFlags) -> Result<OwnedFd, Errno> {
    let dir = dir::own().map_err(|_| Errno::ACCESS)?;
    let flags = more | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(dir.join(FILE), flags, Mode::RUSR | Mode::WUSR)
}

/// Sets a lock of this open file, or tells whether another one's is in the way.
fn lock(file: &OwnedFd, command: i32, kind: i32) -> Result<bool, Errno> {
    // SAFETY: flock is plain data, for which zeroes are valid: the whole file, as OFD locks want it with pid 0.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    // SAFETY: an open file and a lock that lives through the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } < 0 {
        return Err(Errno::from_raw_os_error(crate::real::errno()));
    }
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// From the broker: this session counts, or no longer.
pub fn set(counting: bool) {
    COUNTING.store(counting, Ordering::Relaxed);
}

/// Runs a program in the tool, counted if that is asked for.
pub fn counted<T>(prog: &ProgObject, page: &Page, run: impl FnOnce() -> Option<T>) -> Option<T> {
    if !COUNTING.load(Ordering::Relaxed) {
        return run();
    }
    let (row, start) = (page.stats(prog.row.number()), clock::monotonic());
    let done = run();
    match (row, &done) {
        (Some(row), Some(_)) => row.count_here(clock::monotonic().wrapping_sub(start)),
        (Some(row), None) => row.miss(),
        (None, _) => {}
    }
    done
}

/// What is counted of a program in this session, and in that of a tool it was taken over from, once that is gone.
pub fn runs_here(prog: &ProgObject) -> Runs {
    let here =
        broker::running().and_then(|s| Some(s.page.stats(prog.row.number())?.runs())).unwrap_or_default();
    let before = prog.before.as_ref().filter(|(page, _)| page.ended());
    here + before.and_then(|(page, row)| Some(page.stats(*row)?.runs())).unwrap_or_default()
}

/// What is counted of a program anywhere.
pub fn runs_of(prog: &ProgObject) -> Runs {
    let also = prog.is_elsewhere.load(Ordering::Relaxed);
    let others = if also { elsewhere::runs(prog.spec.prog) } else { Runs::default() };
    runs_here(prog) + others
}

/// A row of the session page, given back when the program goes.
pub struct OwnRow(u32);

struct Rows {
    used: u32,
    free: Vec<u32>,
}

fn rows() -> MutexGuard<'static, Rows> {
    static TAKEN: Mutex<Rows> = Mutex::new(Rows { used: 0, free: Vec::new() });
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OwnRow {
    /// A row that no other program of this session has; none when all are taken.
    pub fn take() -> Self {
        let mut rows = rows();
        if let Some(row) = rows.free.pop() {
            return Self(row);
        }
        if rows.used == ROWS {
            return Self(NO_STATS);
        }
        rows.used += 1;
        Self(rows.used - 1)
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.0
    }
}

impl Drop for OwnRow {
    fn drop(&mut self) {
        if self.0 == NO_STATS {
            return;
        }
        if let Some(session) = broker::running() {
            session.page.stats(self.0).into_iter().for_each(|row| row.clear());
        }
        rows().free.push(self.0);
    }
}
