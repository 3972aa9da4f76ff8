//! Who and where: helpers 7, 8, 14-16, 35, 37, 80, 173, 174.

use super::map::map_of;
use super::{EINVAL, errno, helper};
use crate::arch::sys::syscall;
use crate::run::{Run, shadow};
use rustix::io::Errno;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

helper! {
    /// 7 `get_prandom_u32()`: xorshift, seeded by the clock and the thread.
    fn get_prandom_u32(run) { random(run) as u32 as u64 }
}

fn random(run: &Run) -> u64 {
    static STATE: AtomicU64 = AtomicU64::new(0);
    // SAFETY: rdtsc has no operands and no effect but its result.
    let ticks = unsafe { std::arch::x86_64::_rdtsc() };
    // Threads race on the state on purpose: a lost update loses no randomness, the ticks differ.
    let mut x = STATE.load(Ordering::Relaxed) ^ ticks ^ (run.tid() as u64) << 40 ^ 0x9e37_79b9_7f4a_7c15;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    STATE.store(x, Ordering::Relaxed);
    x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
}

helper! {
    /// 8 `get_smp_processor_id()`: the CPU slot this run owns.
    fn get_smp_processor_id(run) { run.cpu() as u64 }
}

helper! {
    /// 14 `get_current_pid_tgid()`: tgid in the upper half.
    fn get_current_pid_tgid(run) { run.header.pid_tgid }
}

helper! {
    /// 15 `get_current_uid_gid()`: gid in the upper half.
    fn get_current_uid_gid(run) {
        // SAFETY: system calls without arguments or failure.
        let (uid, gid) = unsafe {
            (syscall(libc::SYS_getuid, [0; 6]), syscall(libc::SYS_getgid, [0; 6]))
        };
        (gid as u32 as u64) << 32 | uid as u32 as u64
    }
}

/// `TASK_COMM_LEN`.
const COMM_LEN: usize = 16;

helper! {
    /// 16 `get_current_comm(buf, size)`: the thread's name, zero padded.
    fn get_current_comm(run, buf, size) {
        if size == 0 {
            return EINVAL;
        }
        let mut comm = [0u8; COMM_LEN];
        // SAFETY: PR_GET_NAME writes at most 16 bytes.
        unsafe { syscall(libc::SYS_prctl, [libc::PR_GET_NAME as usize, comm.as_mut_ptr() as usize, 0, 0, 0, 0]) };
        let len = comm.iter().position(|b| *b == 0).unwrap_or(COMM_LEN - 1).min(size as usize - 1);
        // SAFETY: buf has room for size bytes by the helper's contract; len < size.
        unsafe {
            std::ptr::write_bytes(buf as *mut u8, 0, size as usize);
            std::ptr::copy_nonoverlapping(comm.as_ptr(), buf as *mut u8, len);
        }
        0
    }
}

helper! {
    /// 35 `get_current_task()`.
    fn get_current_task(run) { shadow::current(run) }
}

/// Deepest cgroup whose ancestors are remembered.
const CGROUP_DEPTH: usize = 32;

/// Ids of this process's cgroup and of its ancestors, innermost first; 0 ends the list.
static CGROUPS: [AtomicU64; CGROUP_DEPTH] = [const { AtomicU64::new(0) }; CGROUP_DEPTH];

/// Looks up the cgroup of this process; the control thread calls it at start and after fork.
pub fn read_cgroups() {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = text.lines().find_map(|l| l.strip_prefix("0::")).unwrap_or("/");
    // Directories of the cgroup2 mount carry the cgroup id as inode number.
    let dir = PathBuf::from(format!("/sys/fs/cgroup{path}"));
    let ids =
        dir.ancestors().filter(|d| d.starts_with("/sys/fs/cgroup")).filter_map(|d| rustix::fs::stat(d).ok());
    let ids = ids.map(|st| st.st_ino).chain(std::iter::repeat(0));
    CGROUPS.iter().zip(ids).for_each(|(slot, id)| slot.store(id, Ordering::Relaxed));
}

helper! {
    /// 80 `get_current_cgroup_id()`.
    fn get_current_cgroup_id(run) { cgroup_id() }
}

/// The id of this process's cgroup.
pub fn cgroup_id() -> u64 {
    CGROUPS[0].load(Ordering::Relaxed).max(1)
}

helper! {
    /// 37 `current_task_under_cgroup(map, index)`: 1 when the process is in the cgroup or below it, else 0.
    fn current_task_under_cgroup(run, map, index) {
        // SAFETY: a linked constant of the program.
        let map = unsafe { &map_of(map).map };
        let Some(array) = map.fd_array() else { return EINVAL };
        if index >= map.def().max_entries as u64 {
            return errno(Errno::TOOBIG);
        }
        // The server stores the low half of the cgroup id.
        let Some(id) = array.object(index as u32) else { return errno(Errno::AGAIN) };
        let mine = CGROUPS.iter().map(|c| c.load(Ordering::Relaxed)).take_while(|c| *c != 0);
        mine.into_iter().any(|c| c as u32 == id).into()
    }
}

helper! {
    /// 173 `get_func_ip(ctx)`.
    fn get_func_ip(run) { run.header.func_ip }
}

helper! {
    /// 174 `get_attach_cookie(ctx)`.
    fn get_attach_cookie(run) { run.header.cookie }
}
