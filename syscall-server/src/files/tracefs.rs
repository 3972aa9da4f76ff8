//! The part of tracefs that describes the events of user space: system calls, from their table, and tasks.

use crate::perf::tracepoint::Tracepoint;
use bpftime_abi::syscall::{SYSCALLS, Syscall};
use bpftime_shm::session::wire::{CallContext, Side, SyscallEvent, TaskKind};
use std::fmt::Write;

/// Where tracefs may be mounted.
pub const ROOTS: &[&str] = &["/sys/kernel/tracing/", "/sys/kernel/debug/tracing/"];

/// The categories of our events.
pub const CATEGORIES: [&str; 3] = ["syscalls", "raw_syscalls", "sched"];

/// First id of our events, beyond what kernels give out, so that an id tells whose it is.
const FIRST_ID: u32 = 0x1_0000;

/// Whether `path` is a file through which the kernel makes probes.
pub fn makes_probes(path: &[u8]) -> bool {
    let below = ROOTS.iter().find_map(|root| path.strip_prefix(root.as_bytes()));
    matches!(below, Some(b"uprobe_events" | b"kprobe_events"))
}

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

/// A directory of the tree that [`contents`] serves.
pub enum Directory {
    Root,
    Events,
    Category(&'static str),
    Event,
}

/// The directory at `path`, if it is one of ours.
pub fn directory(path: &str) -> Option<Directory> {
    let path = format!("{}/", path.trim_end_matches('/'));
    let below = ROOTS.iter().find_map(|root| path.strip_prefix(root))?;
    let parts: Vec<&str> = below.split_terminator('/').collect();
    match parts[..] {
        [] => Some(Directory::Root),
        ["events"] => Some(Directory::Events),
        ["events", category] => CATEGORIES.into_iter().find(|c| *c == category).map(Directory::Category),
        ["events", category, event] => find(category, event).map(|_| Directory::Event),
        _ => None,
    }
}

impl Directory {
    /// Directories and files in it.
    pub fn names(&self) -> (Vec<String>, Vec<String>) {
        let owned = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        let none = Vec::new;
        match self {
            Self::Root => (
                owned(&["events"]),
                owned(&["available_events", "kprobe_events", "trace_pipe", "uprobe_events"]),
            ),
            Self::Events => (owned(&CATEGORIES), none()),
            Self::Category(c) => (all().filter(|e| e.category() == *c).map(|e| e.name()).collect(), none()),
            Self::Event => (none(), owned(&["format", "id"])),
        }
    }
}

/// Every event, in the order of the ids.
fn all() -> impl Iterator<Item = Event> {
    (0..).map_while(at)
}

/// What [`by_id`] finds.
fn at(n: usize) -> Option<Event> {
    let calls = 2 * SYSCALLS.len();
    match n {
        0 => Some(Event::RawEnter),
        1 => Some(Event::RawExit),
        _ if n < 2 + calls => {
            let call = SYSCALLS.get(n / 2 - 1)?;
            Some(if n.is_multiple_of(2) {
                Event::Enter(n / 2 - 1, call)
            } else {
                Event::Exit(n / 2 - 1, call)
            })
        }
        _ => TASKS.get(n - 2 - calls).map(|t| Event::Task(n - 2 - calls, t)),
    }
}

/// The event that has this id of ours.
pub fn by_id(id: u32) -> Option<Tracepoint> {
    let call =
        |side, nr| Tracepoint::Call(SyscallEvent { side, nr, context: CallContext::Record, cookie: 0 });
    Some(match at(id.checked_sub(FIRST_ID)? as usize)? {
        Event::RawEnter => call(Side::Enter, None),
        Event::RawExit => call(Side::Exit, None),
        Event::Enter(_, s) => call(Side::Enter, Some(s.nr)),
        Event::Exit(_, s) => call(Side::Exit, Some(s.nr)),
        Event::Task(_, t) => Tracepoint::Task(t.kind),
    })
}

/// A tracepoint of the scheduler that a process can tell of itself.
pub struct Task {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: TaskKind,
    /// Declaration, offset, size and sign of each field.
    fields: &'static [(&'static str, usize, usize, u8)],
    print: &'static str,
}

