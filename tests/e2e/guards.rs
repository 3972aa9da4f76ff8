//! What guards a process against the programs in it: the verifier's log, programs that go wrong all the same, and
//! reads of memory that may not be there.

use bpftime_tests::{Finished, Running, Scratch, dist, kernel_is_oracle, symbol_offset};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

fn output(cmd: Command) -> String {
    let f = Running::start(cmd).finish(LIMIT);
    assert!(f.status.success(), "{f:?}");
    f.stdout
}

#[test]
fn the_log_is_asked_for_and_cut_as_on_the_kernel() {
    let s = Scratch::new();
    let guard = s.compile("tools/guard.c", "guard", &["-w"]);
    let mut cmd = s.tool(&guard);
    cmd.arg("log");
    let ours = output(cmd);
    let recorded = include_str!("../kernel-golden/verifier-log");
    if kernel_is_oracle() {
        let mut cmd = s.command(&guard);
        cmd.arg("log");
        assert_eq!(output(cmd), recorded, "this kernel differs from the recorded one");
    }
    assert_eq!(ours, recorded);
}

/// A tool at `look` of the reads target in this mode; what the tool saw, and how the target ended.
fn reads(s: &Scratch, on_kernel: bool, mode: &str) -> (String, Finished) {
    let guard = s.compile("tools/guard.c", "guard", &["-w"]);
    let exe = s.compile("targets/reads.c", "reads", &["-w"]);
    let start = |program: &Path, args: &[&str], ours: bool| {
        let mut cmd = match (on_kernel, ours) {
            (true, _) => s.command(program),
            (false, true) => s.tool(program),
            (false, false) => s.target(program),
        };
        cmd.args(args);
        Running::start(cmd)
    };
    let mut target = start(&exe, &[mode], false);
    target.wait_for("RUNNING");
    let path = exe.to_string_lossy().into_owned();
    let offset = symbol_offset(&exe, "look").to_string();
    let mut tool = start(&guard, &["reads", &path, &offset], true);
    tool.wait_for("READY");
    target.say("go");
    let ended = target.finish(LIMIT);
    tool.signal(libc::SIGTERM);
    let seen = tool.finish(LIMIT);
    assert!(seen.status.success(), "{seen:?}");
    (seen.stdout, ended)
}

const GOLDEN: &str = include_str!("../kernel-golden/probe-reads");

#[test]
fn reads_of_any_pointer_give_what_the_kernel_gives() {
    let s = Scratch::new();
    if kernel_is_oracle() {
        assert_eq!(reads(&s, true, "plain").0, GOLDEN, "this kernel differs from the recorded one");
    }
    let (seen, ended) = reads(&s, false, "plain");
    assert_eq!(seen, GOLDEN);
    assert_eq!((ended.stdout.as_str(), ended.status.code()), ("DONE\n", Some(0)), "{ended:?}");
}

#[test]
fn the_applications_fault_handler_sees_its_own_faults_only() {
    let s = Scratch::new();
    let (seen, ended) = reads(&s, false, "handler");
    assert_eq!(seen, GOLDEN);
    assert_eq!(ended.stdout, "FAULTS 2 HANDLER kept\nDONE\n", "{ended:?}");
}

#[test]
fn a_fault_handler_that_is_installed_behind_our_back_sees_its_own_faults_only() {
    let s = Scratch::new();
    let (seen, ended) = reads(&s, false, "late");
    assert_eq!(ended.stdout, "FAULTS 2\nDONE\n", "{ended:?}");
    let golden: Vec<&str> = GOLDEN.lines().filter(|l| l.starts_with("HIT ")).collect();
    let seen: Vec<&str> = seen.lines().filter(|l| l.starts_with("HIT ")).skip(1).collect();
    assert_eq!(seen, golden);
}

