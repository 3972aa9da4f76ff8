//! Virtual machines side by side on the programs in this directory, as ratios to native code of one run.
//!
//! `scripts/build && cargo bench -p bpftime-tests --bench vm -- [--json] [--trials N] [PROGRAM...]`
//!
//! Each engine is one process per trial, pinned to a CPU, in an order that changes from trial to trial; a cell is the
//! median of the trials, `spread` the widest (third quartile - first quartile) / median of a row. Native is the faster
//! of gcc and clang -O2. `!` marks a result or memory that differs from native's, `-` what an engine does not run.

mod engine;
mod report;
mod source;

use engine::{ENGINES, Engine, Sample};
use report::Row;
use source::Built;
use std::path::Path;

/// What the command line asks for.
struct Args {
    json: bool,
    trials: usize,
    programs: Vec<String>,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, engine, rest @ ..] = args.as_slice()
        && flag == "--engine"
    {
        engine::child(engine, rest);
    }
    let args = parse(&args);
    pin();
    let scratch = bpftime_tests::Scratch::new();
    let dir = scratch.path("");
    let rows: Vec<Row> =
        source::programs(&args.programs).iter().map(|source| row(source, &dir, args.trials)).collect();
    print!("{}", if args.json { report::json(&rows) } else { report::table(&rows) });
    if rows.iter().any(|row| row.is_wrong("bpftime")) {
        std::process::exit(1);
    }
}

fn parse(args: &[String]) -> Args {
    let mut parsed = Args { json: false, trials: 9, programs: vec![] };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => parsed.json = true,
            "--trials" => parsed.trials = args.next().and_then(|n| n.parse().ok()).unwrap_or(9),
            // What cargo passes to every bench.
            "--bench" => {}
            program => parsed.programs.push(program.to_string()),
        }
    }
    parsed
}

/// Stays on the CPU it runs on; the engines inherit that.
fn pin() {
    // SAFETY: a set of our own for the kernel to read; zeros are an empty one.
    unsafe {
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu().max(0) as usize, &mut cpus);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const cpus);
    }
}

fn row(source: &Path, dir: &Path, trials: usize) -> Row {
    let built = Built::new(source, dir);
    let mut row = Row::new(&built.name);
    let engines: Vec<&Engine> = ENGINES.iter().filter(|engine| engine.exists()).collect();
    let repeat = engines[0].run(&built, 1).map_or(1, |sample| calibrated(&sample));
    for trial in 0..trials {
        for turn in 0..engines.len() {
            // Another one goes first each time.
            let engine = engines[(turn + trial) % engines.len()];
            row.add(engine.name, engine.run(&built, repeat));
        }
    }
    row
}

/// Runs that take about ten milliseconds.
fn calibrated(sample: &Sample) -> u64 {
    ((10e6 / sample.exec_ns.max(1.0)) as u64).clamp(1, 2_000_000)
}
