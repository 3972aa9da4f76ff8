//! TASK_STORAGE by pidfd: the tool names a thread by a descriptor, shared memory by its id.

use crate::fds;
use crate::object::MapObject;
use bpftime_agent::run::clock;
use bpftime_shm::TaskStorage;
use rustix::fd::AsRawFd;
use rustix::io::Errno;

/// A thread that a pidfd names.
struct Thread {
    /// Its id in its own pid namespace, which is how its programs know it.
    tid: u32,
    /// Nanoseconds since boot.
    began: u64,
}

/// BPF_MAP_LOOKUP_ELEM.
pub fn lookup(
    map: &MapObject,
    storage: &TaskStorage,
    key: &[u8],
    value: &mut [u8],
    flags: u64,
) -> Result<(), Errno> {
    let thread = thread(storage, key)?;
    map.handle.map.sys_lookup(&thread.tid.to_ne_bytes(), value, flags)
}

/// BPF_MAP_UPDATE_ELEM.
pub fn update(
    map: &MapObject,
    storage: &TaskStorage,
    key: &[u8],
    value: &[u8],
    flags: u64,
) -> Result<(), Errno> {
    const BPF_F_LOCK: u64 = 4;
    if flags & !BPF_F_LOCK > 2 {
        return Err(Errno::INVAL);
    }
    map.handle.map.set_storage(thread(storage, key)?.tid, value, clock::boottime(), flags)
}

/// BPF_MAP_DELETE_ELEM.
pub fn delete(map: &MapObject, storage: &TaskStorage, key: &[u8]) -> Result<(), Errno> {
    let thread = thread(storage, key)?;
    map.handle.map.sys_delete(&thread.tid.to_ne_bytes())
}

/// The thread behind the pidfd, and what an earlier one of the same id left forgotten.
fn thread(storage: &TaskStorage, key: &[u8]) -> Result<Thread, Errno> {
    let fd = key.first_chunk().map(|b| i32::from_ne_bytes(*b)).ok_or(Errno::INVAL)?;
    let thread = find(fds::borrow(fd)?.as_raw_fd())?;
    storage.forget_older(thread.tid, thread.began);
    Ok(thread)
}

/// EBADF for what is no pidfd, ENOENT for a thread that is gone.
fn find(fd: i32) -> Result<Thread, Errno> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).map_err(|_| Errno::BADF)?;
    let last = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next_back()?.parse::<i64>().ok()
    };
    let pid = last("Pid:").ok_or(Errno::BADF)?;
    // The innermost namespace's number comes last; without nested namespaces there is one.
    let tid = last("NSpid:").unwrap_or(pid);
    if pid <= 0 || tid <= 0 {
        return Err(Errno::NOENT);
    }
    Ok(Thread { tid: tid as u32, began: began(pid).ok_or(Errno::NOENT)? })
}

/// When a thread began. Its field 22 counts ticks, so this is up to one too early, never too late.
fn began(pid: i64) -> Option<u64> {
    const TICK: u64 = 1_000_000_000 / 100; // USER_HZ, which is 100 on every architecture we run on
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    Some(after_name.split_whitespace().nth(22 - 3)?.parse::<u64>().ok()? * TICK)
}
