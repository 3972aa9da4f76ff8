//! Virtual machines side by side on the programs in this directory, as ratios to native code of one run.
//!
//! `scripts/build && cargo bench -p bpftime-tests --bench vm -- [--json] [--trials N] [PROGRAM...]`
//!
//! Each engine is one process per trial, pinned to a CPU, in an order that changes from trial to trial; a cell is the
//! median of the trials, `spread` the widest (third quartile - first quartile) / median of a row. Native is the faster
//! of gcc and clang -O2. `!` marks a result or memory that differs from native's, `-` what an engine does not run.

mod engine;
mod kernel;
#[allow(dead_code, reason = "the table bench asks for other things")]
mod report;
mod sbpf;
mod source;
mod trials;

use report::Row;

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
    trials::pin();
    let scratch = bpftime_tests::Scratch::new();
    let dir = scratch.path("");
    let rows: Vec<Row> = source::programs(&args.programs)
        .iter()
        .map(|source| trials::row(source, &dir, args.trials))
        .collect();
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
