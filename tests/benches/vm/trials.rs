//! All engines on one program, several times.

use super::engine::{ENGINES, Engine, Sample};
use super::report::Row;
use super::source::Built;
use std::path::Path;

/// The engines in an order that changes from trial to trial.
pub fn row(source: &Path, dir: &Path, trials: usize) -> Row {
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

/// Stays on the CPU it runs on; the engines inherit that.
pub fn pin() {
    // SAFETY: takes nothing.
    let here = unsafe { libc::sched_getcpu() };
    let _ = bpftime_tests::pin_to(here.max(0) as usize);
}