#[test]
fn a_thread_that_blocks_every_signal_is_read_from() {
    let s = Scratch::new();
    let (seen, ended) = reads(&s, false, "blocked");
    assert_eq!(seen, GOLDEN);
    assert_eq!(ended.stdout, "DONE\n", "{ended:?}");
}

#[test]
fn a_process_that_may_not_read_by_system_call_is_read_from() {
    let s = Scratch::new();
    let (seen, ended) = reads(&s, false, "seccomp");
    assert_eq!(seen, GOLDEN);
    assert_eq!(ended.stdout, "DONE\n", "{ended:?}");
}

/// The filter comes after the agent has looked for one.
#[test]
fn a_thread_with_a_filter_that_blocks_every_signal_is_read_from() {
    let s = Scratch::new();
    let (seen, ended) = reads(&s, false, "seccomp-blocked");
    assert_eq!(ended.stdout, "DONE\n", "{ended:?}");
    assert_eq!(seen, GOLDEN);
}

#[test]
fn a_page_that_is_unmapped_during_the_read_harms_nobody() {
    let s = Scratch::new();
    let (seen, ended) = reads(&s, false, "race");
    assert!(seen.ends_with("HITS 200000\n"), "{seen}");
    assert_eq!(ended.stdout, "RACED 200000\nDONE\n", "{ended:?}");
}

/// What `bpftime ps` says, as soon as it contains `words`; otherwise what it said last.
fn ps_until(s: &Scratch, words: &str) -> String {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let mut cmd = s.command(dist("bin/bpftime"));
        cmd.arg("ps");
        let text = output(cmd);
        if text.contains(words) || Instant::now() > end {
            return text;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A bad program at `other` of a busy target: the target goes on, the program is taken off there, the tool's listing
/// says so. Nothing else that traces the target is disturbed.
fn bad_program(kind: &str) {
    let s = Scratch::new();
    let exe = s.compile("targets/threads.c", "threads", &[]);
    let mut cmd = s.target(&exe);
    cmd.arg("2");
    let mut target = Running::start(cmd);
    target.wait_for("RUNNING");
    let offset = symbol_offset(&exe, "other").to_string();
    let probe = s.compile("tools/probe.c", "probe", &["-w"]);
    let mut cmd = s.tool(probe);
    cmd.args(["count", "entry"]).arg(&exe).arg(&offset);
    let mut counter = Running::start(cmd);
    counter.wait_for("READY");
    let guard = s.compile("tools/guard.c", "guard", &["-w"]);
    let mut cmd = s.tool(guard);
    cmd.args(["bad", kind]).arg(&exe).arg(&offset).env("BPFTIME_VERIFY", "off").env("BPFTIME_LOG", "warn");
    let mut tool = Running::start(cmd);
    tool.wait_for("READY");
    target.say("c 1000");
    assert_eq!(target.line(), "called 1000 errors 0", "{kind}");
    let text = ps_until(&s, "faulted or did not end");
    let line = format!("process {}: link ", target.pid());
    assert!(
        text.contains(&line) && text.contains("faulted or did not end, and was taken off there"),
        "{text}"
    );
    target.say("c 500");
    assert_eq!(target.line(), "called 500 errors 0", "{kind}");
    tool.signal(libc::SIGTERM);
    let f = tool.finish(LIMIT);
    assert!(f.stderr.contains("BPFTIME_VERIFY=off"), "no warning: {f:?}");
    counter.signal(libc::SIGTERM);
    assert!(counter.finish(LIMIT).stdout.contains("COUNT 1500"), "{kind}");
    assert!(target.finish(LIMIT).status.success());
}

#[test]
fn a_program_that_faults_is_taken_off_and_the_target_goes_on() {
    bad_program("fault");
}

#[test]
fn a_program_that_writes_where_it_may_not_is_taken_off_and_the_target_goes_on() {
    bad_program("write");
}

#[test]
fn a_program_that_does_not_end_is_taken_off_and_the_target_goes_on() {
    bad_program("loop");
}
