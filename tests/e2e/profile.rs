//! Clock events: samples of the targets, ticks in the tool. Needs scripts/build.

use bpftime_tests::{Finished, Running, Scratch, kernel_is_oracle};
use std::collections::HashMap;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const HZ: u64 = 200;

fn target(s: &Scratch, args: &[&str]) -> Running {
    let exe = s.compile("targets/burn.c", "burn", &[]);
    let mut cmd = s.target(exe);
    cmd.args(args);
    let mut run = Running::start(cmd);
    run.wait_for("READY");
    run
}

fn tool(s: &Scratch, args: &[&str]) -> Running {
    let exe = s.compile("tools/events.c", "events", &["-w"]);
    let mut cmd = s.tool(exe);
    cmd.args(args);
    let mut run = Running::start(cmd);
    run.wait_for("READY");
    run
}

/// Lets the target burn; what each of its processes says: pid, milliseconds, calls cut short, stray signals.
fn burn(target: &mut Running) -> Vec<[u64; 4]> {
    target.say("burn");
    let mut seen = Vec::new();
    loop {
        let line = target.line();
        if line == "BURNT" {
            return seen;
        }
        let words: Vec<_> = line.split(' ').collect();
        seen.push([1, 3, 5, 7].map(|i| words[i].parse().unwrap()));
    }
}

/// Samples by pid, and the period that came with them.
fn samples(tool: Running) -> HashMap<u64, (u64, u64)> {
    tool.signal(libc::SIGTERM);
    let f: Finished = tool.finish(LIMIT);
    assert!(f.stdout.ends_with("END\n"), "{f:?}");
    let rows = f.stdout.lines().filter(|l| l.starts_with("PID "));
    let words = rows.map(|l| l.split(' ').filter_map(|w| w.parse().ok()).collect::<Vec<u64>>());
    words.map(|w| (w[0], (w[1], w[2]))).collect()
}

/// Samples of `ms` milliseconds, give or take what a thread runs before it is found.
fn assert_share(got: Option<&(u64, u64)>, ms: u64, threads: u64) {
    let (n, period) = *got.unwrap_or(&(0, 0));
    assert_eq!(period, 1_000_000_000 / HZ);
    let want = ms * HZ / 1000;
    let unseen = threads * HZ / 8;
    assert!(n + unseen + want / 20 >= want && n <= want + want / 20 + 2, "{n} samples of {ms} ms");
}

#[test]
fn samples_share_out_the_processor_time_that_was_used() {
    let s = Scratch::new();
    let mut busy = target(&s, &["2", "1000"]);
    let tool = tool(&s, &["sample", "200", "-1"]);
    let burnt = burn(&mut busy);
    let seen = samples(tool);
    assert_share(seen.get(&burnt[0][0]), burnt[0][1], 2);
    assert!(busy.finish(LIMIT).status.success());
}

#[test]
fn no_call_is_cut_short_and_no_signal_strays_into_the_program() {
    let s = Scratch::new();
    let mut busy = target(&s, &["1", "1500", "others"]);
    let tool = tool(&s, &["sample", "997", "-1"]);
    let burnt = burn(&mut busy);
    let seen = samples(tool);
    assert_eq!(burnt[0][2..], [0, 0], "EINTR, stray signals");
    assert!(seen[&burnt[0][0]].0 > 997, "{seen:?}");
    assert!(busy.finish(LIMIT).status.success());
}

#[test]
fn a_forked_child_is_sampled_under_its_own_pid() {
    let s = Scratch::new();
    let mut busy = target(&s, &["1", "500", "fork"]);
    let tool = tool(&s, &["sample", "200", "-1"]);
    let burnt = burn(&mut busy);
    let seen = samples(tool);
    assert_eq!(burnt.len(), 2);
    burnt.iter().for_each(|b| assert_share(seen.get(&b[0]), b[1], 2));
}

#[test]
fn an_event_for_one_process_samples_no_other() {
    let s = Scratch::new();
    let (mut one, mut two) = (target(&s, &["1", "500"]), target(&s, &["1", "500"]));
    let tool = tool(&s, &["sample", "200", &one.pid().to_string()]);
    let burnt = burn(&mut one);
    burn(&mut two);
    let seen = samples(tool);
    assert_share(seen.get(&burnt[0][0]), burnt[0][1], 1);
    assert_eq!(seen.len(), 1, "{seen:?}");
}

#[test]
fn nothing_is_sampled_once_the_tool_was_killed() {
    let s = Scratch::new();
    let mut busy = target(&s, &["1", "300"]);
    let tool = tool(&s, &["sample", "200", "-1"]);
    let timers = || std::fs::read_to_string(format!("/proc/{}/timers", busy.pid())).unwrap_or_default();
    assert!(timers().contains("signal: 5/"), "no timer: {}", timers());
    tool.signal(libc::SIGKILL);
    drop(tool);
    let end = std::time::Instant::now() + LIMIT;
    while !timers().is_empty() && std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(timers(), "");
    burn(&mut busy);
    assert!(busy.finish(LIMIT).status.success());
}

#[test]
fn a_clock_on_one_cpu_ticks_in_the_tool_whether_anything_runs_or_not() {
    let s = Scratch::new();
    let tool = tool(&s, &["tick", "5000000"]);
    let pid = tool.pid() as u64;
    std::thread::sleep(Duration::from_millis(500));
    let seen = samples(tool);
    assert_eq!(seen.keys().collect::<Vec<_>>(), [&pid]);
    let (ticks, period) = seen[&pid];
    assert!(ticks > 20 && period == 5_000_000, "{seen:?}");
}

#[test]
fn probes_and_samples_do_not_wait_for_each_other() {
    let s = Scratch::new();
    let exe = s.compile("targets/threads.c", "threads", &[]);
    let mut cmd = s.target(&exe);
    cmd.arg("8");
    let mut busy = Running::start(cmd);
    busy.wait_for("RUNNING");
    let mut cmd = s.tool(s.compile("tools/probe.c", "probe", &["-w"]));
    let work = bpftime_tests::symbol_offset(&exe, "work").to_string();
    cmd.arg("count");
    for kind in ["entry", "ret"] {
        cmd.arg(kind).arg(&exe).arg(&work);
    }
    let mut probes = Running::start(cmd);
    probes.wait_for("READY");
    let tool = tool(&s, &["sample", "1997", "-1"]);
    std::thread::sleep(Duration::from_millis(1500));
    let seen = samples(tool);
    assert!(seen.get(&(busy.pid() as u64)).is_some_and(|(n, _)| *n > 100), "{seen:?}");
    probes.signal(libc::SIGTERM);
    assert!(probes.finish(LIMIT).status.success());
    let f = busy.finish(LIMIT);
    assert!(f.status.success() && f.stdout.contains("ERRORS 0"), "{f:?}");
}

#[test]
fn clock_events_answer_as_the_kernels_do() {
    let s = Scratch::new();
    let exe = s.compile("tools/events.c", "events", &["-w"]);
    let run = |mut cmd: std::process::Command| {
        cmd.arg("errno");
        Running::start(cmd).finish(LIMIT).stdout
    };
    let ours = run(s.tool(&exe));
    let golden = bpftime_tests::root().join("tests/kernel-golden/clock-events");
    assert_eq!(ours, std::fs::read_to_string(golden).unwrap());
    let has_pmu = std::path::Path::new("/sys/bus/event_source/devices/cpu").exists();
    if kernel_is_oracle() && !has_pmu {
        assert_eq!(ours, run(s.command(&exe)));
    }
}
