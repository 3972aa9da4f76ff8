//! Why a process cannot be traced, in words. One list for `inject`, which refuses, and for `bpftime doctor`,
//! which explains.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, elf};

use super::image::bases;
use super::procfs::{self, Mapping, Memory, Status};
use super::runtime::{Runtime, is_libc};
use crate::program::{is_go, is_static};

/// `linux/capability.h`.
const CAP_SYS_PTRACE: u32 = 19;

/// Does a finding stop injection?
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Info,
    /// It may fail, or parts of it.
    Warning,
    /// It will not work until something changes.
    Refusal,
}

/// What kind of obstacle it is: decides errno and exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// There is no such process (any more). ESRCH.
    NoProcess,
    /// The kernel would not let us. EPERM.
    NotPermitted,
    /// This process can never carry the agent. EOPNOTSUPP.
    Unsupported,
    /// Not now. EBUSY.
    Busy,
    /// Nothing is wrong.
    Fine,
}

/// One observation about a process or program, in words that a user can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Does it stop injection?
    pub severity: Severity,
    /// What kind of obstacle it is.
    pub kind: Kind,
    /// The observation: "process 12 (sshd) belongs to uid 0".
    pub what: String,
    /// Why that matters.
    pub why: String,
    /// What to do about it.
    pub next_step: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.what, self.why, self.next_step)
    }
}

impl Finding {
    fn refusal(kind: Kind, what: impl Into<String>, why: &str, next_step: impl Into<String>) -> Self {
        let (what, next_step) = (what.into(), next_step.into());
        Self { severity: Severity::Refusal, kind, what, why: why.to_owned(), next_step }
    }

    fn with(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }
}

/// Everything that is to be said about tracing this process, refusals first; empty when nothing is.
///
/// Reads /proc only: the process is not stopped and does not notice.
#[must_use]
pub fn diagnose(pid: i32) -> Vec<Finding> {
    let mut findings = match examine(pid) {
        Ok(findings) => findings,
        Err(_) => vec![no_process(pid)],
    };
    findings.sort_by_key(|f| std::cmp::Reverse(f.severity));
    findings
}

/// The first reason not to touch the process.
pub(super) fn refusal(pid: i32) -> Option<Finding> {
    diagnose(pid).into_iter().find(|f| f.severity == Severity::Refusal)
}

fn examine(pid: i32) -> io::Result<Vec<Finding>> {
    if pid <= 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    let them = Status::read(&pid.to_string())?;
    let us = Status::read("self")?;
    let who = format!("process {pid} ({})", them.name);
    if let Some(end) = unfit(&who, pid, &them) {
        return Ok(vec![end]);
    }
    let mut findings = Vec::new();
    findings.extend(ownership(&who, pid, &them, &us));
    findings.extend(busy(&who, &them));
    findings.extend(seccomp(&who, &them));
    findings.extend(yama(&who, pid, &us));
    if findings.iter().all(|f| f.kind != Kind::NotPermitted || f.severity != Severity::Refusal) {
        findings.extend(program(&who, pid));
    }
    Ok(findings)
}

fn no_process(pid: i32) -> Finding {
    let next = "check the number with ps, and that it is the number in this PID namespace";
    Finding::refusal(Kind::NoProcess, format!("process {pid}"), "there is no such process", next)
}

/// Kinds of task that are no program at all.
fn unfit(who: &str, pid: i32, them: &Status) -> Option<Finding> {
    if matches!(them.state, 'Z' | 'X') {
        let why = "it has exited and only waits for its parent to read its status (zombie)";
        return Some(Finding::refusal(Kind::NoProcess, who, why, "trace a process that still runs"));
    }
    if them.kernel_thread {
        let why = "it is a kernel thread and has no user code";
        return Some(Finding::refusal(Kind::Unsupported, who, why, "trace a user process"));
    }
    (pid == std::process::id() as i32).then(|| {
        let why = "a process cannot trace itself with ptrace";
        Finding::refusal(Kind::Unsupported, who, why, "preload the agent (LD_PRELOAD) instead")
    })
}

