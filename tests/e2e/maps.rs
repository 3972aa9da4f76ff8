//! Maps through bpf(2) and from programs: the same tool on bpftime and, where it may be asked, on the kernel.

use bpftime_tests::{Running, Scratch, kernel_is_oracle, symbol_offset};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// What `maps WHAT` prints on bpftime; the same as on the kernel here.
fn same_as_kernel(what: &str) -> String {
    same_output("tools/maps.c", &[what])
}

/// What a tool prints on bpftime; the same as on the kernel here.
fn same_output(source: &str, args: &[&str]) -> String {
    let s = Scratch::new();
    let tool = s.compile(source, "tool", &["-w"]);
    let print = |mut cmd: std::process::Command| {
        cmd.args(args);
        let f = Running::start(cmd).finish(LIMIT);
        assert!(f.status.success(), "{f:?}");
        f.stdout
    };
    let ours = print(s.tool(&tool));
    if kernel_is_oracle() {
        let kernels = print(s.command(&tool));
        for (ours, kernels) in ours.lines().zip(kernels.lines()) {
            assert_eq!(ours, kernels, "ours, then the kernel's");
        }
        assert_eq!(ours, kernels);
    }
    ours
}

#[test]
fn every_type_and_template_is_made_or_refused_as_by_the_kernel() {
    let out = same_as_kernel("create");
    assert_eq!(out.matches(" made\n").count(), 16, "{out}");
}

#[test]
fn every_command_on_every_type_in_every_state_answers_as_the_kernels() {
    let out = same_output("tools/commands.c", &[]);
    assert!(out.contains("\nhash, full: update other flags 0: -7\n"), "{} lines", out.lines().count());
}

#[test]
fn batch_commands_answer_as_the_kernels_on_every_type() {
    let out = same_as_kernel("batch");
    assert!(out.contains("steps -2, 6 elements"), "{out}");
}

#[test]
fn helpers_on_maps_answer_as_the_kernels_on_every_type() {
    let out = same_as_kernel("programs");
    assert!(out.contains("lru: used by a program 0, by bpf(2) -2"), "{out}");
}

#[test]
fn maps_in_maps_and_tail_calls_answer_as_the_kernels() {
    let out = same_as_kernel("inner");
    assert!(out.contains("to itself 0, ran 34 times, two in turn 0: 17 17"), "{out}");
}

#[test]
fn counts_stay_exact_while_elements_come_and_go_in_the_same_chains() {
    let s = Scratch::new();
    let tool = s.compile("tools/churn.c", "churn", &["-O1", "-pthread"]);
    let ours = |runs: &str| (s.tool(&tool), runs.to_string());
    let kernels = kernel_is_oracle().then(|| (s.command(&tool), "200".to_string()));
    for (mut cmd, runs) in [Some(ours("4000")), kernels].into_iter().flatten() {
        cmd.args(["4", &runs]);
        let f = Running::start(cmd).finish(LIMIT);
        assert_eq!(f.stdout, "wrong 0, exact 4, left 4\n", "{f:?}");
    }
}

#[test]
fn task_storage_by_pidfd_answers_as_the_kernels() {
    assert!(same_as_kernel("storage").starts_with("lookup -2, exist -2, update 0, lookup 0 1,"));
}

/// A conversation with `maps watch` and a target: what the tool says after each command and a thousand calls.
fn watched(s: &Scratch, exe: &Path, ours: bool, commands: &[&str]) -> Vec<String> {
    let make = |program: &Path, tool: bool| match (ours, tool) {
        (true, true) => s.tool(program),
        (true, false) => s.target(program),
        (false, _) => s.command(program),
    };
    let mut cmd = make(exe, false);
    cmd.arg("0");
    let mut target = Running::start(cmd);
    target.wait_for("RUNNING");
    let mut cmd = make(&s.compile("tools/maps.c", "maps", &["-w"]), true);
    cmd.arg("watch").arg(exe).arg(symbol_offset(exe, "other").to_string());
    let mut tool = Running::start(cmd);
    tool.wait_for("READY");
    let mut said = Vec::new();
    for command in commands {
        tool.say(command);
        said.push(tool.line());
        target.say("c 1000");
        assert_eq!(target.line(), "called 1000 errors 0");
    }
    tool.say("end");
    tool.finish(LIMIT);
    assert!(target.finish(LIMIT).status.success());
    said
}

