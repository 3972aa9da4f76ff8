//! The value of a member: by system calls that need no descriptor, or from what the control thread has looked up.

use super::kin;
use crate::arch::sys::syscall;
use crate::run::{Run, clock, helpers, process};
use crate::signals;
use bpftime_abi::task::{Object, Place, Value};

/// A member's bytes, zero padded.
pub type Bytes = [u8; 128];

fn bytes(part: &[u8]) -> Bytes {
    let mut out = [0; 128];
    out[..part.len()].copy_from_slice(part);
    out
}

/// What `value` of the thread of `place` is.
pub fn value(run: &Run, place: Place, value: Value) -> Bytes {
    let thread = place.thread;
    let word = |n: u64| bytes(&n.to_ne_bytes());
    let half = |n: u32| bytes(&n.to_ne_bytes());
    let pointer = |object, thread| word(Place::of(object, thread).address());
    match value {
        Value::Tid => half(thread),
        Value::Tgid => half(tgid(run, thread)),
        Value::Comm => bytes(&comm(run, thread)),
        Value::StartBoottime => word(started(run, thread)),
        Value::StartTime => word(started(run, thread).saturating_sub(kin::suspended())),
        Value::Uid => half(id(run, thread, libc::SYS_getresuid, 0)),
        Value::Euid => half(id(run, thread, libc::SYS_getresuid, 1)),
        Value::Suid => half(id(run, thread, libc::SYS_getresuid, 2)),
        Value::Gid => half(id(run, thread, libc::SYS_getresgid, 0)),
        Value::Egid => half(id(run, thread, libc::SYS_getresgid, 1)),
        Value::Sgid => half(id(run, thread, libc::SYS_getresgid, 2)),
        Value::NsInum => half(namespace(place)),
        Value::Nodename => nodename(),
        Value::CgroupId if is_own(run, thread) => word(helpers::task::cgroup_id()),
        Value::CgroupName if is_own(run, thread) => kin::cgroup_name(),
        Value::CgroupId | Value::CgroupName => word(0),
        Value::Pointer(object) => pointer(object, thread),
        Value::Parent => pointer(Object::Task, parent(run, thread)),
        Value::Leader => pointer(Object::Task, tgid(run, thread)),
        Value::ExitCode => half(exit_code(run)),
    }
}

/// From the arguments of the call that ends the thread.
fn exit_code(run: &Run) -> u32 {
    let ends =
        |regs: &&crate::arch::PtRegs| [libc::SYS_exit, libc::SYS_exit_group].contains(&(regs.orig_ax as i64));
    run.regs().filter(ends).map_or(0, |regs| (regs.di as u32 & 0xff) << 8)
}

/// Whether the thread belongs to the process that runs the program.
fn is_own(run: &Run, thread: u32) -> bool {
    thread == run.tid() || thread == run.tgid()
}

/// A program gets from a thread to its leader and to parents, which are leaders too.
fn tgid(run: &Run, thread: u32) -> u32 {
    if thread == run.tid() { run.tgid() } else { thread }
}

fn comm(run: &Run, thread: u32) -> [u8; 16] {
    if thread != run.tid() {
        return kin::of(thread).unwrap_or_default().comm;
    }
    process::comm()
}

/// Nanoseconds since boot at which the process started, to the tick: threads count as their process, and a process
/// that was forked just now as starting now.
fn started(run: &Run, thread: u32) -> u64 {
    kin::of(tgid(run, thread)).map_or_else(clock::boottime, |k| k.started)
}

fn parent(run: &Run, thread: u32) -> u32 {
    if !is_own(run, thread) {
        return kin::of(thread).unwrap_or_default().parent;
    }
    // SAFETY: takes no pointer and cannot fail. 0 for a parent in another pid namespace.
    unsafe { syscall(libc::SYS_getppid, [0; 6]) as u32 }
}

/// The `which`-th (real, effective, saved) id that system call `nr` tells.
fn id(run: &Run, thread: u32, nr: i64, which: usize) -> u32 {
    if !is_own(run, thread) {
        let kin = kin::of(thread).unwrap_or_default();
        return if nr == libc::SYS_getresuid { kin.uid } else { kin.gid };
    }
    let mut ids = [0u32; 3];
    let [a, b, c] = ids.each_mut().map(|id| std::ptr::from_mut(id) as usize);
    // SAFETY: three words of ours to be filled.
    unsafe { syscall(nr, [a, b, c, 0, 0, 0]) };
    ids[which]
}

/// The inode number of a namespace, from the link in /proc: "net:[4026531840]". 0 where that is not to be had.
fn namespace(place: Place) -> u32 {
    let name: &[u8] = match place.object {
        Object::PidNs => b"pid_for_children",
        Object::UtsNs => b"uts",
        Object::MntNs => b"mnt",
        Object::NetNs => b"net",
        Object::IpcNs => b"ipc",
        Object::CgroupNs => b"cgroup",
        _ => return 0,
    };
    if signals::seccomp_filtered() {
        return 0;
    }
    let path = ns_path(place.thread, name);
    let mut link = [0u8; 64];
    let args = [path.as_ptr() as usize, link.as_mut_ptr() as usize, link.len(), 0, 0, 0];
    // SAFETY: a terminated path, and room for as many bytes as is said.
    let len = unsafe { syscall(libc::SYS_readlink, args) };
    let text = link.get(..len.max(0) as usize).unwrap_or_default();
    let digits = text.iter().copied().filter(u8::is_ascii_digit);
    digits.fold(0u32, |n, d| n.wrapping_mul(10).wrapping_add((d - b'0').into()))
}

/// `/proc/THREAD/ns/NAME`, terminated.
fn ns_path(thread: u32, name: &[u8]) -> [u8; 48] {
    let mut path = [0u8; 48];
    let mut len = 0;
    let mut push = |part: &[u8]| {
        path[len..len + part.len()].copy_from_slice(part);
        len += part.len();
    };
    push(b"/proc/");
    let (mut digits, mut n, mut at) = ([0u8; 10], thread, 10);
    while n > 0 || at == 10 {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
    }
    push(&digits[at..]);
    push(b"/ns/");
    push(name);
    path
}

fn nodename() -> Bytes {
    // `struct new_utsname`: six names of 65 bytes, the host's second.
    let mut names = [0u8; 65 * 6];
    // SAFETY: uname fills exactly this struct.
    unsafe { syscall(libc::SYS_uname, [names.as_mut_ptr() as usize, 0, 0, 0, 0, 0]) };
    bytes(&names[65..130])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_namespace_is_spelled_out() {
        let path = ns_path(4_194_303, b"pid_for_children");
        assert_eq!(path.split(|b| *b == 0).next(), Some(&b"/proc/4194303/ns/pid_for_children"[..]));
        assert_eq!(&ns_path(0, b"net")[..14], b"/proc/0/ns/net");
    }

    #[test]
    fn a_namespaces_number_is_the_links() {
        let own = std::fs::read_link("/proc/self/ns/net").expect("procfs");
        let number = namespace(Place::of(Object::NetNs, std::process::id()));
        assert_eq!(own.to_string_lossy(), format!("net:[{number}]"));
    }
}
