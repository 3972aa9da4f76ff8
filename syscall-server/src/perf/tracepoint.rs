//! Tracepoints that happen in user space too: system calls, and tasks that come and go.
//!
//! A tool names one by the id it read from tracefs: the kernel's where it may read that, ours where we served the file.

use crate::files::tracefs;
use crate::object::{PerfObject, ProgObject};
use bpftime_abi::perf::PerfEventAttr;
use bpftime_abi::syscall;
use bpftime_shm::session::wire::{CallContext, LinkKind, LinkSpec, Side, SyscallEvent, TaskEvent, TaskKind};
use rustix::io::Errno;
use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

/// A tracepoint of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracepoint {
    /// A system call.
    Call(SyscallEvent),
    /// A task.
    Task(TaskKind),
}

/// The event that `a` asks for; ENOENT, as an unknown id gets from the kernel, for one that only the kernel has.
pub fn event(a: &PerfEventAttr) -> Result<Tracepoint, Errno> {
    let id = u32::try_from(a.config).map_err(|_| Errno::INVAL)?;
    tracefs::by_id(id).or_else(|| kernel_ids().get(&id).copied()).ok_or(Errno::NOENT)
}

/// A link of `prog` to the event, for processes that `pid` allows.
pub fn spec(event: Tracepoint, cookie: u64, pid: i32, link: u32, prog: &ProgObject) -> LinkSpec {
    LinkSpec {
        kind: match event {
            Tracepoint::Call(call) => LinkKind::Syscall(SyscallEvent { cookie, ..call }),
            Tracepoint::Task(kind) => LinkKind::Task(TaskEvent { kind, cookie }),
        },
        ret: matches!(event, Tracepoint::Call(SyscallEvent { side: Side::Exit, .. })),
        ..super::clock::of_no_file(link, prog, pid)
    }
}

/// The link of a perf event that watches `event`.
pub fn spec_of(event: Tracepoint, perf: &PerfObject, link: u32, prog: &ProgObject, cookie: u64) -> LinkSpec {
    spec(event, cookie, perf.pid, link, prog)
}

/// What a raw tracepoint of this name is, if it is one of ours.
pub fn raw(name: &[u8]) -> Option<Tracepoint> {
    let side = match name {
        b"sys_enter" => Side::Enter,
        b"sys_exit" => Side::Exit,
        _ => return None,
    };
    Some(Tracepoint::Call(SyscallEvent { side, nr: None, context: CallContext::Arguments, cookie: 0 }))
}

/// The ids of the mounted tracefs, read once: some hundred small files.
fn kernel_ids() -> &'static HashMap<u32, Tracepoint> {
    static IDS: OnceLock<HashMap<u32, Tracepoint>> = OnceLock::new();
    IDS.get_or_init(|| {
        tracefs::ROOTS
            .iter()
            .map(|root| read_ids(Path::new(root)))
            .find(|m| !m.is_empty())
            .unwrap_or_default()
    })
}

fn read_ids(root: &Path) -> HashMap<u32, Tracepoint> {
    let mut ids = HashMap::new();
    for category in tracefs::CATEGORIES {
        let Ok(dir) = std::fs::read_dir(root.join("events").join(category)) else { continue };
        for entry in dir.flatten() {
            let id =
                std::fs::read_to_string(entry.path().join("id")).ok().and_then(|t| t.trim().parse().ok());
            if let (Some(id), Some(event)) = (id, entry.file_name().to_str().and_then(|n| named(category, n)))
            {
                ids.insert(id, event);
            }
        }
    }
    ids
}

/// The name of an event without its category.
pub fn name_of(event: &Tracepoint) -> String {
    let event = match event {
        Tracepoint::Task(kind) => {
            return tracefs::TASKS.iter().find(|t| t.kind == *kind).map_or("", |t| t.name).into();
        }
        Tracepoint::Call(event) => event,
    };
    let side = if event.side == Side::Enter { "sys_enter" } else { "sys_exit" };
    let row = event.nr.and_then(|nr| syscall::SYSCALLS.iter().find(|s| s.nr == nr));
    row.map_or_else(|| side.to_string(), |row| format!("{side}_{}", row.name))
}

/// The event of this name.
pub fn named(category: &str, name: &str) -> Option<Tracepoint> {
    if category == "sched" {
        return tracefs::TASKS.iter().find(|t| t.name == name).map(|t| Tracepoint::Task(t.kind));
    }
    let (side, call) = match name.strip_prefix("sys_enter") {
        Some(rest) => (Side::Enter, rest),
        None => (Side::Exit, name.strip_prefix("sys_exit")?),
    };
    let nr = match (category, call) {
        ("raw_syscalls", "") => None,
        ("syscalls", _) => Some(syscall::by_name(call.strip_prefix('_')?)?.nr),
        _ => return None,
    };
    Some(Tracepoint::Call(SyscallEvent { side, nr, context: CallContext::Record, cookie: 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(t: Tracepoint) -> Option<(Side, Option<u32>)> {
        if let Tracepoint::Call(e) = t { Some((e.side, e.nr)) } else { None }
    }

    #[test]
    fn names_become_events() {
        assert_eq!(named("syscalls", "sys_exit_kill").and_then(call), Some((Side::Exit, Some(62))));
        assert_eq!(named("raw_syscalls", "sys_enter").and_then(call), Some((Side::Enter, None)));
        assert_eq!(named("syscalls", "sys_enter"), None);
        assert_eq!(named("sched", "sched_process_exit"), Some(Tracepoint::Task(TaskKind::Exit)));
        assert_eq!(named("sched", "sched_switch"), None);
    }

    #[test]
    fn an_id_of_ours_is_known_and_a_foreign_one_is_not() {
        let attr = |config| PerfEventAttr { type_: 2, config, ..PerfEventAttr::default() };
        assert_eq!(event(&attr(0x1_0000)).map(call), Ok(Some((Side::Enter, None))));
        assert_eq!(event(&attr(0x7fff_ffff)), Err(Errno::NOENT));
    }
}
