//! What is refused, or not seen, is said. Needs scripts/build.

use bpftime_tests::{Running, Scratch, dist, root, symbol_offset};
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// The reason in the log of a probe that is refused in targets/many.c, compiled with `flags`.
fn refused(flags: &[&str]) -> String {
    let s = Scratch::new();
    let exe = s.compile("targets/many.c", "many", flags);
    let log = s.path("log");
    let mut cmd = s.tool(s.compile("tools/links.c", "links", &["-w"]));
    cmd.env("BPFTIME_LOG", "error").env("BPFTIME_LOG_FILE", &log);
    cmd.args(["perf".as_ref(), exe.as_os_str()])
        .arg(symbol_offset(&exe, "first").to_string())
        .args(["32", "3"]);
    let f = Running::start(cmd).finish(LIMIT);
    assert!(!f.status.success() && f.stderr.contains("Operation not supported"), "{f:?}");
    std::fs::read_to_string(&log).unwrap_or_default()
}

#[test]
fn a_probe_in_a_static_program_is_refused_with_the_reason_in_the_log() {
    let text = refused(&["-static"]);
    assert!(text.contains("static program") && text.contains("link it dynamically"), "{text}");
}

/// What makes a file one of Go is the line table of its runtime.
#[test]
fn a_probe_in_a_go_program_is_refused_with_the_reason_in_the_log() {
    let text = refused(&["-include", &root().join("tests/targets/go.h").display().to_string()]);
    assert!(text.contains("Go program"), "{text}");
}

#[test]
fn bpftrace_ends_with_an_error_and_leaves_nothing_in_the_kernel() {
    let events = "/sys/kernel/tracing/uprobe_events";
    let before = std::fs::read_to_string(events).ok();
    let s = Scratch::new();
    let exe = s.compile("targets/many.c", "many", &["-static"]);
    let mut cmd = s.tool("bpftrace");
    cmd.args(["-e", &format!("uprobe:{}:first {{ @ = count(); }}", exe.display())]);
    let f = Running::start(cmd).finish(LIMIT);
    assert!(!f.status.success(), "{f:?}");
    assert_eq!(std::fs::read_to_string(events).ok(), before);
}

#[test]
fn the_doctor_knows_a_static_program() {
    let s = Scratch::new();
    let exe = s.compile("targets/many.c", "many", &["-static"]);
    let mut target = Running::start(s.target(&exe));
    target.wait_for("RUNNING");
    for subject in [exe.display().to_string(), target.pid().to_string()] {
        let out = Command::new(dist("bin/bpftime")).arg("doctor").arg(&subject).output().expect("doctor");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(text.contains("statically linked"), "{subject}: {text}");
        assert_ne!(out.status.code(), Some(0), "{text}");
    }
    let pid = target.pid().to_string();
    let out =
        Command::new(dist("bin/bpftime-agent")).args(["inject", "--pid", &pid]).output().expect("inject");
    assert!(String::from_utf8_lossy(&out.stderr).contains("statically linked"), "{out:?}");
    assert!(target.finish(LIMIT).status.success());
}

#[test]
fn the_listing_tells_what_is_not_seen_in_a_process() {
    let s = Scratch::new();
    let mut target = Running::start(s.target(s.compile("targets/secluded.c", "secluded", &[])));
    target.wait_for("READY");
    let mut cmd = s.tool("bpftrace");
    let ready = "interval:ms:20 { printf(\"READY\\n\"); }";
    cmd.args(["-e", &format!("tracepoint:raw_syscalls:sys_enter {{ @ = count(); }} {ready}")]);
    let mut tool = Running::start(cmd);
    tool.wait_for("READY");
    let wanted = format!("process {}: system calls of generated code", target.pid());
    let end = Instant::now() + LIMIT;
    loop {
        let out = s.command(dist("bin/bpftime")).arg("ps").output().expect("ps");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if text.contains(&wanted) {
            break;
        }
        assert!(Instant::now() < end, "{text}");
        std::thread::sleep(Duration::from_millis(50));
    }
    target.say("go");
    assert_eq!(target.line(), "called");
    assert!(target.finish(LIMIT).status.success());
    tool.signal(libc::SIGINT);
    assert!(tool.finish(LIMIT).status.success());
}

/// Where the kernel does not let a user list tracefs, or has it not mounted, ours is listed.
#[test]
fn events_can_be_listed_and_matched_by_pattern() {
    let s = Scratch::new();
    let list = "import os, sys; d = sys.argv[1]; print(*sorted(os.listdir(d))); \
                print(*sorted(e.name for e in os.scandir(d) if e.is_dir()))";
    let listed = |dir: &str| {
        let mut cmd = s.tool("python3");
        cmd.args(["-c", list, dir]);
        let f = Running::start(cmd).finish(LIMIT);
        assert!(f.status.success(), "{dir}: {f:?}");
        let lines: Vec<Vec<String>> =
            f.stdout.lines().map(|l| l.split(' ').map(str::to_owned).collect()).collect();
        (lines[0].clone(), lines[1].clone())
    };
    let (_, categories) = listed("/sys/kernel/tracing/events");
    for category in ["raw_syscalls", "sched", "syscalls"] {
        assert!(categories.iter().any(|c| c == category), "{categories:?}");
    }
    let (all, events) = listed("/sys/kernel/tracing/events/syscalls");
    assert!(events.len() > 600 && events.iter().all(|e| all.contains(e)));
    assert!(events.iter().any(|e| e == "sys_exit_kill"));
    let (files, none) = listed("/sys/kernel/tracing/events/syscalls/sys_enter_kill");
    assert!(files.iter().any(|f| f == "format") && none.iter().all(String::is_empty), "{files:?} {none:?}");
}
