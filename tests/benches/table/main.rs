//! What bpftime costs, in one table of one run: beside the kernel where root allows, beside native code and other
//! virtual machines. Figures, no verdicts: machines are noisy, so each side is measured in turn, several times.
//!
//! `scripts/bench [--json] [GROUP...]`, or after `scripts/build`
//! `cargo bench -p bpftime-tests --bench table -- [--json] [--rounds N] [GROUP...]`

mod maps;
mod probes;
mod row;
mod scale;
mod start;
mod syscalls;
mod vm;

use bpftime_tests::{Running, Scratch, kernel_is_oracle};
use row::{Row, Stat};
use std::process::Command;
use std::time::Duration;

/// Which side runs the programs.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Bpftime,
    Kernel,
}

impl Side {
    /// Those there are, in the order of the columns.
    fn all() -> &'static [Side] {
        if kernel_is_oracle() { &[Side::Bpftime, Side::Kernel] } else { &[Side::Bpftime] }
    }

    fn name(self) -> &'static str {
        if self == Side::Bpftime { "bpftime" } else { "kernel" }
    }

    fn tool(self, s: &Scratch, program: impl AsRef<std::ffi::OsStr>) -> Command {
        if self == Side::Bpftime { s.tool(program) } else { s.command(program) }
    }

    fn target(self, s: &Scratch, program: impl AsRef<std::ffi::OsStr>) -> Command {
        if self == Side::Bpftime { s.target(program) } else { s.command(program) }
    }
}

/// Measures on each side in turn, `rounds` times.
fn in_turn(rounds: usize, mut measure: impl FnMut(Side) -> f64) -> Vec<(&'static str, Option<Stat>)> {
    let mut values = vec![Vec::new(); Side::all().len()];
    for _ in 0..rounds {
        Side::all().iter().zip(&mut values).for_each(|(side, values)| values.push(measure(*side)));
    }
    Side::all().iter().zip(values).map(|(side, values)| (side.name(), Stat::of(values))).collect()
}

/// bpftrace with this script, attached.
fn attached(mut bpftrace: Command, script: &str) -> Running {
    let script = format!("BEGIN {{ printf(\"READY\\n\"); }} {script}");
    bpftrace.args(["-e", &script]).stderr(std::process::Stdio::null());
    let mut tool = Running::start(bpftrace);
    tool.wait_for("READY");
    // bpftrace runs BEGIN before it attaches the rest.
    std::thread::sleep(Duration::from_millis(600));
    tool
}

fn end(tool: Option<Running>) {
    if let Some(tool) = tool {
        tool.signal(libc::SIGINT);
        tool.finish(Duration::from_secs(60));
    }
}

/// A part of the table, given the number of rounds.
type Group = (&'static str, fn(usize) -> Vec<Row>);

const GROUPS: &[Group] = &[
    ("probes", probes::rows),
    ("syscalls", syscalls::rows),
    ("maps", maps::rows),
    ("scale", scale::rows),
    ("start", start::rows),
    ("vm", vm::rows),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, engine, rest @ ..] = args.as_slice()
        && flag == "--engine"
    {
        vm::engine::child(engine, rest);
    }
    // `cargo test --benches` runs this too: the figures are for `cargo bench`.
    if !args.iter().any(|a| a == "--bench") {
        return;
    }
    let (mut json, mut rounds, mut wanted) = (false, 3, Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => {}
            "--json" => json = true,
            "--rounds" => rounds = args.next().and_then(|n| n.parse().ok()).unwrap_or(rounds),
            group if GROUPS.iter().any(|(name, _)| *name == group) => wanted.push(group),
            other => {
                let names: Vec<_> = GROUPS.iter().map(|(name, _)| *name).collect();
                eprintln!("no group {other:?}: {}", names.join(", "));
                std::process::exit(2);
            }
        }
    }
    let mut rows = Vec::new();
    for (name, measure) in GROUPS.iter().filter(|(name, _)| wanted.is_empty() || wanted.contains(name)) {
        eprintln!("measuring {name}");
        rows.extend(measure(rounds));
    }
    print!("{}", if json { row::json(&rows) } else { row::table(&rows) });
}
