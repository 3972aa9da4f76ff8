//! sched_process_fork, sched_process_exec and sched_process_exit, where this process causes them: a child comes from a
//! call that we see, an end from exit or exit_group, a new program reports itself. What the kernel ends (a signal) is
//! not seen.

use super::{Listener, published, who};
use crate::arch::{PtRegs, sys};
use crate::hook::{ThreadBlock, is_own_thread, vfork_child};
use crate::run::enter::{Who, run_event};
use crate::run::{Hit, process};
use bpftime_shm::session::wire::TaskKind;
use std::ffi::CStr;
use std::sync::atomic::{AtomicU32, Ordering::*};

/// TASK_COMM_LEN.
const COMM: usize = 16;
/// Word of [`ThreadBlock::run`]: a vfork child reported its own birth.
const BORN: usize = 3;

/// Threads of ours that were made while calls are watched; a new one has nothing else yet by which to know it.
static OWN: [AtomicU32; 8] = [const { AtomicU32::new(0) }; 8];

/// Notes a thread of ours.
pub(super) fn note_own(tid: u32) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    OWN[NEXT.fetch_add(1, Relaxed) as usize % OWN.len()].store(tid, Relaxed);
}

fn is_own(tid: u32) -> bool {
    is_own_thread(tid as i32) || OWN.iter().any(|own| own.load(Relaxed) == tid)
}

/// What a program gets: the layout of the format file, with room for the longest path.
#[repr(C, align(8))]
struct Record<const N: usize>([u8; N]);

impl<const N: usize> Record<N> {
    /// The common header.
    fn new(tid: u32) -> Self {
        let mut record = Self([0; N]);
        record.put(4, &tid.to_ne_bytes());
        record
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// A `__data_loc` field at `field`, whose terminated string goes to `at`; gives the place behind it.
    fn text(&mut self, field: usize, at: usize, text: &[u8]) -> usize {
        let text = &text[..text.len().min(N.saturating_sub(at + 1))];
        self.put(field, &((text.len() as u32 + 1) << 16 | at as u32).to_ne_bytes());
        self.put(at, text);
        at + text.len() + 1
    }

    fn run(&self, list: &[Listener], who: &Who, regs: &PtRegs) {
        let hit = Hit::event(self.0.as_ptr() as u64, regs);
        for listener in list {
            run_event(&listener.entry, who, &hit);
        }
    }
}

fn listeners(kind: TaskKind) -> Option<&'static [Listener]> {
    published().map(|l| l.tasks[kind as usize].as_slice()).filter(|l| !l.is_empty())
}

/// The calling thread's name, without its padding.
fn comm(buf: &mut [u8; COMM]) -> &[u8] {
    *buf = process::comm();
    CStr::from_bytes_until_nul(buf).map_or(&[], CStr::to_bytes)
}

/// Behind a call that made a task: `ret` is its id in the parent, 0 in the child.
pub(super) fn forked(block: &ThreadBlock, ret: i64, regs: &PtRegs) {
    let borrowed = vfork_child(block);
    // A vfork child runs before its parent, and on its block: it speaks for it.
    let (child, reported) = match (ret, borrowed) {
        (0, Some((_, child))) => (child, false),
        (child, None) if child > 0 => (child as u32, block.run[BORN].swap(0, Relaxed) != 0),
        _ => return,
    };
    block.run[BORN].store(borrowed.is_some().into(), Relaxed);
    let Some(list) = listeners(TaskKind::Fork).filter(|_| !reported) else { return };
    let pid = process::pid();
    let thread = process::tid(block, pid);
    let who = Who { block, pid, tid: thread, thread };
    let mut name = [0; COMM];
    let name = comm(&mut name);
    let mut record = Record::<64>::new(thread);
    let next = record.text(8, 24, name);
    record.put(12, &thread.to_ne_bytes());
    record.text(16, next, name);
    record.put(20, &child.to_ne_bytes());
    record.run(list, &who, regs);
}

/// A new program begins.
pub(super) fn began(block: &ThreadBlock, file: &[u8], regs: &PtRegs) {
    let Some(list) = listeners(TaskKind::Exec) else { return };
    let who = who(block);
    let mut record = Record::<{ 24 + libc::PATH_MAX as usize }>::new(who.tid);
    record.text(8, 20, file);
    record.put(12, &who.tid.to_ne_bytes());
    record.put(16, &who.tid.to_ne_bytes());
    record.run(list, &who, regs);
}

/// Before exit, or exit_group, which ends every thread.
pub(super) fn ends(block: &ThreadBlock, all: bool, regs: &PtRegs) {
    let Some(list) = listeners(TaskKind::Exit) else { return };
    let me = who(block);
    let borrowed = vfork_child(block).is_some();
    let mut left = 0u32;
    let mut last = None;
    if !borrowed {
        others(me.tid, &mut |tid| {
            left += 1;
            last = Some(tid);
        });
    }
    end(list, &me, regs, left == 0);
    if all && !borrowed {
        others(me.tid, &mut |tid| {
            let who = Who { block, pid: me.pid, tid, thread: me.thread };
            end(list, &who, regs, Some(tid) == last);
        });
    }
}