/// In the order of their ids.
pub const TASKS: &[Task] = &[
    Task {
        name: "sched_process_fork",
        kind: TaskKind::Fork,
        fields: &[
            ("__data_loc char[] parent_comm", 8, 4, 0),
            ("pid_t parent_pid", 12, 4, 1),
            ("__data_loc char[] child_comm", 16, 4, 0),
            ("pid_t child_pid", 20, 4, 1),
        ],
        print: r#""comm=%s pid=%d child_comm=%s child_pid=%d", __get_str(parent_comm), REC->parent_pid, __get_str(child_comm), REC->child_pid"#,
    },
    Task {
        name: "sched_process_exec",
        kind: TaskKind::Exec,
        fields: &[
            ("__data_loc char[] filename", 8, 4, 0),
            ("pid_t pid", 12, 4, 1),
            ("pid_t old_pid", 16, 4, 1),
        ],
        print: r#""filename=%s pid=%d old_pid=%d", __get_str(filename), REC->pid, REC->old_pid"#,
    },
    Task {
        name: "sched_process_exit",
        kind: TaskKind::Exit,
        fields: &[
            ("char comm[16]", 8, 16, 0),
            ("pid_t pid", 24, 4, 1),
            ("int prio", 28, 4, 1),
            ("bool group_dead", 32, 1, 0),
        ],
        print: r#""comm=%s pid=%d prio=%d group_dead=%s", REC->comm, REC->pid, REC->prio, REC->group_dead ? "true" : "false""#,
    },
];

/// The end of the last field of a task's record.
pub fn task_record_size(kind: TaskKind) -> u32 {
    let fields = TASKS.iter().filter(|t| t.kind == kind).flat_map(|t| t.fields);
    fields.map(|(_, offset, size, _)| (offset + size) as u32).max().unwrap_or(0)
}