/// ptrace(2), "Ptrace access mode checking".
fn ownership(who: &str, pid: i32, them: &Status, us: &Status) -> Option<Finding> {
    let secure = procfs::at_secure(pid);
    if secure == Some(true) {
        let why = "it runs with raised privileges (AT_SECURE: setuid, setgid or file capabilities)";
        let next = "bpftime never enters such programs; run a copy of the program without these bits";
        return Some(Finding::refusal(Kind::NotPermitted, who, why, next));
    }
    if us.cap_effective & (1 << CAP_SYS_PTRACE) != 0 {
        return None;
    }
    let me = (us.uids[1], us.gids[1]);
    let [ruid, euid, suid, _] = them.uids;
    let permit = |why: &str, next: String| Some(Finding::refusal(Kind::NotPermitted, who, why, next));
    if ruid != euid || suid != euid || them.gids[0] != them.gids[1] {
        return permit(
            "it is a setuid or setgid program: its real and effective ids differ",
            "bpftime never enters such programs; run a copy of the program without these bits".into(),
        );
    }
    if me.0 != euid {
        let next = format!("run the command as that user, for example sudo -u '#{euid}'");
        return permit(&format!("it belongs to another user (uid {euid}, you are uid {})", me.0), next);
    }
    if me.1 != them.gids[1] {
        let next = format!("run the command with that group, for example sg or newgrp {}", them.gids[1]);
        return permit(&format!("it runs with group {} and you with {}", them.gids[1], me.1), next);
    }
    // Capabilities count within one user namespace; we own those that our children make.
    if same_user_namespace(pid) && them.cap_permitted & !us.cap_permitted != 0 {
        return permit("it has capabilities that you have not", "run the command as root".into());
    }
    // The kernel gives the files of a process that may not be dumped to root.
    let hidden = fs::metadata(format!("/proc/{pid}/environ")).is_ok_and(|m| m.uid() != euid);
    if hidden || secure.is_none() {
        return permit(
            "it does not let others look into it (setuid at exec, or PR_SET_DUMPABLE 0)",
            "preload the agent instead, or run the command as root".into(),
        );
    }
    None
}

fn same_user_namespace(pid: i32) -> bool {
    let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/user")).ok();
    of(&pid.to_string()).is_none_or(|theirs| of("self") == Some(theirs))
}

fn busy(who: &str, them: &Status) -> Option<Finding> {
    if them.tracer != 0 {
        let name = Status::read(&them.tracer.to_string()).map_or_else(|_| "?".into(), |s| s.name);
        let why = format!("it is traced by process {} ({name})", them.tracer);
        return Some(Finding::refusal(Kind::Busy, who, &why, "end that debugger or strace and try again"));
    }
    (them.state == 'T').then(|| stopped_finding(who, them.tgid))
}

/// A process that job control has stopped.
pub(super) fn stopped(pid: i32) -> Finding {
    let name = Status::read(&pid.to_string()).map_or_else(|_| "?".into(), |s| s.name);
    stopped_finding(&format!("process {pid} ({name})"), pid)
}

fn stopped_finding(who: &str, pid: i32) -> Finding {
    let why = "it is stopped (SIGSTOP or Ctrl-Z) and cannot load the agent";
    Finding::refusal(Kind::Busy, who, why, format!("continue it with kill -CONT {pid} and try again"))
}

fn seccomp(who: &str, them: &Status) -> Option<Finding> {
    match them.seccomp {
        1 => {
            let why = "it is in strict seccomp mode, where loading a library would kill it";
            Some(Finding::refusal(Kind::Unsupported, who, why, "preload the agent (LD_PRELOAD) before that"))
        }
        2 => {
            let why = "a seccomp filter watches it; one that forbids openat, mmap, connect or clone kills it";
            let next = "containers' filters are fine; do not inject into a sandboxed renderer or parser";
            Some(Finding::refusal(Kind::Fine, who, why, next).with(Severity::Warning))
        }
        _ => None,
    }
}