fn end(list: &[Listener], who: &Who, regs: &PtRegs, group_dead: bool) {
    let mut name = [0; COMM];
    let mut record = Record::<40>::new(who.tid);
    record.put(8, comm(&mut name));
    record.put(24, &who.tid.to_ne_bytes());
    record.put(28, &priority(who.tid).to_ne_bytes());
    record.put(32, &[group_dead.into()]);
    record.run(list, who, regs);
}

/// The kernel's `prio`: 0 to 98 for real-time tasks, 100 to 139 by nice value for others.
fn priority(tid: u32) -> i32 {
    const HIGHEST_REALTIME: i32 = 99;
    let mut param = 0i32;
    // SAFETY: the kernel writes one int.
    let (policy, nice) = unsafe {
        let policy = sys::syscall(libc::SYS_sched_getscheduler, [tid as usize, 0, 0, 0, 0, 0]) as i32;
        sys::syscall(libc::SYS_sched_getparam, [tid as usize, &raw mut param as usize, 0, 0, 0, 0]);
        // 20 - nice, so that it is never negative.
        (
            policy,
            sys::syscall(libc::SYS_getpriority, [libc::PRIO_PROCESS as usize, tid as usize, 0, 0, 0, 0])
                as i32,
        )
    };
    if matches!(policy, libc::SCHED_FIFO | libc::SCHED_RR) { HIGHEST_REALTIME - param } else { 140 - nice }
}

/// Calls `f` with the program's threads but `me`.
fn others(me: u32, f: &mut dyn FnMut(u32)) {
    let flags = (libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) as usize;
    let path = c"/proc/self/task";
    // SAFETY: a terminated path; the descriptor is closed below.
    let fd = unsafe {
        sys::syscall(libc::SYS_openat, [libc::AT_FDCWD as usize, path.as_ptr() as usize, flags, 0, 0, 0])
    };
    if fd < 0 {
        return;
    }
    let mut buf = [0u64; 128];
    loop {
        // SAFETY: the kernel writes at most the buffer's length.
        let got = unsafe {
            sys::syscall(
                libc::SYS_getdents64,
                [fd as usize, buf.as_mut_ptr() as usize, size_of_val(&buf), 0, 0, 0],
            )
        };
        if got <= 0 {
            break;
        }
        // SAFETY: `got` bytes were written.
        let bytes = unsafe { std::slice::from_raw_parts(buf.as_ptr().cast::<u8>(), got as usize) };
        names(bytes).filter_map(number).filter(|tid| *tid != me && !is_own(*tid)).for_each(&mut *f);
    }
    // SAFETY: our own descriptor.
    unsafe { sys::syscall(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// The names in what getdents64 wrote.
fn names(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    const RECLEN: usize = 16;
    const NAME: usize = 19;
    std::iter::from_fn(move || {
        let len = u16::from_ne_bytes(bytes.get(RECLEN..RECLEN + 2)?.try_into().ok()?) as usize;
        let (entry, rest) = bytes.split_at_checked(len)?;
        bytes = rest;
        CStr::from_bytes_until_nul(entry.get(NAME..)?).ok().map(CStr::to_bytes)
    })
}

fn number(name: &[u8]) -> Option<u32> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_field_says_where_its_text_is() {
        let mut r = Record::<40>::new(7);
        assert_eq!(r.text(8, 24, b"ab"), 27);
        assert_eq!(r.0[4..12], [7, 0, 0, 0, 24, 0, 3, 0]);
        assert_eq!(r.0[24..27], *b"ab\0");
        // A text that does not fit is cut, and terminated.
        assert_eq!(r.text(8, 24, &[b'x'; 100]), 40);
        assert_eq!(r.0[38..40], [b'x', 0]);
    }

    #[test]
    fn the_calling_thread_is_not_among_the_others() {
        let me = sys::gettid() as u32;
        let mut seen = Vec::new();
        std::thread::scope(|s| {
            let (tx, rx) = std::sync::mpsc::channel::<()>();
            let t = s.spawn(move || {
                let _ = rx.recv();
                sys::gettid() as u32
            });
            others(me, &mut |tid| seen.push(tid));
            drop(tx);
            let tid = t.join().expect("thread");
            assert!(seen.contains(&tid) && !seen.contains(&me));
        });
    }

    #[test]
    fn an_ordinary_task_has_the_priority_of_its_nice_value() {
        let tid = sys::gettid() as u32;
        // SAFETY: takes no pointer.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        assert_eq!(priority(tid), 120 + nice);
    }
}
