//! Who and where: helpers 7, 8, 14-16, 35, 37, 42, 80, 120, 123, 158, 173-175.

use super::map::map_of;
use super::{EINVAL, errno, helper};
use crate::arch::PtRegs;
use crate::arch::sys::syscall;
use crate::run::{Run, process, shadow};
use bpftime_abi::helper::REGISTERS_SIZE;
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

/// The thread's name, zero padded.
pub(super) fn comm() -> [u8; COMM_LEN] {
    process::comm()
}

helper! {
    /// 16 `get_current_comm(buf, size)`: the thread's name, zero padded.
    fn get_current_comm(run, buf, size) {
        if size == 0 {
            return EINVAL;
        }
        let comm = comm();
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
    /// 42 `get_numa_node_id()`.
    fn get_numa_node_id(run) { process::current_node().into() }
}

/// Device and inode of this process's pid namespace; 0 while unknown.
static PID_NAMESPACE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Looks the pid namespace up; the control thread calls it at start and after fork.
pub fn read_pid_namespace() {
    let Ok(st) = rustix::fs::stat("/proc/self/ns/pid") else { return };
    PID_NAMESPACE[0].store(st.st_dev, Ordering::Relaxed);
    PID_NAMESPACE[1].store(st.st_ino, Ordering::Relaxed);
}

helper! {
    /// 120 `get_ns_current_pid_tgid(dev, ino, nsdata, size)`: pid and tgid if the namespace is the thread's own.
    fn get_ns_current_pid_tgid(run, dev, ino, data, size) {
        let known = [dev, ino] == [0, 1].map(|n: usize| PID_NAMESPACE[n].load(Ordering::Relaxed));
        // SAFETY: data has room for size bytes by the helper's contract.
        unsafe {
            if size != 8 || !known {
                std::ptr::write_bytes(data as *mut u8, 0, size as u32 as usize);
                return EINVAL;
            }
            let ids = [run.tid(), (run.header.pid_tgid >> 32) as u32];
            (data as *mut [u32; 2]).write_unaligned(ids);
        }
        0
    }
}

helper! {
    /// 35 `get_current_task()`.
    fn get_current_task(run) { shadow::current(run) }
}

helper! {
    /// 158 `get_current_task_btf()`.
    fn get_current_task_btf(run) { shadow::current(run) }
}

/// The registers of a program that the tool runs itself.
static NO_REGISTERS: [u64; REGISTERS_SIZE as usize / 8] = [0; REGISTERS_SIZE as usize / 8];
const _: () = assert!(size_of::<PtRegs>() == REGISTERS_SIZE as usize);

helper! {
    /// 175 `task_pt_regs(task)`: the registers at the event.
    fn task_pt_regs(run, task) {
        run.regs().map_or(NO_REGISTERS.as_ptr() as u64, |regs| std::ptr::from_ref(regs) as u64)
    }
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
    /// 123 `get_current_ancestor_cgroup_id(level)`: the id of the ancestor at this depth, the root being 0; 0 below.
    fn get_current_ancestor_cgroup_id(run, level) {
        let depth = CGROUPS.iter().take_while(|c| c.load(Ordering::Relaxed) != 0).count();
        let above = depth.checked_sub(1).and_then(|d| d.checked_sub(level as u32 as usize));
        above.map_or(0, |n| CGROUPS[n].load(Ordering::Relaxed))
    }
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
