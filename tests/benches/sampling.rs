//! What sampling at 200 Hz costs a busy process: the processor time that it needs for the same work, with and without, in
//! turns. All its threads count, the agent's too. Figures, no verdicts: machines are noisy.
//!
//! `cargo bench -p bpftime-tests --bench sampling` after `scripts/build`.

use bpftime_tests::{Running, Scratch, kernel_is_oracle};
use std::process::Command;
use std::time::Duration;

/// For each line does the same work ten times, and says the nanoseconds of processor time that each took.
const TARGET: &str = r#"
#include <stdio.h>
#include <time.h>
static long now(void) { struct timespec t; clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); return t.tv_sec * 1000000000l + t.tv_nsec; }
int main(void) {
  char line[16];
  volatile unsigned x = 0;
  puts("READY"), fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    for (int r = 0; r < 10; r++) { long t = now(); for (int i = 0; i < 50000000; i++) x += i; printf("%ld ", now() - t); }
    puts(""), fflush(stdout);
  }
}
"#;

const TURNS: usize = 6;

fn work(target: &mut Running) -> Vec<f64> {
    target.say("go");
    let mut ns: Vec<f64> = target.line().split_whitespace().filter_map(|w| w.parse().ok()).collect();
    ns.sort_by(f64::total_cmp);
    ns
}

/// How many per cent more the work takes, by the least and by the median of each turn: the median over all turns.
fn added(tool: &dyn Fn() -> Command, target: Command) -> (f64, f64) {
    let mut target = Running::start(target);
    target.wait_for("READY");
    let (mut least, mut median) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let before = work(&mut target);
        let mut cmd = tool();
        cmd.args(["-e", "profile:hz:200 { @[pid] = count(); } interval:ms:20 { printf(\"READY\\n\"); }"]);
        let mut running = Running::start(cmd);
        running.wait_for("READY");
        let with = work(&mut target);
        running.signal(libc::SIGINT);
        running.finish(Duration::from_secs(20));
        let more = |i: usize| (with[i] / before[i] - 1.0) * 100.0;
        least.push(more(0));
        median.push(more(before.len() / 2));
    }
    target.finish(Duration::from_secs(60));
    let middle = |mut of: Vec<f64>| {
        of.sort_by(f64::total_cmp);
        of[of.len() / 2]
    };
    (middle(least), middle(median))
}

fn main() {
    let s = Scratch::new();
    let (source, exe) = (s.path("busy.c"), s.path("busy"));
    std::fs::write(&source, TARGET).expect("source");
    let built = Command::new("gcc").args(["-O1", "-o"]).arg(&exe).arg(&source).status().expect("gcc");
    assert!(built.success(), "the target does not compile");
    println!(
        "200 Hz sampling, processor time added to a busy process, per cent (least of ten, median of ten):"
    );
    let (least, median) = added(&|| s.tool("bpftrace"), s.target(&exe));
    println!("bpftime {least:6.2} {median:6.2}");
    if kernel_is_oracle() {
        let (least, median) = added(&|| s.command("bpftrace"), s.command(&exe));
        println!("kernel  {least:6.2} {median:6.2}");
    }
}
