//! A function that is probed, by bpftrace.

use crate::row::Row;
use crate::{Side, attached, end, in_turn};
use bpftime_tests::{Running, Scratch};
use std::path::Path;

const SCRIPTS: &[(&str, &str)] = &[
    ("uprobe { }", "uprobe:PROBED { }"),
    ("uprobe count()", "uprobe:PROBED { @ = count(); }"),
    ("uretprobe { }", "uretprobe:PROBED { }"),
    ("uretprobe count()", "uretprobe:PROBED { @ = count(); }"),
    (
        "both, latency histogram",
        "uprobe:PROBED { @s[tid]=nsecs; } uretprobe:PROBED /@s[tid]/ { @=hist(nsecs-@s[tid]); delete(@s[tid]); }",
    ),
];

/// What two threads at once may have in common: nothing.
const SHARED: &[(&str, &str)] = &[
    ("uprobe { }", "uprobe:PROBED { }"),
    ("uprobe count()", "uprobe:PROBED { @ = count(); }"),
    ("uprobe hist()", "uprobe:PROBED { @ = hist(arg0); }"),
    ("uprobe @[tid] = count()", "uprobe:PROBED { @[tid] = count(); }"),
];

/// ns per call of the target's function, in each of `threads` threads, while `script` is attached.
fn per_call(s: &Scratch, exe: &Path, side: Side, script: Option<&str>, threads: usize) -> f64 {
    let script = script.map(|script| script.replace("PROBED", &format!("{}:probed", exe.display())));
    let tool = script.map(|script| attached(side.tool(s, "bpftrace"), &script));
    let mut cmd = side.target(s, exe);
    let calls = if side == Side::Kernel && tool.is_some() { "4000" } else { "200000" };
    cmd.args(["21", calls, &threads.to_string()]);
    let mut target = Running::start(cmd);
    target.wait_for("RUNNING");
    target.say("go");
    let result = target.wait_for("RESULT");
    end(tool);
    result.split(' ').nth(1).and_then(|ns| ns.parse().ok()).unwrap_or(f64::NAN)
}

pub fn rows(rounds: usize) -> Vec<Row> {
    let s = Scratch::new();
    let exe = s.compile("targets/calls.c", "calls", &["-fno-omit-frame-pointer"]);
    let one = |name: &str, script: Option<&str>| {
        let cells = in_turn(rounds, |side| per_call(&s, &exe, side, script, 1));
        Row::new("probes, one thread", name, "ns/call", cells)
    };
    let mut rows = vec![one("not probed, agent loaded", None)];
    rows.extend(SCRIPTS.iter().map(|(name, script)| one(name, Some(script))));
    let efficiency = |script: Option<&str>, side: Side| {
        let alone = per_call(&s, &exe, side, script, 1);
        alone / per_call(&s, &exe, side, script, 2)
    };
    let two = |name: &str, script: Option<&str>| {
        let cells = in_turn(rounds, |side| efficiency(script, side));
        Row::new("two threads at once, of twice one", name, "1 = linear", cells)
    };
    rows.push(two("not probed", None));
    rows.extend(SHARED.iter().map(|(name, script)| two(name, Some(script))));
    rows
}
