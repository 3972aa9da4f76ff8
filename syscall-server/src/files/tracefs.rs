//! The part of tracefs that describes system call events, from the table of system calls.

use bpftime_abi::syscall::{SYSCALLS, Syscall};
use bpftime_shm::session::wire::{CallContext, Side, SyscallEvent};
use std::fmt::Write;

/// Where tracefs may be mounted.
pub const ROOTS: &[&str] = &["/sys/kernel/tracing/", "/sys/kernel/debug/tracing/"];

/// First id of our events, beyond what kernels give out, so that an id tells whose it is.
const FIRST_ID: u32 = 0x1_0000;

/// The contents of a file below tracefs.
pub fn contents(path: &str) -> Option<Vec<u8>> {
    let below = ROOTS.iter().find_map(|root| path.strip_prefix(root))?;
    match below {
        "available_events" => Some(available_events().into_bytes()),
        // libbcc looks for events of its own in these at detach; ours are never in them.
        "uprobe_events" | "kprobe_events" => Some(Vec::new()),
        _ => {
            let (category, rest) = below.strip_prefix("events/")?.split_once('/')?;
            let (event, file) = rest.split_once('/')?;
            let event = find(category, event)?;
            match file {
                "id" => Some(format!("{}\n", event.id()).into_bytes()),
                "format" => Some(event.format().into_bytes()),
                _ => None,
            }
        }
    }
}

/// Whether `path` is a directory of the tree that [`contents`] serves.
pub fn is_directory(path: &str) -> bool {
    let path = format!("{}/", path.trim_end_matches('/'));
    let Some(below) = ROOTS.iter().find_map(|root| path.strip_prefix(root)) else { return false };
    let parts: Vec<&str> = below.split_terminator('/').collect();
    match parts[..] {
        [] | ["events"] => true,
        ["events", category] => ["syscalls", "raw_syscalls"].contains(&category),
        ["events", category, event] => find(category, event).is_some(),
        _ => false,
    }
}

/// The system call event that has this id of ours.
pub fn by_id(id: u32) -> Option<SyscallEvent> {
    let n = id.checked_sub(FIRST_ID)? as usize;
    let (side, context) = (if n.is_multiple_of(2) { Side::Enter } else { Side::Exit }, CallContext::Record);
    let nr = match n {
        0 | 1 => None,
        _ => Some(SYSCALLS.get(n / 2 - 1)?.nr),
    };
    Some(SyscallEvent { side, nr, context, cookie: 0 })
}

