//! What it takes until something runs, and what it occupies.

use crate::Side;
use crate::in_turn;
use crate::row::{Row, Stat};
use bpftime_tests::{Running, Scratch, dist};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const GROUP: &str = "starting";

/// Milliseconds until the command has ended.
fn wall(mut cmd: Command) -> f64 {
    let start = Instant::now();
    let ran = cmd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(ran.is_ok_and(|status| status.success()), "{cmd:?}");
    start.elapsed().as_secs_f64() * 1e3
}

/// Injection into a process that sleeps.
fn inject(s: &Scratch) -> f64 {
    let mut sleeper = s.command("sleep").arg("1000").spawn().expect("sleep");
    let mut cmd = s.command(dist("bin/bpftime-agent"));
    cmd.args(["inject", "--pid", &sleeper.id().to_string()]);
    let ms = wall(cmd);
    let _ = sleeper.kill();
    let _ = sleeper.wait();
    ms
}

/// Resident memory of a process that has started, KiB.
fn resident(cmd: Command) -> f64 {
    let mut target = Running::start(cmd);
    target.wait_for("RUNNING");
    let status = std::fs::read_to_string(format!("/proc/{}/status", target.pid())).unwrap_or_default();
    target.say("go");
    target.finish(Duration::from_secs(60));
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(f64::NAN)
}

pub fn rows(rounds: usize) -> Vec<Row> {
    let s = Scratch::new();
    let exe = s.compile("targets/calls.c", "calls", &[]);
    let nothing = in_turn(rounds, |side| {
        let mut cmd = side.tool(&s, "bpftrace");
        cmd.args(["-e", "BEGIN { exit() }"]);
        wall(cmd)
    });
    let ours = |measure: &dyn Fn() -> f64| {
        [(Side::Bpftime.name(), Stat::of((0..rounds).map(|_| measure()).collect()))]
    };
    let agent = || resident(s.target(&exe)) - resident(s.command(&exe));
    let starting = || wall(s.target("true")) - wall(s.command("true"));
    vec![
        Row::new(GROUP, "bpftrace -e 'BEGIN { exit() }'", "ms", nothing),
        Row::new(GROUP, "a process, by the agent", "ms", ours(&starting)),
        Row::new(GROUP, "injection into a sleeper", "ms", ours(&|| inject(&s))),
        Row::new(GROUP, "resident memory, by the agent", "KiB", ours(&agent)),
    ]
}
