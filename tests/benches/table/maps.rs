//! Operations on maps inside of a program.

use crate::Side;
use crate::row::{Row, Stat};
use bpftime_tests::Scratch;
use std::path::Path;

/// `NAME figure` lines of the tool.
fn figures(s: &Scratch, tool: &Path, side: Side, args: &[&str]) -> Vec<(String, f64)> {
    let out = side.tool(s, tool).args(args).output().expect("mapbench");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let row = |line: &str| {
        let (name, figure) = line.split_once(' ')?;
        Some((name.to_string(), figure.parse().ok()?))
    };
    text.lines().filter_map(row).collect()
}

/// A row for each line of the tool, of `rounds` rounds on each side in turn.
fn table(
    group: &'static str,
    unit: &'static str,
    rounds: usize,
    measure: impl Fn(Side) -> Vec<(String, f64)>,
) -> Vec<Row> {
    let turns = (0..rounds).flat_map(|_| Side::all());
    let all: Vec<_> = turns.map(|side| (*side, measure(*side))).collect();
    let names = all.first().into_iter().flat_map(|(_, lines)| lines.iter().map(|(name, _)| name.clone()));
    let of = |name: &str, side: Side| {
        let lines = all.iter().filter(|(s, _)| *s == side).flat_map(|(_, lines)| lines);
        Stat::of(lines.filter(|(n, _)| n == name).map(|(_, figure)| *figure).collect())
    };
    let row = |name: String| {
        let cells: Vec<_> = Side::all().iter().map(|side| (side.name(), of(&name, *side))).collect();
        Row::new(group, name, unit, cells)
    };
    names.map(row).collect()
}

pub fn rows(rounds: usize) -> Vec<Row> {
    let s = Scratch::new();
    let tool = s.compile("tools/mapbench.c", "mapbench", &["-w"]);
    let mut rows = table("operations in a program", "ns", rounds, |side| figures(&s, &tool, side, &[]));
    // Twice the threads on as many processors: of twice the operations, so much.
    let efficiency = |side| {
        let alone = figures(&s, &tool, side, &["threads", "1"]);
        let two = figures(&s, &tool, side, &["threads", "2"]);
        alone.into_iter().zip(two).map(|((name, one), (_, two))| (name, two / (2.0 * one))).collect()
    };
    rows.extend(table("two threads on one map, of twice one", "1 = linear", rounds.min(3), efficiency));
    rows
}