/// A tracepoint of ours.
enum Event {
    Enter(usize, &'static Syscall),
    Exit(usize, &'static Syscall),
    RawEnter,
    RawExit,
}

fn find(category: &str, name: &str) -> Option<Event> {
    let row = |n: &str| SYSCALLS.iter().enumerate().find(|(_, s)| s.name == n);
    match (category, name) {
        ("raw_syscalls", "sys_enter") => Some(Event::RawEnter),
        ("raw_syscalls", "sys_exit") => Some(Event::RawExit),
        ("syscalls", _) => {
            let enter = name.strip_prefix("sys_enter_").and_then(row).map(|(i, s)| Event::Enter(i, s));
            enter.or_else(|| name.strip_prefix("sys_exit_").and_then(row).map(|(i, s)| Event::Exit(i, s)))
        }
        _ => None,
    }
}

impl Event {
    fn id(&self) -> u32 {
        match self {
            Self::RawEnter => FIRST_ID,
            Self::RawExit => FIRST_ID + 1,
            Self::Enter(i, _) => FIRST_ID + 2 + 2 * *i as u32,
            Self::Exit(i, _) => FIRST_ID + 3 + 2 * *i as u32,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Enter(_, s) => format!("sys_enter_{}", s.name),
            Self::Exit(_, s) => format!("sys_exit_{}", s.name),
            Self::RawEnter => "sys_enter".into(),
            Self::RawExit => "sys_exit".into(),
        }
    }

    /// The format file: the kernel's layout of the record.
    fn format(&self) -> String {
        let mut out = format!("name: {}\nID: {}\nformat:\n", self.name(), self.id());
        field(&mut out, "unsigned short common_type", 0, 2, 0);
        field(&mut out, "unsigned char common_flags", 2, 1, 0);
        field(&mut out, "unsigned char common_preempt_count", 3, 1, 0);
        field(&mut out, "int common_pid", 4, 4, 1);
        out.push('\n');
        match self {
            Self::Enter(_, s) => {
                field(&mut out, "int __syscall_nr", 8, 4, 1);
                for (i, (ty, name)) in s.args.iter().enumerate() {
                    field(&mut out, &format!("{} {name}", shown(ty)), 16 + 8 * i, 8, 0);
                }
            }
            Self::Exit(..) => {
                field(&mut out, "int __syscall_nr", 8, 4, 1);
                field(&mut out, "long ret", 16, 8, 1);
            }
            Self::RawEnter => {
                field(&mut out, "long id", 8, 8, 1);
                field(&mut out, "unsigned long args[6]", 16, 48, 0);
            }
            Self::RawExit => {
                field(&mut out, "long id", 8, 8, 1);
                field(&mut out, "long ret", 16, 8, 1);
            }
        }
        out.push_str("\nprint fmt: \"\"\n");
        out
    }
}

/// The type, as C knows it where the kernel's BTF is not there to look it up in: bpftrace would refuse a `pid_t` of 8
/// bytes. Names, offsets and sizes stay the kernel's.
fn shown(ty: &str) -> &str {
    if crate::btf::is_ours() { portable(ty) } else { ty }
}

fn portable(ty: &str) -> &str {
    let bare = ty.trim_start_matches("const ");
    let known = ["char ", "struct ", "union ", "void ", "int ", "unsigned ", "long "];
    match bare {
        _ if bare.contains('*') && known.iter().any(|k| bare.starts_with(k)) => ty,
        _ if bare.contains('*') => "const void *",
        "int" | "long" | "pid_t" | "off_t" | "loff_t" | "key_t" | "clockid_t" | "timer_t" | "mqd_t"
        | "rwf_t" | "qid_t" | "key_serial_t" => "long",
        _ => "unsigned long",
    }
}

fn field(out: &mut String, decl: &str, offset: usize, size: usize, signed: u8) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "\tfield:{decl};\toffset:{offset};\tsize:{size};\tsigned:{signed};");
}

fn available_events() -> String {
    let mut out = String::from("raw_syscalls:sys_exit\nraw_syscalls:sys_enter\n");
    for s in SYSCALLS {
        let _ = writeln!(out, "syscalls:sys_exit_{0}\nsyscalls:sys_enter_{0}", s.name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_ours_below_tracefs_are_served() {
        assert_eq!(contents("/sys/kernel/tracing/uprobe_events"), Some(vec![]));
        assert!(contents("/sys/kernel/debug/tracing/events/syscalls/sys_enter_kill/id").is_some());
        assert!(contents("/sys/kernel/tracing/events/syscalls/sys_enter_nosuch/id").is_none());
        assert!(contents("/sys/kernel/tracing/trace").is_none());
        assert!(contents("/etc/passwd").is_none());
    }

    #[test]
    fn ids_are_unique() {
        let ids =
            SYSCALLS.iter().enumerate().flat_map(|(i, s)| [Event::Enter(i, s).id(), Event::Exit(i, s).id()]);
        let all: std::collections::HashSet<_> =
            ids.chain([Event::RawEnter.id(), Event::RawExit.id()]).collect();
        assert_eq!(all.len(), 2 * SYSCALLS.len() + 2);
    }

    /// Fields (not ids, which are each kernel's own) against the kernel's files, where they can be read.
    #[test]
    fn formats_are_the_kernels() {
        let Some(root) = ROOTS.iter().find(|r| std::path::Path::new(&format!("{r}events/syscalls")).exists())
        else {
            println!("tracefs is not readable here: nothing to compare with");
            return;
        };
        for (i, s) in SYSCALLS.iter().enumerate() {
            for e in [Event::Enter(i, s), Event::Exit(i, s)] {
                let path = format!("{root}events/syscalls/{}/format", e.name());
                let Ok(theirs) = std::fs::read_to_string(path) else { continue };
                let fields = |t: &str| {
                    t.lines()
                        .filter_map(|l| l.strip_prefix("\tfield:")?.split_once(";\t"))
                        .map(|(decl, place)| (decl.rsplit(' ').next().map(str::to_owned), place.to_owned()))
                        .collect::<Vec<_>>()
                };
                assert_eq!(fields(&e.format()), fields(&theirs), "{}", e.name());
            }
        }
    }
}