/// Documentation/admin-guide/LSM/Yama.rst. The file is absent when Yama is.
fn yama(who: &str, pid: i32, us: &Status) -> Option<Finding> {
    let text = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok()?;
    let scope: u32 = text.trim().parse().ok()?;
    let capable = us.cap_effective & (1 << CAP_SYS_PTRACE) != 0;
    let next =
        "as root: sysctl kernel.yama.ptrace_scope=0; or preload the agent, or start it from this shell";
    match scope {
        3 => {
            let why = "this machine forbids ptrace altogether (kernel.yama.ptrace_scope = 3)";
            let next = "preload the agent (LD_PRELOAD); the setting lasts until reboot";
            Some(Finding::refusal(Kind::NotPermitted, who, why, next))
        }
        2 if !capable => {
            let why = "this machine lets only root trace processes (kernel.yama.ptrace_scope = 2)";
            Some(Finding::refusal(Kind::NotPermitted, who, why, next))
        }
        // The process may have allowed it with PR_SET_PTRACER, which cannot be asked.
        1 if !capable && !is_descendant(pid) => {
            let why = "this machine lets you trace only your own children (kernel.yama.ptrace_scope = 1)";
            Some(Finding::refusal(Kind::NotPermitted, who, why, next).with(Severity::Warning))
        }
        _ => None,
    }
}

fn is_descendant(pid: i32) -> bool {
    let parent = |pid: i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let us = std::process::id() as i32;
    std::iter::successors(parent(pid), |&p| if p > 1 { parent(p) } else { None }).any(|p| p == us)
}

/// PTRACE_SEIZE said EPERM though nothing in /proc predicted it.
pub(super) fn seize_refused(pid: i32) -> Finding {
    let mut findings = diagnose(pid);
    // Yama's warning has come true.
    if let Some(first) = findings.iter().position(|f| f.kind == Kind::NotPermitted || f.kind == Kind::Busy) {
        return findings.swap_remove(first).with(Severity::Refusal);
    }
    let next = "look at the security module (SELinux, AppArmor) and container settings, or preload the agent";
    Finding::refusal(
        Kind::NotPermitted,
        format!("process {pid}"),
        "the kernel does not permit ptrace on it",
        next,
    )
}

/// The program that the process runs, by its file and its mappings.
fn program(who: &str, pid: i32) -> Option<Finding> {
    let exe = format!("/proc/{pid}/exe");
    if let Ok(header) = read_header(Path::new(&exe))
        && let Some(f) = wrong_machine(who, &header)
    {
        return Some(f);
    }
    let maps = procfs::maps(pid).ok()?;
    if agent_mapped(&maps) {
        let why = "the agent is already loaded there";
        let next = "nothing to do: tools find it by themselves";
        return Some(Finding::refusal(Kind::Fine, who, why, next).with(Severity::Info));
    }
    let mem = Memory::open(pid).ok()?;
    if Runtime::discover(&mem, &maps).is_some() {
        return None;
    }
    let has_libc = bases(&maps).any(|m| is_libc(m.base_name()));
    let why = if has_libc {
        "its C library offers no dlopen"
    } else {
        "it is statically linked: without a dynamic loader it cannot load the agent"
    };
    Some(Finding::refusal(Kind::Unsupported, who, why, "trace a dynamically linked build of it"))
}

fn agent_mapped(maps: &[Mapping]) -> bool {
    maps.iter().any(|m| m.base_name().ends_with(super::LIBRARY))
}

/// The first bytes of a file: enough for the ELF identification and e_machine.
fn read_header(path: &Path) -> io::Result<[u8; 20]> {
    let mut header = [0; 20];
    io::Read::read_exact(&mut fs::File::open(path)?, &mut header)?;
    Ok(header)
}

fn wrong_machine(who: &str, header: &[u8; 20]) -> Option<Finding> {
    if !header.starts_with(&elf::ELFMAG) {
        return None;
    }
    let machine = u16::from_le_bytes([header[18], header[19]]);
    let unsupported = |why: &str| {
        Some(Finding::refusal(Kind::Unsupported, who, why, "trace a 64-bit x86-64 build of the program"))
    };
    if header[4] != elf::ELFCLASS64.0 {
        return unsupported("it is a 32-bit program");
    }
    if machine != elf::EM_X86_64.0 {
        return unsupported("it is a program for another processor architecture");
    }
    None
}

