//! What sampling at 200 Hz costs a busy process. A loop that reads the time stamp counter sees where it was interrupted: the sum
//! of those gaps, and the processor time of the process's other threads (the agent's), with sampling and without, in turns.
//! Longer gaps are another process's turn, or another machine's; without that, what the machine does otherwise would be a
//! hundred times what is measured here. Figures, no verdicts.
//!
//! `cargo bench -p bpftime-tests --bench sampling` after `scripts/build`.

use bpftime_tests::{Running, Scratch, kernel_is_oracle};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// For each line runs for 200 ms, and says the nanoseconds of all, in gaps of 0.5 to 200 us, and of other threads.
const TARGET: &str = r#"
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>
static long now(int clock) { struct timespec t; clock_gettime(clock, &t); return t.tv_sec * 1000000000l + t.tv_nsec; }
static long others(void) { return now(CLOCK_PROCESS_CPUTIME_ID) - now(CLOCK_THREAD_CPUTIME_ID); }
int main(void) {
  char line[16];
  long begun = now(CLOCK_MONOTONIC);
  unsigned long long first = __rdtsc();
  while (now(CLOCK_MONOTONIC) - begun < 200000000) ;
  double per_ns = (double)(__rdtsc() - first) / (now(CLOCK_MONOTONIC) - begun);
  unsigned long long least = 500 * per_ns, most = 200000 * per_ns;
  puts("READY"), fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    long before = others();
    unsigned long long start = __rdtsc(), last = start, end = start + (unsigned long long)(200000000 * per_ns), gaps = 0;
    while (last < end) {
      unsigned long long t = __rdtsc(), gap = t - last;
      if (gap > least && gap < most) gaps += gap;
      last = t;
    }
    printf("%.0f %.0f %ld\n", (last - start) / per_ns, gaps / per_ns, others() - before), fflush(stdout);
  }
}
"#;

/// Turns with sampling, and as many without.
const PAIRS: usize = 100;
/// How often the medians are taken of as many turns drawn anew, to see what else they could have been.
const DRAWS: usize = 1000;

/// Per cent of a turn that the process did not have for its work.
fn lost(target: &mut Running) -> f64 {
    target.say("go");
    let line = target.line();
    let ns: Vec<f64> = line.split_whitespace().map(|w| w.parse().expect("nanoseconds")).collect();
    (ns[1] + ns[2]) / ns[0] * 100.0
}

fn switch(tool: &mut Running, to: &str) {
    tool.say(to);
    tool.wait_for(to);
    // Until the target's threads have their timers, and the agent has stopped looking for more of them often.
    sleep(Duration::from_millis(80));
}

fn median(of: &mut [f64]) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// Of the turns without and with sampling the medians, and the range in which 19 of 20 differences of such medians lie; samples.
fn turns(tool: Command, target: Command) -> (f64, f64, (f64, f64), u64) {
    let mut target = Running::start(target);
    target.wait_for("READY");
    let mut tool = Running::start(tool);
    tool.wait_for("READY");
    let mut percent = [Vec::new(), Vec::new()];
    for turn in 0..PAIRS {
        // On, off, off, on: neither comes first more often.
        for on in [turn % 2, 1 - turn % 2] {
            switch(&mut tool, ["off", "on"][on]);
            percent[on].push(lost(&mut target));
        }
    }
    let mut seed = 1u64;
    let mut drawn = |of: &[f64]| {
        let mut next = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % PAIRS
        };
        median(&mut (0..PAIRS).map(|_| of[next()]).collect::<Vec<_>>())
    };
    let mut more: Vec<f64> = (0..DRAWS).map(|_| drawn(&percent[1]) - drawn(&percent[0])).collect();
    more.sort_by(f64::total_cmp);
    let samples = tool.finish(Duration::from_secs(20)).stdout.trim().parse().expect("samples");
    target.finish(Duration::from_secs(60));
    let [without, with] = percent.map(|mut of| median(&mut of));
    (without, with, (more[DRAWS / 40], more[DRAWS - DRAWS / 40]), samples)
}

fn main() {
    let s = Scratch::new();
    let (source, exe) = (s.path("busy.c"), s.path("busy"));
    std::fs::write(&source, TARGET).expect("source");
    let built = Command::new("gcc").args(["-O1", "-o"]).arg(&exe).arg(&source).status().expect("gcc");
    assert!(built.success(), "the target does not compile");
    let sampler = s.compile("tools/sampler.c", "sampler", &[]);
    let with = |mut tool: Command| {
        tool.arg("200");
        tool
    };
    println!(
        "200 Hz sampling, time that a busy process does not have for its work, per cent: without, with, added (range)"
    );
    let print = |name: &str, (without, with, (low, high), samples): (f64, f64, (f64, f64), u64)| {
        let added = with - without;
        println!("{name} {without:.3} {with:.3}  {added:.3} ({low:.3} to {high:.3})  {samples} samples");
    };
    print("bpftime", turns(with(s.tool(&sampler)), s.target(&exe)));
    if kernel_is_oracle() {
        print("kernel ", turns(with(s.command(&sampler)), s.command(&exe)));
    }
}