/// A tracepoint of ours.
enum Event {
    Enter(usize, &'static Syscall),
    Exit(usize, &'static Syscall),
    RawEnter,
    RawExit,
    Task(usize, &'static Task),
}

fn find(category: &str, name: &str) -> Option<Event> {
    let row = |n: &str| SYSCALLS.iter().enumerate().find(|(_, s)| s.name == n);
    match (category, name) {
        ("raw_syscalls", "sys_enter") => Some(Event::RawEnter),
        ("raw_syscalls", "sys_exit") => Some(Event::RawExit),
        ("sched", _) => {
            TASKS.iter().enumerate().find(|(_, t)| t.name == name).map(|(i, t)| Event::Task(i, t))
        }
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
            Self::Task(i, _) => FIRST_ID + 2 + 2 * SYSCALLS.len() as u32 + *i as u32,
        }
    }

    fn category(&self) -> &'static str {
        match self {
            Self::RawEnter | Self::RawExit => "raw_syscalls",
            Self::Task(..) => "sched",
            Self::Enter(..) | Self::Exit(..) => "syscalls",
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Enter(_, s) => format!("sys_enter_{}", s.name),
            Self::Exit(_, s) => format!("sys_exit_{}", s.name),
            Self::RawEnter => "sys_enter".into(),
            Self::RawExit => "sys_exit".into(),
            Self::Task(_, t) => t.name.into(),
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
            Self::Task(_, t) => t
                .fields
                .iter()
                .for_each(|(decl, at, size, signed)| field(&mut out, &shown_task(decl), *at, *size, *signed)),
        }
        let _ = writeln!(out, "\nprint fmt: {}", self.print());
        out
    }

    /// How the kernel prints a record.
    fn print(&self) -> String {
        let joined = |each: &dyn Fn(&str) -> String, args: &[(&str, &str)], sep: &str| {
            args.iter().map(|(_, name)| each(name)).collect::<Vec<_>>().join(sep)
        };
        match self {
            Self::Enter(_, s) => {
                let shown = joined(&|n| format!("{n}: 0x%08lx"), s.args, ", ");
                let values = joined(&|n| format!(", ((unsigned long)(REC->{n}))"), s.args, "");
                format!("\"{shown}\"{values}")
            }
            Self::Exit(..) => r#""0x%lx", REC->ret"#.into(),
            Self::RawEnter => {
                let args = (0..6).map(|i| format!(", REC->args[{i}]")).collect::<String>();
                format!(r#""NR %ld (%lx, %lx, %lx, %lx, %lx, %lx)", REC->id{args}"#)
            }
            Self::RawExit => r#""NR %ld = %ld", REC->id, REC->ret"#.into(),
            Self::Task(_, t) => t.print.into(),
        }
    }
}

/// The type, as C knows it where the kernel's BTF is not there to look it up in: bpftrace would refuse a `pid_t` of 8
/// bytes. Names, offsets and sizes stay the kernel's.
fn shown(ty: &str) -> &str {
    if crate::btf::is_ours() { portable(ty) } else { ty }
}

/// As [`shown`], for a declaration of a task's field.
fn shown_task(decl: &str) -> String {
    if !crate::btf::is_ours() {
        return decl.into();
    }
    decl.replace("pid_t ", "int ").replace("bool ", "unsigned char ")
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

/// The files that describe events, below each root.
pub fn files() -> impl Iterator<Item = String> {
    let of = |e: Event| ["format", "id"].map(|file| format!("events/{}/{}/{file}", e.category(), e.name()));
    all().flat_map(of).flat_map(|path| ROOTS.iter().map(move |root| format!("{root}{path}")))
}

fn available_events() -> String {
    all().map(|e| format!("{}:{}\n", e.category(), e.name())).collect()
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
    fn every_name_in_a_directory_is_a_file_or_a_directory() {
        let mut files = 0;
        let mut ways = vec![ROOTS[0].to_string()];
        while let Some(way) = ways.pop() {
            let (below, here) = directory(&way).expect("a directory").names();
            ways.extend(below.iter().map(|name| format!("{way}{name}/")));
            let theirs = here.iter().filter(|name| *name != "trace_pipe");
            files += theirs.filter(|name| contents(&format!("{way}{name}")).is_some()).count();
        }
        assert_eq!(files, 3 + 2 * all().count());
    }

    #[test]
    fn every_event_is_found_by_its_id_and_by_its_name() {
        assert_eq!(all().count(), 2 + 2 * SYSCALLS.len() + TASKS.len());
        for (n, e) in all().enumerate() {
            assert_eq!(e.id(), FIRST_ID + n as u32);
            let category = e.category();
            assert_eq!(find(category, &e.name()).map(|f| f.id()), Some(e.id()));
            assert_eq!(by_id(e.id()), crate::perf::tracepoint::named(category, &e.name()));
            assert!(available_events().contains(&format!("{category}:{}\n", e.name())));
        }
        assert_eq!(by_id(FIRST_ID + all().count() as u32), None);
    }

    /// Everything but the ids, which are each kernel's own, against the kernel's files, where they can be read.
    #[test]
    fn formats_are_the_kernels() {
        let Some(root) = ROOTS.iter().find(|r| std::path::Path::new(&format!("{r}events/syscalls")).exists())
        else {
            println!("tracefs is not readable here: nothing to compare with");
            return;
        };
        let mut compared = 0;
        for e in all() {
            let path = format!("{root}events/{}/{}/format", e.category(), e.name());
            let Ok(theirs) = std::fs::read_to_string(path) else { continue };
            let rest =
                |t: &str| t.lines().filter(|l| !l.starts_with("ID:")).map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(rest(&e.format()), rest(&theirs), "{}", e.name());
            compared += 1;
        }
        println!("compared {compared} format files");
        assert!(compared > 600);
    }
}