/// What is to be said about tracing a program file, before it runs. Unlike for a process, static linking,
/// a setuid bit and missing symbols are reported together.
///
/// Errors: the file cannot be read.
pub fn diagnose_binary(path: &Path) -> io::Result<Vec<Finding>> {
    let who = path.display().to_string();
    let bytes = fs::read(path)?;
    let mut findings = Vec::new();
    findings.extend(mode(&who, path)?);
    let header: Option<&[u8; 20]> = bytes.first_chunk();
    match header {
        Some(header) if header.starts_with(&elf::ELFMAG) => match wrong_machine(&who, header) {
            Some(finding) => findings.push(finding),
            None => findings.extend(elf_findings(&who, &bytes)),
        },
        _ => findings.push(not_elf(&who, &bytes)),
    }
    findings.sort_by_key(|f| std::cmp::Reverse(f.severity));
    Ok(findings)
}

fn mode(who: &str, path: &Path) -> io::Result<Option<Finding>> {
    let mode = fs::metadata(path)?.mode();
    if mode & (libc::S_ISUID | libc::S_ISGID) != 0 {
        let why = "it is setuid or setgid: the loader drops LD_PRELOAD and ptrace is refused";
        let next = "trace a copy of it without these bits (cp drops them)";
        return Ok(Some(Finding::refusal(Kind::NotPermitted, who, why, next)));
    }
    Ok((mode & 0o111 == 0).then(|| {
        let next = format!("chmod +x {who}, if it is a program");
        Finding::refusal(Kind::NotPermitted, who, "it has no execute permission", next)
            .with(Severity::Warning)
    }))
}

fn not_elf(who: &str, bytes: &[u8]) -> Finding {
    if let Some(line) = bytes.strip_prefix(b"#!") {
        let line = line.split(|&b| b == b'\n').next().unwrap_or_default();
        let interpreter = String::from_utf8_lossy(line).trim().to_owned();
        let why = format!("it is a script for {interpreter}");
        let next = "probe that interpreter's functions";
        return Finding::refusal(Kind::Fine, who, &why, next).with(Severity::Info);
    }
    Finding::refusal(Kind::Unsupported, who, "it is not an ELF program", "give the path of a program")
}

fn elf_findings(who: &str, bytes: &[u8]) -> Vec<Finding> {
    let Ok(file) = ElfFile64::<object::NativeEndian>::parse(bytes) else {
        let why = "its ELF structure is damaged";
        return vec![Finding::refusal(Kind::Unsupported, who, why, "rebuild or reinstall it")];
    };
    let mut findings = Vec::new();
    if is_static(bytes) {
        let why = "it is statically linked: without a dynamic loader it cannot load the agent";
        findings.push(Finding::refusal(Kind::Unsupported, who, why, "link it dynamically"));
    }
    if is_go(bytes) {
        let why = "it is a Go program: its functions cannot be probed, and its own system calls are not seen";
        let next = "probe the C libraries that it uses";
        findings.push(Finding::refusal(Kind::Fine, who, why, next).with(Severity::Warning));
    }
    if file.section_by_name(".symtab").is_none_or(|s| s.size() == 0) {
        let why = "it is stripped: only functions that it exports can be probed by name";
        let next = "install its debug symbols, or probe addresses";
        findings.push(Finding::refusal(Kind::Fine, who, why, next).with(Severity::Warning));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_process_is_esrch_with_a_next_step() {
        for pid in [-1, 0, 0x3fff_fff1] {
            let found = refusal(pid).unwrap();
            assert_eq!(found.kind, Kind::NoProcess);
            assert!(!found.next_step.is_empty());
        }
    }

    #[test]
    fn we_ourselves_are_refused() {
        assert_eq!(refusal(std::process::id() as i32).unwrap().kind, Kind::Unsupported);
    }

    #[test]
    fn a_32_bit_header_is_named() {
        let mut header = [0; 20];
        header[..6].copy_from_slice(b"\x7fELF\x01\x01");
        assert!(wrong_machine("x", &header).unwrap().why.contains("32-bit"));
    }

    #[test]
    fn a_script_names_its_interpreter() {
        assert!(not_elf("x", b"#!/bin/sh -e\n:").why.contains("/bin/sh -e"));
    }
}
