//! `bpftime doctor [PID|PATH]`: what works here, or why a process or program cannot be traced, in words.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use bpftime_agent::inject::check::{Finding, Severity, diagnose, diagnose_binary};
use bpftime_agent::inject::{InjectError, LIBRARY, locate};
use bpftime_shm::session::dir;
use rustix::fs::{MemfdFlags, SealFlags};

use crate::{Failure, run, say};

const EXIT_CODES: &str = "\
Exit codes: 0 nothing stands in the way; 1 something on this machine does; for a process or program 3 to 6, as
`bpftime-agent inject` would end.";

#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// A process, or a program file; without it, this machine.
    #[arg(value_name = "PID|PATH")]
    subject: Option<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let Some(subject) = &args.subject else { return Ok(machine()) };
    match subject.to_str().and_then(|s| s.parse::<i32>().ok()) {
        Some(pid) => Ok(explain(&format!("process {pid}"), diagnose(pid))),
        None => program(Path::new(subject)),
    }
}

fn program(path: &Path) -> Result<ExitCode, Failure> {
    let findings = diagnose_binary(path).map_err(|e| {
        Failure::new(1, format!("{}: {e}; give a process number or the path of a program", path.display()))
    })?;
    Ok(explain(&path.display().to_string(), findings))
}

fn explain(subject: &str, findings: Vec<Finding>) -> ExitCode {
    if findings.is_empty() {
        say(format_args!("{subject}: nothing stands in the way of tracing it"));
    }
    for f in &findings {
        let label = match f.severity {
            Severity::Refusal => "cannot be traced",
            Severity::Warning => "may not work",
            Severity::Info => "note",
        };
        say(format_args!("{label}: {}: {}", f.what, f.why));
        say(format_args!("    next: {}", f.next_step));
    }
    match findings.into_iter().find(|f| f.severity == Severity::Refusal) {
        Some(finding) => ExitCode::from(InjectError::Refused(finding).exit_code()),
        None => ExitCode::SUCCESS,
    }
}

/// How one check of the machine came out.
enum Outcome {
    /// It is there.
    Ok(String),
    /// Not needed by everybody: what is missing, what to do.
    Note(String, &'static str),
    /// Nothing works without it: what is missing, what to do.
    Fail(String, &'static str),
}

type Check = fn() -> Outcome;

use Outcome::{Fail, Note, Ok as Good};

/// The checks, in the order of the report.
const CHECKS: &[(&str, Check)] = &[
    ("kernel", kernel),
    ("memory files", memory_files),
    ("executable memory", executable_memory),
    ("membarrier", membarrier),
    ("ptrace", ptrace),
    ("tool library", || library(&run::SERVER)),
    ("agent library", || library(&[LIBRARY, "libbpftime_agent_preload.so"])),
    ("runtime directory", runtime_dir),
    ("bpftrace", bpftrace),
    ("bpf headers", bpf_headers),
    ("kernel headers", kernel_headers),
    ("kernel BTF", kernel_btf),
];

fn machine() -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (name, check) in CHECKS {
        let (label, text, next) = match check() {
            Good(text) => ("ok  ", text, None),
            Note(text, next) => ("note", text, Some(next)),
            Fail(text, next) => {
                code = ExitCode::from(1);
                ("FAIL", text, Some(next))
            }
        };
        say(format_args!("{label}  {name:<18} {text}"));
        if let Some(next) = next {
            say(format_args!("      {:<18} next: {next}", ""));
        }
    }
    code
}

fn kernel() -> Outcome {
    let text = format!("{} on {}", release(), std::env::consts::ARCH);
    if std::env::consts::ARCH == "x86_64" { Good(text) } else { Fail(text, "bpftime runs on x86-64 only") }
}

/// As uname(2) gives it.
fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// DESIGN D7: maps and images are memory files whose size is sealed.
fn memory_files() -> Outcome {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let sealed = rustix::fs::memfd_create("bpftime-doctor", flags)
        .and_then(|fd| rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW));
    match sealed {
        Ok(()) => Good("can be made and sealed".into()),
        Err(e) => {
            Fail(format!("memfd_create: {e}"), "use a kernel since 3.17, and a seccomp filter that allows it")
        }
    }
}

