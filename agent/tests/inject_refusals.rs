//! Processes that cannot be traced: one line of cause and next step, an exit code, an unharmed target.

mod inject_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bpftime_agent::inject::check::{Kind, Severity, diagnose, diagnose_binary};
use inject_support::{Dir, Target, bpftime_agent, is_root, stderr, until};

fn inject_command(dir: &Dir, pid: i32, prefix: &[&str]) -> Output {
    let agent = dir.agent("PLAIN");
    let (pid, library) = (pid.to_string(), agent.to_str().unwrap().to_owned());
    let args = ["inject", "--pid", &pid, "--library", &library, "--runtime-dir", dir.0.to_str().unwrap()];
    let Some((program, rest)) = prefix.split_first() else {
        return bpftime_agent(&args).output().unwrap();
    };
    // The build directory may be closed to the user that the prefix switches to.
    let copy = dir.path("bpftime-agent");
    fs::copy(env!("CARGO_BIN_EXE_bpftime-agent"), &copy).unwrap();
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o755)).unwrap();
    Command::new(program).args(rest).arg(copy).args(args).output().unwrap()
}

/// Refused with this exit code, in one line that holds these words; nothing on stdout; nothing loaded.
fn refused(dir: &Dir, pid: i32, prefix: &[&str], code: i32, words: &str) {
    let out = inject_command(dir, pid, prefix);
    let text = stderr(&out);
    assert_eq!(out.status.code(), Some(code), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    assert!(text.contains(words) && text.contains("; "), "{text}");
    assert!(out.stdout.is_empty());
    assert_eq!(dir.starts(), 0);
}

fn ends_well(target: Target) {
    assert_eq!(target.tracer(), "0");
    assert_eq!(target.finish(), "ok\n");
}

const OTHER_USER: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

#[test]
fn no_such_process() {
    refused(&Dir::new(), 0x3fff_fff1, &[], 3, "no such process");
}

#[test]
fn a_zombie() {
    let dir = Dir::new();
    let mut child = Command::new("true").spawn().unwrap();
    let pid = child.id() as i32;
    until(|| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z "));
    refused(&dir, pid, &[], 3, "zombie");
    child.wait().unwrap();
}

#[test]
fn a_kernel_thread() {
    let is_kthreadd = fs::read_to_string("/proc/2/comm").is_ok_and(|c| c.trim() == "kthreadd");
    if !is_kthreadd {
        println!("skipped: no kernel threads in this PID namespace");
        return;
    }
    refused(&Dir::new(), 2, &[], 5, "kernel thread");
}

#[test]
fn static_programs() {
    let dir = Dir::new();
    for (name, flag) in [("static", "-static"), ("static_pie", "-static-pie")] {
        let program = dir.cc("gcc", "inject_spin.c", name, &[flag]).unwrap();
        let target = Target::start(&program, &["2"]);
        refused(&dir, target.pid(), &[], 5, "statically linked");
        ends_well(target);
        assert!(diagnose_binary(&program).unwrap().iter().any(|f| f.why.contains("statically linked")));
    }
}

#[test]
fn a_32_bit_program() {
    let dir = Dir::new();
    let flags = ["-m32", "-nostdlib", "-static", "-no-pie"];
    let program = dir.cc("gcc", "inject_bare32.S", "bare32", &flags).expect("gcc assembles for i386");
    assert!(diagnose_binary(&program).unwrap()[0].why.contains("32-bit"));
    if !Command::new(&program).stdin(Stdio::null()).stdout(Stdio::null()).status().is_ok_and(|s| s.success())
    {
        println!("skipped: this kernel runs no 32-bit programs");
        return;
    }
    let target = Target::start(&program, &[]);
    refused(&dir, target.pid(), &[], 5, "32-bit");
    ends_well(target);
}

#[test]
fn a_process_in_strict_seccomp_mode() {
    let dir = Dir::new();
    let target = Target::start(&dir.target("inject_seccomp"), &[]);
    refused(&dir, target.pid(), &[], 5, "seccomp");
    ends_well(target);
}

#[test]
fn a_stopped_process() {
    let dir = Dir::new();
    let target = Target::start(&dir.target("inject_spin"), &["2"]);
    target.kill(libc::SIGSTOP);
    target.await_state("T");
    refused(&dir, target.pid(), &[], 6, "kill -CONT");
    target.await_state("T");
    target.kill(libc::SIGCONT);
    ends_well(target);
}

#[test]
fn a_process_under_a_debugger() {
    let dir = Dir::new();
    let target = Target::start(&dir.target("inject_spin"), &["2"]);
    let pid = target.pid().to_string();
    let strace = Command::new("strace").args(["-p", &pid, "-o", "/dev/null"]).stderr(Stdio::null()).spawn();
    let Ok(mut strace) = strace else {
        println!("skipped: no strace");
        return;
    };
    until(|| target.tracer() != "0");
    refused(&dir, target.pid(), &[], 6, "traced by process");
    // SAFETY: a plain system call on our own child.
    unsafe { libc::kill(strace.id() as i32, libc::SIGTERM) };
    strace.wait().unwrap();
    ends_well(target);
}

#[test]
fn another_users_process() {
    if !is_root() {
        println!("skipped: needs root to become another user");
        return;
    }
    let dir = Dir::new();
    let target = Target::start(&dir.target("inject_spin"), &["2"]);
    refused(&dir, target.pid(), &OTHER_USER, 4, "another user (uid 0, you are uid 65534)");
    ends_well(target);
}

#[test]
fn a_setuid_program_even_for_root() {
    if !is_root() {
        println!("skipped: needs root to make a setuid program");
        return;
    }
    let dir = Dir::new();
    let program = dir.target("inject_spin");
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let target = Target::spawn(Command::new(OTHER_USER[0]).args(&OTHER_USER[1..]).arg(&program).arg("2"));
    refused(&dir, target.pid(), &[], 4, "setuid");
    refused(&dir, target.pid(), &OTHER_USER, 4, "setuid");
    ends_well(target);
    assert!(diagnose_binary(&program).unwrap()[0].why.contains("setuid"));
}

#[test]
fn diagnosis_of_an_ordinary_process_finds_no_obstacle() {
    let dir = Dir::new();
    let target = Target::start(&dir.target("inject_spin"), &["2"]);
    let findings = diagnose(target.pid());
    assert!(findings.iter().all(|f| f.severity != Severity::Refusal), "{findings:?}");
    ends_well(target);
}

#[test]
fn diagnosis_of_files() {
    assert!(diagnose_binary(Path::new("/nonexistent")).is_err());
    let script = diagnose_binary(Path::new("/usr/bin/ldd")).unwrap();
    assert_eq!((script[0].severity, script[0].kind), (Severity::Info, Kind::Fine));
    let stripped = diagnose_binary(Path::new("/bin/sh")).unwrap();
    assert!(stripped.iter().any(|f| f.why.contains("stripped")), "{stripped:?}");
}
