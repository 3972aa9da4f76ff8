//! The other threads, as /proc shows them.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::time::Duration;

/// What /proc/self/task/TID/status says that we need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Status {
    blocked: u64,
    switches: u64,
}

/// The process's threads.
pub fn tids() -> Vec<i32> {
    let Ok(dir) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

fn status(tid: i32) -> Option<Status> {
    // Room for all of it: files of /proc have no size, and growing as one reads takes a dozen system calls.
    let mut text = Vec::with_capacity(4096);
    File::open(format!("/proc/self/task/{tid}/status")).ok()?.read_to_end(&mut text).ok()?;
    parse(&String::from_utf8_lossy(&text))
}

fn parse(text: &str) -> Option<Status> {
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let number = |name: &str| field(name)?.parse::<u64>().ok();
    Some(Status {
        blocked: u64::from_str_radix(field("SigBlk:")?, 16).ok()?,
        switches: number("voluntary_ctxt_switches:")? + number("nonvoluntary_ctxt_switches:")?,
    })
}

/// Whether the thread blocks SIGTRAP at this moment, or is gone.
pub fn is_blocked(tid: i32) -> bool {
    status(tid).is_none_or(|s| s.blocked & 1 << (libc::SIGTRAP - 1) != 0)
}

/// Whether a debugger, or strace, is attached to the process.
pub fn is_debugged() -> bool {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    text.lines().find_map(|l| l.strip_prefix("TracerPid:")).is_some_and(|pid| pid.trim() != "0")
}

/// A thread that blocks SIGTRAP, which an int3 would kill. A thread that is being created or about to end blocks
/// everything for a moment, in code of libc's own: only one that keeps it blocked counts. Libc's own masks include its
/// internal signals 32 and 33, which it never lets the application block; such a mask does not last.
pub(super) fn blocks_trap() -> Option<i32> {
    const LOOKS: u32 = 20;
    const INTERNAL: u64 = 1 << 31 | 1 << 32;
    let mask = |tid: &i32| status(*tid).map_or(0, |s| s.blocked);
    let blocks = |tid: &i32| mask(tid) & 1 << (libc::SIGTRAP - 1) != 0;
    let mut found: Vec<i32> = tids().into_iter().filter(blocks).collect();
    for _ in 0..LOOKS {
        if found.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
        found.retain(blocks);
    }
    found.into_iter().find(|tid| mask(tid) & INTERNAL != INTERNAL)
}

/// Threads that may still be suspended inside a window: those that have not been seen elsewhere since the int3
/// were written.
#[derive(Debug)]
pub(super) struct Suspects(HashMap<i32, Seen>);

/// A thread when the int3 had been written: context switches, and nanoseconds on a processor.
#[derive(Debug, Clone, Copy)]
struct Seen {
    switches: u64,
    ran: u64,
}

impl Suspects {
    /// All threads but the calling one. Threads born later start outside.
    pub fn all() -> Self {
        let me = crate::arch::sys::gettid();
        Self(tids().into_iter().filter(|t| *t != me).filter_map(|t| Some((t, seen(t)?))).collect())
    }

    /// Drops the threads that are gone, blocked at a place outside the windows, or ran since: a suspended thread that
    /// runs inside a window executes an int3 (or a jump that leads out). Two switches: one could be a switch out
    /// right after the switch in, before any instruction of the program. A thread that never stops running is
    /// recognised by its processor time, with room for a page fault at the very instruction.
    pub fn clear(&mut self, windows: &[Range<usize>]) -> bool {
        const LONG: u64 = 50_000_000;
        self.0.retain(|tid, before| {
            let Some(now) = seen(*tid) else { return false };
            let ran = now.switches >= before.switches + 2 || now.ran >= before.ran + LONG;
            !ran && !blocked_outside(*tid, windows)
        });
        self.0.is_empty()
    }
}

fn seen(tid: i32) -> Option<Seen> {
    let schedstat = std::fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).unwrap_or_default();
    let ran = schedstat.split_ascii_whitespace().next().and_then(|w| w.parse().ok()).unwrap_or(0);
    Some(Seen { switches: status(tid)?.switches, ran })
}

/// /proc/self/task/TID/syscall: "running", or numbers that end in the stack and instruction pointer.
fn blocked_outside(tid: i32, windows: &[Range<usize>]) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/self/task/{tid}/syscall")) else { return false };
    let pc = text.split_ascii_whitespace().nth_back(0).and_then(|w| w.strip_prefix("0x"));
    pc.and_then(|pc| usize::from_str_radix(pc, 16).ok())
        .is_some_and(|pc| !windows.iter().any(|w| w.contains(&pc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_blocks_sigtrap_is_found() {
        let s = "Name:\tx\nSigBlk:\t0000000000000010\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t2\n";
        assert_eq!(parse(s), Some(Status { blocked: 16, switches: 9 }));
    }
}
