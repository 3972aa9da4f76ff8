//! Tracepoints that happen in user space too: system calls.
//!
//! A tool names one by the id it read from tracefs: the kernel's where it may read that, ours where we served the file.

use crate::files::tracefs;
use crate::object::{PerfObject, ProgObject};
use bpftime_abi::perf::PerfEventAttr;
use bpftime_abi::syscall;
use bpftime_shm::session::wire::{CallContext, LinkKind, LinkSpec, Side, SyscallEvent};
use rustix::io::Errno;
use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

/// The event that `a` asks for; ENOENT, as an unknown id gets from the kernel, for one that only the kernel has.
pub fn event(a: &PerfEventAttr) -> Result<SyscallEvent, Errno> {
    let id = u32::try_from(a.config).map_err(|_| Errno::INVAL)?;
    tracefs::by_id(id).or_else(|| kernel_ids().get(&id).copied()).ok_or(Errno::NOENT)
}

/// A link of `prog` to the event, for processes that `pid` allows.
pub fn spec(event: SyscallEvent, pid: i32, link: u32, prog: &ProgObject) -> LinkSpec {
    LinkSpec {
        kind: LinkKind::Syscall(event),
        link,
        prog: prog.spec.prog,
        ret: event.side == Side::Exit,
        pid,
        dev: 0,
        ino: 0,
        path: Vec::new(),
        points: Vec::new(),
    }
}

/// The link of a perf event that watches `event`.
pub fn spec_of(
    event: SyscallEvent,
    perf: &PerfObject,
    link: u32,
    prog: &ProgObject,
    cookie: u64,
) -> LinkSpec {
    spec(SyscallEvent { cookie, ..event }, perf.pid, link, prog)
}

/// What a raw tracepoint of this name is, if it is one of ours.
pub fn raw(name: &[u8], cookie: u64) -> Option<SyscallEvent> {
    let side = match name {
        b"sys_enter" => Side::Enter,
        b"sys_exit" => Side::Exit,
        _ => return None,
    };
    Some(SyscallEvent { side, nr: None, context: CallContext::Arguments, cookie })
}

/// The ids of the mounted tracefs, read once: some hundred small files.
fn kernel_ids() -> &'static HashMap<u32, SyscallEvent> {
    static IDS: OnceLock<HashMap<u32, SyscallEvent>> = OnceLock::new();
    IDS.get_or_init(|| {
        tracefs::ROOTS
            .iter()
            .map(|root| read_ids(Path::new(root)))
            .find(|m| !m.is_empty())
            .unwrap_or_default()
    })
}

fn read_ids(root: &Path) -> HashMap<u32, SyscallEvent> {
    let mut ids = HashMap::new();
    for category in ["syscalls", "raw_syscalls"] {
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
pub fn name_of(event: &SyscallEvent) -> String {
    let side = if event.side == Side::Enter { "sys_enter" } else { "sys_exit" };
    let row = event.nr.and_then(|nr| syscall::SYSCALLS.iter().find(|s| s.nr == nr));
    row.map_or_else(|| side.to_string(), |row| format!("{side}_{}", row.name))
}

/// The event of this name.
pub fn named(category: &str, name: &str) -> Option<SyscallEvent> {
    let (side, call) = match name.strip_prefix("sys_enter") {
        Some(rest) => (Side::Enter, rest),
        None => (Side::Exit, name.strip_prefix("sys_exit")?),
    };
    let nr = match (category, call) {
        ("raw_syscalls", "") => None,
        ("syscalls", _) => Some(syscall::by_name(call.strip_prefix('_')?)?.nr),
        _ => return None,
    };
    Some(SyscallEvent { side, nr, context: CallContext::Record, cookie: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_events() {
        let kill = named("syscalls", "sys_exit_kill").map(|e| (e.side, e.nr));
        assert_eq!(kill, Some((Side::Exit, Some(62))));
        let any = named("raw_syscalls", "sys_enter").map(|e| (e.side, e.nr));
        assert_eq!(any, Some((Side::Enter, None)));
        assert_eq!(named("syscalls", "sys_enter"), None);
        assert_eq!(named("sched", "sched_switch"), None);
    }

    #[test]
    fn an_id_of_ours_is_known_and_a_foreign_one_is_not() {
        let attr = |config| PerfEventAttr { type_: 2, config, ..PerfEventAttr::default() };
        assert_eq!(event(&attr(0x1_0000)).map(|e| e.nr), Ok(None));
        assert_eq!(event(&attr(0x7fff_ffff)).map(|e| e.nr), Err(Errno::NOENT));
    }
}