/// DESIGN D1: code is mapped from a private page that is written first and made executable then.
fn executable_memory() -> Outcome {
    use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
    const PAGE: usize = 4096;
    // SAFETY: a new private mapping of our own, unmapped again before anybody could use it.
    let made = unsafe {
        mmap_anonymous(std::ptr::null_mut(), PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
            .and_then(|page| {
                let made = mprotect(page, PAGE, MprotectFlags::READ | MprotectFlags::EXEC);
                munmap(page, PAGE).and(made)
            })
    };
    match made {
        Ok(()) => Good("allowed".into()),
        Err(e) => Fail(
            format!("mprotect(PROT_EXEC): {e}"),
            "a security policy forbids it (SELinux execmem, MemoryDenyWriteExecute): allow it for these programs",
        ),
    }
}

/// DESIGN D4: patching running code needs every CPU to see it (membarrier(2), SYNC_CORE, Linux 4.16).
fn membarrier() -> Outcome {
    const MEMBARRIER_CMD_QUERY: i32 = 0;
    const PRIVATE_EXPEDITED_SYNC_CORE: libc::c_long = 1 << 5;
    // SAFETY: a system call without pointers.
    let commands = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0) };
    if commands >= 0 && commands & PRIVATE_EXPEDITED_SYNC_CORE != 0 {
        Good("private expedited sync-core".into())
    } else {
        Fail("no sync-core barrier".into(), "use a kernel since 4.16 built with CONFIG_MEMBARRIER")
    }
}

fn ptrace() -> Outcome {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let next = "preload the agent, or as root: sysctl kernel.yama.ptrace_scope=0";
    match scope.trim() {
        "" => Good("own processes (no Yama)".into()),
        "0" => Good("own processes (kernel.yama.ptrace_scope = 0)".into()),
        "1" => Note("own children only (kernel.yama.ptrace_scope = 1)".into(), next),
        "2" => Note("root only (kernel.yama.ptrace_scope = 2)".into(), next),
        other => Note(format!("forbidden (kernel.yama.ptrace_scope = {other})"), "preload the agent"),
    }
}

fn library(names: &[&str]) -> Outcome {
    match locate(names) {
        Some(path) => Good(path.display().to_string()),
        None => Fail(
            format!("{} not found", names[0]),
            "build it with scripts/build, or give its directory in BPFTIME_LIB_DIR",
        ),
    }
}

fn runtime_dir() -> Outcome {
    match dir::own() {
        Ok(path) => Good(path.display().to_string()),
        Err(e) => Fail(e.to_string(), "give a directory of your own, mode 0700, in BPFTIME_RUNTIME_DIR"),
    }
}

fn bpftrace() -> Outcome {
    match run::resolve(OsStr::new("bpftrace")) {
        Some(path) => Good(path.display().to_string()),
        None => Note("not in PATH".into(), "apt-get install bpftrace, if you want to use it"),
    }
}

fn bpf_headers() -> Outcome {
    let headers = ["/usr/include/linux/bpf.h", "/usr/include/bpf/bpf_helpers.h"];
    match headers.iter().find(|h| !Path::new(h).exists()) {
        None => Good("linux/bpf.h and bpf/bpf_helpers.h".into()),
        Some(missing) => Note(
            format!("{missing} is missing"),
            "apt-get install linux-libc-dev libbpf-dev, to compile BPF programs",
        ),
    }
}

/// Where bcc finds headers to compile against: the running kernel's, else what the server has stand in for them.
fn kernel_headers() -> Outcome {
    let complete = |dir: &Path| dir.join("build/include/generated/autoconf.h").exists();
    let running = Path::new("/lib/modules").join(release());
    let others = fs::read_dir("/lib/modules").into_iter().flatten().flatten().map(|e| e.path());
    match others.filter(|dir| complete(dir)).max() {
        _ if complete(&running) => Good(running.join("build").display().to_string()),
        Some(other) => Good(format!("{} stands in for {}", other.display(), running.display())),
        None => Note(
            format!("none in {}", running.join("build").display()),
            "apt-get install linux-headers-amd64 for bcc's tools; others need none",
        ),
    }
}

/// What tools relocate against.
fn kernel_btf() -> Outcome {
    const BTF: &str = "/sys/kernel/btf/vmlinux";
    match fs::File::open(BTF) {
        Ok(_) => Good(BTF.into()),
        Err(e) => Good(format!("bpftime's own ({BTF}: {e})")),
    }
}

#[cfg(test)]
mod tests {
    use bpftime_agent::inject::check::Kind;

    use super::*;

    #[test]
    fn every_check_has_words() {
        for (name, check) in CHECKS {
            let (Good(text) | Note(text, _) | Fail(text, _)) = check();
            assert!(!text.is_empty(), "{name}");
        }
    }

    #[test]
    fn a_refusal_decides_the_exit_code() {
        let findings = diagnose(0x3fff_fff1);
        assert_eq!(findings[0].kind, Kind::NoProcess);
        assert_eq!(format!("{:?}", explain("x", findings)), format!("{:?}", ExitCode::from(3)));
    }
}
