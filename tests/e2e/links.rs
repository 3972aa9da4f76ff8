//! Links: what the calls answer, and thousands of places. Needs scripts/build.

use bpftime_tests::{Running, Scratch, kernel_is_oracle, symbol_offset};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const FUNCTIONS: u64 = 10_000;

#[test]
fn links_answer_as_the_kernels_do() {
    let s = Scratch::new();
    let exe = s.compile("targets/many.c", "many", &[]);
    let tool = s.compile("tools/links.c", "links", &["-w"]);
    let first = symbol_offset(&exe, "first");
    let run = |mut cmd: Command| {
        cmd.arg("cases").arg(&exe).args([first.to_string(), (first + 32).to_string()]).arg("/bin/true");
        Running::start(cmd).finish(LIMIT).stdout
    };
    let ours = run(s.tool(&tool));
    let golden = bpftime_tests::root().join("tests/kernel-golden/links");
    assert_eq!(ours, std::fs::read_to_string(golden).unwrap());
    if kernel_is_oracle() {
        assert_eq!(ours, run(s.command(&tool)));
    }
}

/// Every function is called once while the tool, run with `how`, is attached to all; then everything is as before.
fn every_function_counts(how: &str) {
    let s = Scratch::new();
    let exe = s.compile("targets/many.c", "many", &[]);
    let links = s.compile("tools/links.c", "links", &["-w"]);
    let mut target = Running::start(s.target(&exe));
    target.wait_for("RUNNING");
    let mut cmd = s.tool(links);
    cmd.arg(how).arg(&exe).args([symbol_offset(&exe, "first"), 32, FUNCTIONS].map(|n| n.to_string()));
    let mut tool = Running::start(cmd);
    tool.wait_for("READY");
    target.say("a");
    assert_eq!(target.line(), "called errors 0");
    tool.signal(libc::SIGTERM);
    let f = tool.finish(LIMIT);
    assert_eq!(f.stdout, format!("COUNT {FUNCTIONS}\n"), "{f:?}");
    target.say("a");
    assert_eq!(target.line(), "called errors 0");
    let restored = |t: &mut Running| {
        t.say("text");
        t.wait_for("text") == "text same"
    };
    let end = std::time::Instant::now() + LIMIT;
    while !restored(&mut target) {
        assert!(std::time::Instant::now() < end, "the text is not restored");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(target.finish(LIMIT).status.success());
}

#[test]
fn one_link_takes_ten_thousand_functions() {
    every_function_counts("multi");
}

#[test]
fn ten_thousand_links_take_one_function_each() {
    every_function_counts("perf");
}
