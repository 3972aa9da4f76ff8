//! What sampling at 200 Hz costs a busy process: the processor time that it needs for the same work, with and without. Sampling
//! is switched on and off between one piece of work and the next, so that what the machine does otherwise is the same for
//! both. All threads of the process count, the agent's too. Figures, no verdicts: machines are noisy.
//!
//! `cargo bench -p bpftime-tests --bench sampling` after `scripts/build`.

use bpftime_tests::{Running, Scratch, kernel_is_oracle};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// For each line does a piece of the same work, and says the nanoseconds of processor time that it took.
const TARGET: &str = r#"
#include <stdio.h>
#include <time.h>
static long now(void) { struct timespec t; clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); return t.tv_sec * 1000000000l + t.tv_nsec; }
int main(void) {
  char line[16];
  volatile unsigned x = 0;
  puts("READY"), fflush(stdout);
  while (fgets(line, sizeof line, stdin)) { long t = now(); for (int i = 0; i < 20000000; i++) x += i; printf("%ld\n", now() - t), fflush(stdout); }
}
"#;

/// Pieces of work with sampling, and as many without.
const PAIRS: usize = 300;
/// The median of so many pairs drawn again, to see how far it could be another.
const DRAWS: usize = 1000;

fn work(target: &mut Running) -> f64 {
    target.say("go");
    target.line().trim().parse().expect("nanoseconds")
}

fn switch(tool: &mut Running, to: &str) {
    tool.say(to);
    tool.wait_for(to);
    // Until threads of the target have their timers.
    sleep(Duration::from_millis(5));
}

fn median(of: &mut [f64]) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// Median of what samples add to the work in per cent; the range in which 19 of 20 medians of such pairs lie; samples in
/// a second of work.
fn added(tool: Command, target: Command) -> (f64, (f64, f64), f64) {
    let mut target = Running::start(target);
    target.wait_for("READY");
    let mut tool = Running::start(tool);
    tool.wait_for("READY");
    let (mut more, mut sampled) = (Vec::new(), 0.0);
    for turn in 0..PAIRS {
        // On, off, off, on: neither comes first more often.
        let mut ns = [0.0; 2];
        for on in [turn % 2, 1 - turn % 2] {
            switch(&mut tool, ["off", "on"][on]);
            let start = Instant::now();
            ns[on] = work(&mut target);
            sampled += on as f64 * start.elapsed().as_secs_f64();
        }
        more.push((ns[1] / ns[0] - 1.0) * 100.0);
    }
    let mut seed = 1u64;
    let mut next = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % PAIRS
    };
    let mut medians: Vec<f64> =
        (0..DRAWS).map(|_| median(&mut (0..PAIRS).map(|_| more[next()]).collect::<Vec<_>>())).collect();
    medians.sort_by(f64::total_cmp);
    let samples: f64 = tool.finish(Duration::from_secs(20)).stdout.trim().parse().expect("samples");
    target.finish(Duration::from_secs(60));
    (median(&mut more), (medians[DRAWS / 40], medians[DRAWS - DRAWS / 40]), samples / sampled)
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
        "200 Hz sampling, processor time added to a busy process: median, 19 of 20 medians, samples per second"
    );
    let print = |name: &str, (middle, (low, high), rate): (f64, (f64, f64), f64)| {
        println!("{name} {middle:6.2} %  {low:6.2} to {high:5.2} %  {rate:6.1}/s");
    };
    print("bpftime", added(with(s.tool(&sampler)), s.target(&exe)));
    if kernel_is_oracle() {
        print("kernel ", added(with(s.command(&sampler)), s.command(&exe)));
    }
}
