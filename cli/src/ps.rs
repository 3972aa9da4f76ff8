//! `bpftime ps`: the sessions of this user, what they attach and to whom.

use bpftime_abi::perf::ATTR_FREQ;
use bpftime_abi::syscall::SYSCALLS;
use bpftime_abi::{map_type, prog_type};
use bpftime_shm::session::wire::{
    AgentRow, CounterEvent, InForce, LinkKind, Listing, Message, SampleEvent, Side, SyscallEvent, TaskKind,
    unseen,
};
use bpftime_shm::session::{dir, sock};
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::{Failure, say};

/// Arguments of `bpftime ps`.
#[derive(clap::Args)]
pub struct Args {}

/// Lists every session; says so when there is none.
pub fn run(_: &Args) -> Result<ExitCode, Failure> {
    let sockets: Vec<_> = dir::candidates().iter().flat_map(|d| dir::sockets(d)).collect();
    let sessions: Vec<Listing> = sockets.iter().filter_map(|path| ask(path)).collect();
    if sessions.is_empty() {
        let dirs: Vec<_> = dir::candidates().iter().map(|d| d.display().to_string()).collect();
        say(format_args!("no sessions in {}", dirs.join(" or ")));
    }
    sessions.iter().for_each(show);
    Ok(ExitCode::SUCCESS)
}

/// A session that does not answer is reported and passed over; one whose tool is gone is removed.
fn ask(path: &Path) -> Option<Listing> {
    match listing(path) {
        Ok(Message::Listing(listing)) => Some(listing),
        Err(Errno::CONNREFUSED) => {
            let _ = std::fs::remove_file(path);
            None
        }
        Ok(_) => None,
        Err(errno) => {
            say(format_args!("{}: {errno}; its tool is stopped or busy", path.display()));
            None
        }
    }
}

fn listing(path: &Path) -> Result<Message, Errno> {
    let sock = sock::connect(path)?;
    sock::set_timeout(&sock, Duration::from_secs(2))?;
    sock::send(sock.as_fd(), &Message::List.encode(), &[])?;
    Message::decode(&sock::recv(sock.as_fd(), false)?.bytes)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').replace('\0', " ")
}

/// As tools spell the tracepoint.
fn syscall_name(event: &SyscallEvent) -> String {
    let side = if event.side == Side::Enter { "sys_enter" } else { "sys_exit" };
    let Some(nr) = event.nr else { return format!("raw_syscalls:{side}") };
    let row = SYSCALLS.iter().find(|s| s.nr == nr).map_or("unknown", |s| s.name);
    format!("syscalls:{side}_{row}")
}

fn task_name(kind: TaskKind) -> &'static str {
    match kind {
        TaskKind::Fork => "sched_process_fork",
        TaskKind::Exec => "sched_process_exec",
        TaskKind::Exit => "sched_process_exit",
    }
}

fn sample_name(event: &SampleEvent) -> String {
    let cpu = event.cpu.map_or(String::new(), |cpu| format!(" on CPU {cpu}"));
    format!("sample every {} us{cpu}", event.period / 1000)
}

/// Names of `PERF_TYPE_*`; empty for the one that is a link of another kind.
const COUNTED: [&str; 6] = ["hardware", "software", "", "cache", "raw", "watchpoint"];

fn counter_name(event: &CounterEvent) -> String {
    let c = event.counter;
    let kind = COUNTED.get(c.type_ as usize).copied().unwrap_or("event");
    let what = if c.bp_type == 0 { c.config } else { c.config1 };
    let how = if c.flags & ATTR_FREQ == 0 { "every" } else { "samples per second:" };
    let cpu = event.cpu.map_or(String::new(), |cpu| format!(" on CPU {cpu}"));
    format!("{kind} {what:#x} {how} {}{cpu}", c.period)
}

fn show(s: &Listing) {
    say(format_args!("session of pid {}: {}", s.pid, text(&s.command)));
    for p in &s.progs {
        let maps: Vec<_> = p.maps.iter().map(u32::to_string).collect();
        say(format_args!(
            "  prog {} {} name {} maps {}",
            p.prog,
            prog_type::short_name(p.prog_type),
            text(&p.name),
            maps.join(",")
        ));
    }
    for l in &s.links {
        let name = match l.kind {
            LinkKind::Uprobe | LinkKind::Session => None,
            LinkKind::Syscall(event) => Some(syscall_name(&event)),
            LinkKind::Sample(event) => Some(sample_name(&event)),
            LinkKind::Counter(event) => Some(counter_name(&event)),
            LinkKind::Task(event) => Some(format!("sched:{}", task_name(event.kind))),
        };
        if let Some(name) = name {
            say(format_args!("  link {} prog {} {name}", l.link, l.prog));
            continue;
        }
        let kind = match l.kind {
            LinkKind::Session => "uprobe session",
            _ if l.ret => "uretprobe",
            _ => "uprobe",
        };
        let whom = if l.pid > 0 { format!(" pid {}", l.pid) } else { String::new() };
        let at = l.points.first().map_or(0, |p| p.offset);
        let more = match l.points.len() {
            0 | 1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        say(format_args!("  link {} prog {} {kind} {}+{at:#x}{more}{whom}", l.link, l.prog, text(&l.path)));
    }
    for m in &s.maps {
        say(format_args!(
            "  map {} {} name {} key {}B value {}B max_entries {}",
            m.map,
            map_type::short_name(m.map_type),
            text(&m.name),
            m.key_size,
            m.value_size,
            m.max_entries
        ));
    }
    s.agents.iter().for_each(|AgentRow { pid, in_force }| show_process(*pid, in_force));
}

/// What is unseen, by its bit.
const UNSEEN: [(u32, &str); 2] = [
    (
        unseen::CALLS,
        "system calls of generated code, of Go, or of code that cannot be rewritten, are not seen there: it runs under \
         seccomp, is a Go program, has a SIGSYS handler of its own, or its kernel has no syscall user dispatch",
    ),
    (unseen::EVENTS, "the kernel does not open its events there (kernel.perf_event_paranoid, seccomp)"),
];

fn show_process(pid: i32, f: &InForce) {
    let refused = if f.refused > 0 { format!(", {} could not be placed", f.refused) } else { String::new() };
    say(format_args!("  process {pid}: {} probes{refused}", f.sites));
    for (_, what) in UNSEEN.iter().filter(|(bit, _)| f.unseen & bit != 0) {
        say(format_args!("  process {pid}: {what}"));
    }
    for link in &f.failed {
        say(format_args!("  process {pid}: link {link} faulted or did not end, and was taken off there"));
    }
}
