//! Programs on virtual machines: `cargo bench -p bpftime-tests --bench vm` shows more of each.

#[path = "../vm/engine.rs"]
pub mod engine;
#[path = "../vm/kernel.rs"]
mod kernel;
#[allow(dead_code, reason = "the vm bench prints more")]
#[path = "../vm/report.rs"]
mod report;
#[path = "../vm/sbpf.rs"]
mod sbpf;
#[path = "../vm/source.rs"]
mod source;
#[path = "../vm/trials.rs"]
mod trials;

use crate::row::{Row, Stat};
use engine::ENGINES;

const GROUP: &str = "programs, of native code";

/// Those that are no compiler.
fn machines() -> impl Iterator<Item = &'static str> {
    ENGINES.iter().map(|e| e.name).filter(|name| !["gcc", "clang"].contains(name))
}

/// The geometric mean of all programs that the engine runs, by trial.
fn means(programs: &[report::Row], engine: &str, trials: usize) -> Option<Stat> {
    let of = |trial: usize| {
        let ratios: Vec<f64> = programs.iter().filter_map(|p| p.ratios(engine).get(trial).copied()).collect();
        report::geomean(&ratios)
    };
    let any = programs.iter().any(|p| !p.ratios(engine).is_empty());
    Stat::of((0..trials).map(of).collect()).filter(|_| any)
}

pub fn rows(trials: usize) -> Vec<Row> {
    trials::pin();
    let scratch = bpftime_tests::Scratch::new();
    let dir = scratch.path("");
    let programs: Vec<_> =
        source::programs(&[]).iter().map(|source| trials::row(source, &dir, trials)).collect();
    let wrong: Vec<_> = programs.iter().filter(|p| p.is_wrong("bpftime")).map(|p| p.name()).collect();
    assert!(wrong.is_empty(), "our results differ from gcc's: {wrong:?}");
    let mut rows: Vec<Row> = programs
        .iter()
        .map(|p| {
            Row::new(
                GROUP,
                p.name(),
                "x native",
                machines().map(|engine| (engine, Stat::of(p.ratios(engine)))),
            )
        })
        .collect();
    let all = machines().map(|engine| (engine, means(&programs, engine, trials)));
    rows.push(Row::new(GROUP, "geometric mean of those it runs", "x native", all));
    let loads = |engine| Stat::of(programs.iter().flat_map(|p| p.loads(engine)).collect());
    let loads = machines().map(|engine| (engine, loads(engine)));
    rows.push(Row::new("load, verify and compile, warm", "all programs", "us", loads));
    rows
}
