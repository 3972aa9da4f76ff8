//! Tools and targets that stop or die while they are being attached, and semaphores through all of it. Needs scripts/build.

use bpftime_tests::{Running, Scratch, kernel_is_oracle, symbol_offset};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

struct Pieces {
    s: Scratch,
    exe: PathBuf,
    links: PathBuf,
    first: u64,
}

impl Pieces {
    fn new() -> Self {
        let s = Scratch::new();
        let exe = s.compile("targets/many.c", "many", &[]);
        let links = s.compile("tools/links.c", "links", &["-w"]);
        let first = symbol_offset(&exe, "first");
        Self { s, exe, links, first }
    }

    fn target(&self) -> Running {
        ready(self.s.target(&self.exe))
    }

    /// A tool that is on its way to `n` links.
    fn attaching(&self, n: u64) -> Running {
        let mut cmd = self.s.tool(&self.links);
        cmd.arg("perf").arg(&self.exe).args([self.first, 32, n].map(|n| n.to_string()));
        Running::start(cmd)
    }
}

fn ready(cmd: Command) -> Running {
    let mut run = Running::start(cmd);
    run.wait_for("R");
    run
}

fn ask(run: &mut Running, what: &str) -> String {
    run.say(what);
    run.line()
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_tool_killed_while_it_attaches_leaves_the_text_as_it_was() {
    let p = Pieces::new();
    let mut target = p.target();
    for ms in [20, 60, 120, 200, 300] {
        let tool = p.attaching(10_000);
        std::thread::sleep(Duration::from_millis(ms));
        tool.signal(libc::SIGKILL);
        drop(tool);
        assert_eq!(ask(&mut target, "a"), "called errors 0");
    }
    eventually("the text is restored", || ask(&mut target, "text") == "text same");
    assert!(target.finish(LIMIT).status.success());
}

#[test]
fn a_target_killed_while_it_is_attached_to_does_not_stop_the_tool() {
    let p = Pieces::new();
    let target = p.target();
    let mut tool = p.attaching(1000);
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
    let p = Pieces::new();
    let mut target = p.target();
    let mut tool = p.attaching(1000);
    std::thread::sleep(Duration::from_millis(150));
    tool.signal(libc::SIGSTOP);
    assert_eq!(ask(&mut target, "a"), "called errors 0");
    let mut later = p.target();
    assert_eq!(ask(&mut later, "v"), "value 2");
    tool.signal(libc::SIGCONT);
    tool.wait_for("READY");
    tool.signal(libc::SIGTERM);
    assert!(tool.finish(LIMIT).status.success());
    assert!(target.finish(LIMIT).status.success() && later.finish(LIMIT).status.success());
}

/// The semaphore through the lives of two tools and two targets.
fn semaphores(p: &Pieces, tool: impl Fn() -> Command, target: impl Fn() -> Command) -> Vec<String> {
    let offsets = [p.first, symbol_offset(&p.exe, "semaphore")].map(|n| n.to_string());
    let attach = || {
        let mut cmd = tool();
        cmd.arg("pulse").arg(&p.exe).args(&offsets);
        ready(cmd)
    };
    let mut seen = Vec::new();
    let mut early = ready(target());
    seen.push(ask(&mut early, "s"));
    let mut one = attach();
    seen.push(ask(&mut early, "s"));
    let two = attach();
    seen.push(ask(&mut early, "s"));
    let mut late = ready(target());
    seen.push(ask(&mut late, "s"));
    ask(&mut one, "close");
    seen.push(ask(&mut early, "s"));
    two.signal(libc::SIGKILL);
    drop(two);
    for run in [&mut early, &mut late] {
        eventually("the semaphore falls", || ask(run, "s") == "semaphore 0");
    }
    seen
}

#[test]
fn semaphores_count_as_the_kernels_do() {
    let p = Pieces::new();
    let ours = semaphores(&p, || p.s.tool(&p.links), || p.s.target(&p.exe));
    let expected = [0, 1, 1, 1, 1].map(|n| format!("semaphore {n}"));
    assert_eq!(ours, expected);
    if kernel_is_oracle() {
        assert_eq!(ours, semaphores(&p, || p.s.command(&p.links), || p.s.command(&p.exe)));
    }
}
