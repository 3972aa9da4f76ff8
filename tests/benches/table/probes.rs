//! A function that is probed, by bpftrace.

use crate::row::{Row, Stat};
use crate::{Side, attached, end, in_turn};
use bpftime_tests::{Running, Scratch};
use std::path::Path;
use std::process::Command;

/// What a hook costs at the least, by the function of calls.c that has it: see there.
const ENTRY: &[&str] = &["entry_limit"];
const RETURN: &[&str] = &["return_limit"];
const BOTH: &[&str] = &["entry_limit", "return_limit"];

/// Each with the limits of its hooks.
const SCRIPTS: &[(&str, &str, &[&str])] = &[
    ("uprobe { }", "uprobe:PROBED { }", ENTRY),
    ("uprobe count()", "uprobe:PROBED { @ = count(); }", ENTRY),
    ("uretprobe { }", "uretprobe:PROBED { }", RETURN),
    ("uretprobe count()", "uretprobe:PROBED { @ = count(); }", RETURN),
    (
        "both, latency histogram",
        "uprobe:PROBED { @s[tid]=nsecs; } uretprobe:PROBED /@s[tid]/ { @=hist(nsecs-@s[tid]); delete(@s[tid]); }",
        BOTH,
    ),
];

/// What two threads at once may have in common: nothing.
const SHARED: &[(&str, &str)] = &[
    ("uprobe { }", "uprobe:PROBED { }"),
    ("uprobe count()", "uprobe:PROBED { @ = count(); }"),
    ("uprobe hist()", "uprobe:PROBED { @ = hist(arg0); }"),
    ("uprobe @[tid] = count()", "uprobe:PROBED { @[tid] = count(); }"),
];

/// ns per call of `function` of the target, in each of `threads` threads, with nothing in the way but what `target` loads.
fn calls(mut target: Command, function: &str, calls: u32, threads: usize) -> f64 {
    target.args(["21", &calls.to_string(), &threads.to_string(), function]);
    let mut target = Running::start(target);
    target.wait_for("RUNNING");
    target.say("go");
    let result = target.wait_for("RESULT");
    result.split(' ').nth(1).and_then(|ns| ns.parse().ok()).unwrap_or(f64::NAN)
}

/// ns per call of the target's function, in each of `threads` threads, while `script` is attached.
fn per_call(s: &Scratch, exe: &Path, side: Side, script: Option<&str>, threads: usize) -> f64 {
    let script = script.map(|script| script.replace("PROBED", &format!("{}:probed", exe.display())));
    let tool = script.map(|script| attached(side.tool(s, "bpftrace"), &script));
    let n = if side == Side::Kernel && tool.is_some() { 4000 } else { 200_000 };
    let ns = calls(side.target(s, exe), "probed", n, threads);
    end(tool);
    ns
}

pub fn rows(rounds: usize) -> Vec<Row> {
    let s = Scratch::new();
    let exe = s.compile("targets/calls.c", "calls", &[]);
    let one = |name: &str, script: Option<&str>, limits: &[&str]| {
        // What the hook adds, so a call without it is taken away.
        let added = |ns: f64, bare: f64| if script.is_some() { ns - bare } else { ns };
        let (mut sides, mut least) = (vec![Vec::new(); Side::all().len()], Vec::new());
        for _ in 0..rounds {
            let bare = calls(s.command(&exe), "probed", 200_000, 1);
            for (side, values) in Side::all().iter().zip(&mut sides) {
                values.push(added(per_call(&s, &exe, *side, script, 1), bare));
            }
            least.push(limits.iter().map(|f| calls(s.command(&exe), f, 200_000, 1) - bare).sum());
        }
        let cells = Side::all().iter().zip(sides).map(|(side, values)| (side.name(), Stat::of(values)));
        let limit = (!limits.is_empty()).then(|| ("limit", Stat::of(least)));
        let unit = if script.is_some() { "ns added" } else { "ns/call" };
        Row::new("probes, one thread", name, unit, cells.chain(limit))
    };
    let mut rows = vec![one("not probed, agent loaded", None, &[])];
    rows.extend(SCRIPTS.iter().map(|(name, script, limits)| one(name, Some(script), limits)));
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
