//! What operations on maps cost inside of a program, against the kernel in the same run where root allows. Figures, no
//! verdicts: machines are noisy.
//!
//! `cargo bench -p bpftime-tests --bench maps` after `scripts/build`.

use bpftime_tests::{Scratch, kernel_is_oracle};
use std::collections::BTreeMap;
use std::process::Command;

/// `NAME figure` lines of the tool.
fn figures(mut cmd: Command, args: &[&str]) -> Vec<(String, f64)> {
    let out = cmd.args(args).output().expect("mapbench");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let row = |line: &str| {
        let (name, figure) = line.split_once(' ')?;
        Some((name.to_string(), figure.parse().ok()?))
    };
    text.lines().filter_map(row).collect()
}

fn main() {
    // `cargo test --benches` runs this too: the figures are for `cargo bench`.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let s = Scratch::new();
    let tool = s.compile("tools/mapbench.c", "mapbench", &["-w"]);
    let run = |ours: bool, args: &[&str]| match ours {
        true => figures(s.tool(&tool), args),
        false if kernel_is_oracle() => figures(s.command(&tool), args),
        false => Vec::new(),
    };
    let kernel: BTreeMap<_, _> = run(false, &[]).into_iter().collect();
    println!("{:<30} {:>9} {:>9}", "ns per operation", "bpftime", "kernel");
    for (name, ns) in run(true, &[]) {
        let other = kernel.get(&name).map_or("-".to_string(), |ns| format!("{ns:.1}"));
        println!("{name:<30} {ns:>9.1} {other:>9}");
    }
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    println!("\n{:<30} {:>9} {:>9} {:>9}", "operations per us, threads:", 1, 8, "of linear");
    for ours in [true, false] {
        let (one, eight) = (run(ours, &["threads", "1"]), run(ours, &["threads", "8"]));
        for ((name, one), (_, eight)) in one.into_iter().zip(eight) {
            let side = if ours { "bpftime" } else { "kernel" };
            let linear = eight / (one * cpus.min(8) as f64);
            println!("{:<30} {one:>9.1} {eight:>9.1} {linear:>9.2}", format!("{side} {name}"));
        }
    }
}
