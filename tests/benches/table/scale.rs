//! Ten thousand probes, and twenty tools: how long they take to attach, what memory they take, and whether a probe
//! costs more for being one of many.

use crate::row::{Row, Stat};
use crate::{Side, in_turn};
use bpftime_tests::{Running, Scratch, private_bytes, symbol_offset};
use std::path::PathBuf;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const PROBES: u64 = 10_000;
/// Bytes from one function of the target to the next.
const STEP: u64 = 32;

struct Setting {
    s: Scratch,
    exe: PathBuf,
    tool: PathBuf,
    first: u64,
}

impl Setting {
    fn new() -> Self {
        let s = Scratch::new();
        let (exe, tool) =
            (s.compile("targets/many.c", "many", &[]), s.compile("tools/links.c", "links", &["-w"]));
        let first = symbol_offset(&exe, "first");
        Self { s, exe, tool, first }
    }

    fn target(&self, side: Side) -> Running {
        let mut target = Running::start(side.target(&self.s, &self.exe));
        target.wait_for("RUNNING");
        target
    }

    /// A tool that probes `n` functions from `from` on, one way or another, and the milliseconds that took.
    fn attach(&self, side: Side, how: &str, from: u64, n: u64) -> (Running, f64) {
        let mut cmd = side.tool(&self.s, &self.tool);
        cmd.arg(how).arg(&self.exe).args([self.first + from * STEP, STEP, n].map(|n| n.to_string()));
        let mut tool = Running::start(cmd);
        let ns: f64 = tool.wait_for("READY").trim_start_matches("READY ").parse().expect("nanoseconds");
        (tool, ns / 1e6)
    }
}

fn end(tool: Running) {
    tool.signal(libc::SIGTERM);
    assert!(tool.finish(LIMIT).status.success());
}

/// ns of a call of the first function.
fn call(target: &mut Running) -> f64 {
    target.say("t");
    target.wait_for("takes").trim_start_matches("takes ").parse().expect("nanoseconds")
}

fn memory(setting: &Setting, rounds: usize) -> Vec<Row> {
    let mut bytes = [vec![], vec![], vec![]];
    for _ in 0..rounds {
        let target = setting.target(Side::Bpftime);
        // The first probe brings what all share: an arena, tables, the program.
        let (one, _) = setting.attach(Side::Bpftime, "multi", 0, 1);
        let before = private_bytes(target.pid());
        let (many, _) = setting.attach(Side::Bpftime, "multi", 0, PROBES);
        let after = private_bytes(target.pid());
        (0..3).for_each(|i| bytes[i].push((after[i] - before[i]) / PROBES as f64));
        end(one);
        end(many);
    }
    let names = ["the target's text, copied", "its thunk", "beside text and thunk"];
    let rows = names.iter().zip(bytes).rev();
    rows.map(|(name, bytes)| {
        Row::new("memory of an idle probe", *name, "bytes", [("bpftime", Stat::of(bytes))])
    })
    .collect()
}

/// What a probed call takes beside `others`, which are there while it is measured.
fn beside<T>(setting: &Setting, others: impl FnOnce() -> T, end_others: impl FnOnce(T)) -> f64 {
    let mut target = setting.target(Side::Bpftime);
    let (tool, _) = setting.attach(Side::Bpftime, "multi", 0, 1);
    let there = others();
    let ns = call(&mut target);
    end_others(there);
    end(tool);
    ns
}

fn cost(setting: &Setting, rounds: usize) -> Vec<Row> {
    let row = |name: &str, measure: &dyn Fn() -> f64| {
        let stat = Stat::of((0..rounds).map(|_| measure()).collect());
        Row::new("a probed call", name, "ns/call", [("bpftime", stat)])
    };
    let many = || setting.attach(Side::Bpftime, "multi", 1, PROBES - 1).0;
    let tools = || (1..20).map(|i| setting.attach(Side::Bpftime, "multi", i, 1).0).collect::<Vec<_>>();
    vec![
        row("the only probe, one tool", &|| beside(setting, || (), drop)),
        row("one of 10 000 probes", &|| beside(setting, many, end)),
        row("one tool of 20", &|| beside(setting, tools, |tools| tools.into_iter().for_each(end))),
    ]
}

/// What attaching takes for each function; by links of their own it is as long for the last as for the first.
fn attaching(setting: &Setting, rounds: usize) -> Vec<Row> {
    let ways = [
        ("multi", "one uprobe_multi link of 10 000", PROBES),
        ("perf", "1000 perf event links", PROBES / 10),
        ("ioctl", "1000 perf events, SET_BPF", PROBES / 10),
    ];
    let row = |(how, name, n): &(&str, &str, u64)| {
        let cells = in_turn(rounds, |side| {
            let target = setting.target(side);
            let (tool, ms) = setting.attach(side, how, 0, *n);
            end(tool);
            drop(target);
            ms * 1e3 / *n as f64
        });
        Row::new("attaching, one target", *name, "us/function", cells)
    };
    ways.iter().map(row).collect()
}

pub fn rows(rounds: usize) -> Vec<Row> {
    let setting = Setting::new();
    let rounds = rounds.min(3);
    [attaching(&setting, rounds), memory(&setting, rounds), cost(&setting, rounds)].concat()
}
