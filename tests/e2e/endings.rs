//! Tools and targets that stop or die while they are being attached, and semaphores through all of it. Needs scripts/build.

use bpftime_tests::many::{Many, ready};
use bpftime_tests::{Running, eventually, kernel_is_oracle, symbol_offset};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A tool that is on its way to `n` links.
fn attaching(p: &Many, n: u64) -> Running {
    p.tool("perf", &[p.first, 32, n], &[])
}

#[test]
fn a_tool_killed_while_it_attaches_leaves_the_text_as_it_was() {
    let p = Many::new();
    let mut target = p.target();
    for ms in [20, 60, 120, 200, 300] {
        let tool = attaching(&p, 10_000);
        std::thread::sleep(Duration::from_millis(ms));
        tool.signal(libc::SIGKILL);
        drop(tool);
        assert_eq!(target.ask("a"), "called errors 0");
    }
    eventually("the text is restored", || target.ask("text") == "text same");
    assert!(target.finish(LIMIT).status.success());
}

#[test]
fn a_target_killed_while_it_is_attached_to_does_not_stop_the_tool() {
    let p = Many::new();
    let target = p.target();
    let mut tool = attaching(&p, 1000);
    std::thread::sleep(Duration::from_millis(150));
    target.signal(libc::SIGKILL);
    drop(target);
    tool.wait_for("READY");
    tool.signal(libc::SIGTERM);
    let f = tool.finish(LIMIT);
    assert_eq!(f.stdout, "COUNT 0\n", "{f:?}");
}

#[test]
fn a_tool_stopped_while_it_attaches_holds_nobody_up() {
    let p = Many::new();
    let mut target = p.target();
    let mut tool = attaching(&p, 1000);
    std::thread::sleep(Duration::from_millis(150));
    tool.signal(libc::SIGSTOP);
    assert_eq!(target.ask("a"), "called errors 0");
    let mut later = p.target();
    assert_eq!(later.ask("v"), "value 2");
    tool.signal(libc::SIGCONT);
    tool.wait_for("READY");
    tool.signal(libc::SIGTERM);
    assert!(tool.finish(LIMIT).status.success());
    assert!(target.finish(LIMIT).status.success() && later.finish(LIMIT).status.success());
}

/// The semaphore through the lives of two tools and two targets.
fn semaphores(p: &Many, tool: impl Fn() -> Command, target: impl Fn() -> Command) -> Vec<String> {
    let offsets = [p.first, symbol_offset(&p.exe, "semaphore")].map(|n| n.to_string());
    let attach = || {
        let mut cmd = tool();
        cmd.arg("pulse").arg(&p.exe).args(&offsets);
        ready(cmd)
    };
    let mut seen = Vec::new();
    let mut early = ready(target());
    seen.push(early.ask("s"));
    let mut one = attach();
    seen.push(early.ask("s"));
    let two = attach();
    seen.push(early.ask("s"));
    let mut late = ready(target());
    seen.push(late.ask("s"));
    one.ask("close");
    seen.push(early.ask("s"));
    two.signal(libc::SIGKILL);
    drop(two);
    for run in [&mut early, &mut late] {
        eventually("the semaphore falls", || run.ask("s") == "semaphore 0");
    }
    seen
}

#[test]
fn semaphores_count_as_the_kernels_do() {
    let p = Many::new();
    let ours = semaphores(&p, || p.s.tool(&p.links), || p.s.target(&p.exe));
    let expected = [0, 1, 1, 1, 1].map(|n| format!("semaphore {n}"));
    assert_eq!(ours, expected);
    if kernel_is_oracle() {
        assert_eq!(ours, semaphores(&p, || p.s.command(&p.links), || p.s.command(&p.exe)));
    }
}