#[test]
fn maps_and_programs_that_come_and_go_reach_running_targets_at_once() {
    let commands = [
        "counts", "inner 0", "tail 0", "inner 1", "tail 1", "none", "untail", "fresh", "inner 2", "tail 0",
        "fresh", "fresh", "counts",
    ];
    let s = Scratch::new();
    let exe = s.compile("targets/threads.c", "threads", &[]);
    let ours = watched(&s, &exe, true, &commands);
    assert_eq!(
        ours.last().map(String::as_str),
        Some("counts 0: 2000 2000 2000, 12000 5000 2000"),
        "{ours:?}"
    );
    if kernel_is_oracle() {
        assert_eq!(ours, watched(&s, &exe, false, &commands));
    }
}

#[test]
fn inner_maps_and_tail_calls_change_under_threads_that_use_them() {
    let s = Scratch::new();
    let exe = s.compile("targets/threads.c", "threads", &[]);
    let mut cmd = s.target(&exe);
    cmd.arg("8");
    let mut target = Running::start(cmd);
    target.wait_for("RUNNING");
    let mut cmd = s.tool(s.compile("tools/maps.c", "maps", &["-w"]));
    cmd.arg("watch").arg(&exe).arg(symbol_offset(&exe, "work").to_string());
    let mut tool = Running::start(cmd);
    tool.wait_for("READY");
    tool.say("tail 0");
    tool.wait_for("tail 0: ");
    for round in 0..150 {
        for command in [["fresh", "untail"], ["inner 1", "tail 0"], ["none", "tail 1"]][round % 3] {
            tool.say(command);
            assert!(tool.line().contains(" 0: "), "{command}");
        }
    }
    tool.say("end");
    assert!(tool.finish(LIMIT).status.success());
    let f = target.finish(LIMIT);
    assert!(f.status.success() && f.stdout.contains("ERRORS 0"), "{f:?}");
}

#[test]
fn a_producer_killed_between_reserve_and_submit_holds_the_consumer_up_for_less_than_a_second() {
    let s = Scratch::new();
    let exe = s.compile("targets/threads.c", "threads", &[]);
    let start = || {
        let mut cmd = s.target(&exe);
        cmd.arg("0");
        let mut target = Running::start(cmd);
        target.wait_for("RUNNING");
        target
    };
    let mut target = start();
    let mut cmd = s.tool(s.compile("tools/maps.c", "maps", &["-w"]));
    cmd.arg("ring").arg(&exe).arg(symbol_offset(&exe, "other").to_string());
    let mut tool = Running::start(cmd);
    tool.wait_for("READY");
    let mut discarded = 0;
    for round in 0..20 {
        // Nearly all of its time goes by between reserve and submit.
        target.say("c 100000000");
        std::thread::sleep(Duration::from_millis(5));
        target.signal(libc::SIGKILL);
        drop(std::mem::replace(&mut target, start()));
        tool.say("");
        assert_eq!(tool.line(), "left 0", "round {round}");
        let counts = tool.line();
        discarded = counts.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    }
    assert!((1..=20).contains(&discarded), "{discarded} records were given up in 20 rounds");
    // And the next producer's records all arrive.
    let before = tool_samples(&mut tool);
    target.say("c 100");
    assert_eq!(target.line(), "called 100 errors 0");
    assert_eq!(tool_samples(&mut tool), before + 100);
    drop(tool);
    assert!(target.finish(LIMIT).status.success());
}

/// Samples that `maps ring` has consumed by now.
fn tool_samples(tool: &mut Running) -> u64 {
    tool.say("");
    tool.wait_for("left 0");
    let counts = tool.line();
    counts.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("samples N")
}
