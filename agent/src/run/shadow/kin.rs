//! This process and its ancestors, as far as /proc tells: looked up by the control thread, which may open files, and
//! read by probes, which may not.

use rustix::time::ClockId;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Deepest ancestor that is remembered.
const DEPTH: usize = 16;

/// One process. Written by the control thread alone: pid to 0, the rest, pid. A reader takes the pid before and after.
struct Row {
    pid: AtomicU32,
    parent: AtomicU32,
    uid: AtomicU32,
    gid: AtomicU32,
    started: AtomicU64,
    comm: [AtomicU64; 2],
}

/// A process as it was last seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kin {
    /// Its parent.
    pub parent: u32,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Start, in nanoseconds since boot. The kernel tells it in ticks.
    pub started: u64,
    /// Name of its first thread.
    pub comm: [u8; 16],
}

static KIN: [Row; DEPTH] = [const { Row::new() }; DEPTH];
static CGROUP_NAME: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
/// Time since boot minus the monotonic clock: the time the machine was suspended.
static SUSPENDED: AtomicU64 = AtomicU64::new(0);

impl Row {
    const fn new() -> Self {
        Self {
            pid: AtomicU32::new(0),
            parent: AtomicU32::new(0),
            uid: AtomicU32::new(0),
            gid: AtomicU32::new(0),
            started: AtomicU64::new(0),
            comm: [const { AtomicU64::new(0) }; 2],
        }
    }

    fn store(&self, pid: u32, kin: &Kin) {
        self.pid.store(0, Ordering::Release);
        self.parent.store(kin.parent, Ordering::Relaxed);
        self.uid.store(kin.uid, Ordering::Relaxed);
        self.gid.store(kin.gid, Ordering::Relaxed);
        self.started.store(kin.started, Ordering::Relaxed);
        for (word, bytes) in self.comm.iter().zip(kin.comm.chunks_exact(8)) {
            word.store(bytes.try_into().map_or(0, u64::from_ne_bytes), Ordering::Relaxed);
        }
        // Release: pairs with the Acquire in `load`; who sees the pid sees what belongs to it.
        self.pid.store(pid, Ordering::Release);
    }

    fn load(&self, pid: u32) -> Option<Kin> {
        if self.pid.load(Ordering::Acquire) != pid {
            return None;
        }
        let mut comm = [0; 16];
        for (word, bytes) in self.comm.iter().zip(comm.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        let kin = Kin {
            parent: self.parent.load(Ordering::Relaxed),
            uid: self.uid.load(Ordering::Relaxed),
            gid: self.gid.load(Ordering::Relaxed),
            started: self.started.load(Ordering::Relaxed),
            comm,
        };
        // Acquire keeps the loads above before this one; a row that was rewritten meanwhile is not this pid's.
        std::sync::atomic::fence(Ordering::Acquire);
        (self.pid.load(Ordering::Relaxed) == pid).then_some(kin)
    }
}

/// What is known of process `pid`, this one or an ancestor.
pub fn of(pid: u32) -> Option<Kin> {
    if pid == 0 {
        return None;
    }
    KIN.iter().find_map(|row| row.load(pid))
}

/// The time the machine was suspended, in nanoseconds.
pub fn suspended() -> u64 {
    SUSPENDED.load(Ordering::Relaxed)
}

/// The last component of the path of this process's cgroup, zero padded.
pub fn cgroup_name() -> [u8; 128] {
    let mut name = [0; 128];
    for (word, bytes) in CGROUP_NAME.iter().zip(name.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
    name
}

/// Whether a program that is here asks for the task.
static USED: AtomicBool = AtomicBool::new(false);

/// Looks everything up again where it was looked up before: the control thread's first step in a forked child.
pub fn refresh_if_used() {
    if USED.load(Ordering::Relaxed) {
        refresh();
    }
}

/// Looks everything up again. The control thread calls it when a program that asks for the task comes, or is attached.
pub fn refresh() {
    USED.store(true, Ordering::Relaxed);
    let clock = |id| {
        let t = rustix::time::clock_gettime(id);
        t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
    };
    let suspended = clock(ClockId::Boottime).saturating_sub(clock(ClockId::Monotonic));
    SUSPENDED.store(suspended, Ordering::Relaxed);
    let mut pid = std::process::id();
    for row in &KIN {
        let kin = (pid != 0).then(|| look_up(pid)).flatten();
        row.store(if kin.is_some() { pid } else { 0 }, &kin.unwrap_or_default());
        pid = kin.map_or(0, |k| k.parent);
    }
    let path = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let last = path.lines().find_map(|l| l.strip_prefix("0::")?.rsplit('/').next()).unwrap_or_default();
    let mut name = [0; 128];
    let len = last.len().min(127);
    name[..len].copy_from_slice(&last.as_bytes()[..len]);
    for (word, bytes) in CGROUP_NAME.iter().zip(name.chunks_exact(8)) {
        word.store(bytes.try_into().map_or(0, u64::from_ne_bytes), Ordering::Relaxed);
    }
}

/// A process in /proc; `None` when it is gone, or hidden from this user.
fn look_up(pid: u32) -> Option<Kin> {
    use std::os::unix::fs::MetadataExt;
    let dir = format!("/proc/{pid}");
    let owner = std::fs::metadata(&dir).ok()?;
    let mut kin = parse_stat(&std::fs::read(format!("{dir}/stat")).ok()?)?;
    (kin.uid, kin.gid) = (owner.uid(), owner.gid());
    Some(kin)
}

/// proc_pid_stat(5): "pid (comm) state ppid ... starttime"; the name may hold anything, parentheses too.
fn parse_stat(stat: &[u8]) -> Option<Kin> {
    // The unit of /proc is USER_HZ, 100 on every architecture of ours.
    const TICK: u64 = 10_000_000;
    let open = stat.iter().position(|b| *b == b'(')?;
    let close = stat.iter().rposition(|b| *b == b')')?;
    let name = stat.get(open + 1..close)?;
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    let field = |n: usize| rest.split_whitespace().nth(n - 3)?.parse::<u64>().ok();
    let mut kin = Kin { parent: field(4)? as u32, started: field(22)? * TICK, ..Kin::default() };
    let len = name.len().min(15);
    kin.comm[..len].copy_from_slice(&name[..len]);
    Some(kin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_is_read_whole() {
        let stat = b"7 (a) b (c) S 3 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 250 0 0\n";
        let kin = parse_stat(stat).expect("a stat line");
        assert_eq!((kin.parent, kin.started), (3, 2_500_000_000));
        assert_eq!(&kin.comm[..8], b"a) b (c\0");
        assert_eq!(parse_stat(b"7 (a"), None);
    }

    #[test]
    fn a_process_knows_itself_and_its_parent() {
        refresh();
        let me = of(std::process::id()).expect("own row");
        assert_eq!(me.parent, std::os::unix::process::parent_id());
        assert!(of(me.parent).is_some_and(|p| p.comm[0] != 0));
        assert_eq!(of(0), None);
    }
}
