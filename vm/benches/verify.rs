//! How long verification takes, with the kernel's own on the same programs in the same run: `cargo bench -p bpftime-vm
//! --bench verify`. Programs: those of tests/verify that both accept, generated ones, and four that are large in a way
//! that real ones are. Median of several loads each; without root only our own times.
// The tests' own tests are not in here, nor what only they use.
#![allow(missing_docs, dead_code, unused_imports)]

#[path = "../tests/verify/env.rs"]
mod env;
#[path = "../tests/verify/generate.rs"]
mod generate;
#[path = "../tests/verify/kernel.rs"]
mod kernel;
#[path = "../tests/verify/programs.rs"]
mod programs;

use bpftime_vm::Insn;
use bpftime_vm::asm::assemble;
use bpftime_vm::verify::Log;
use env::world;
use env::{World, judge};
use kernel::Kernel;
use programs::cases;
use std::time::{Duration, Instant};

const LOADS: usize = 7;

/// Large programs: a loop that is followed to its end, branches that double the paths, frames as a stack walker has
/// them, a switch.
fn large() -> Vec<(&'static str, String)> {
    let walk =
        "lddw r6, value 101+0; mov r7, 0; top: mov r1, r10; add r1, -16; mov r2, 16; mov r3, r7; call 113
         jne r0, 0, out; ldxdw r3, [r10-16]; ldxdw r4, [r10-8]; jeq r3, 0, out; ldxdw r5, [r6+8]; add r5, r4
         stxdw [r6+8], r5; add r7, 1; jlt r7, 300, top; out: mov r0, 0; exit";
    let branches: String =
        (0..64).map(|n| format!("call 7; jgt r0, {n}, b{n}; add r6, {n}; b{n}: ")).collect();
    let switch: String =
        (0..400).map(|n| format!("jne r0, {n}, s{n}; stdw [r10-8], {n}; ja done; s{n}: ")).collect();
    vec![
        ("a loop of 100 000 rounds", "mov r0, 0; top: add r0, 1; jlt r0, 100000, top; exit".into()),
        ("300 frames of a stack", walk.into()),
        ("64 independent branches", format!("mov r6, 0; {branches}mov r0, 0; exit")),
        ("a switch of 400", format!("call 7; {switch}done: mov r0, 0; exit")),
    ]
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn timed(mut load: impl FnMut() -> bool) -> Option<Duration> {
    let mut once = || {
        let start = Instant::now();
        load().then(|| start.elapsed())
    };
    (0..LOADS).map(|_| once()).collect::<Option<Vec<_>>>().map(median)
}

/// Our time and the kernel's, of a program that both accept.
fn both(insns: &[Insn], world: &World, kernel: Option<&Kernel>) -> Option<(Duration, Option<Duration>)> {
    let ours = timed(|| judge(insns, world, &mut Log::new(0)).accepted())?;
    match kernel {
        Some(kernel) => Some((ours, Some(timed(|| kernel.judge(insns, world).errno == 0)?))),
        None => Some((ours, None)),
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn show(name: &str, times: &mut [(Duration, Option<Duration>)]) {
    let column = |pick: fn(&(Duration, Option<Duration>)) -> Option<Duration>| {
        let mut list: Vec<_> = times.iter().filter_map(pick).collect();
        list.sort();
        [50, 95, 100]
            .map(|p| list.get((list.len() * p / 100).min(list.len().max(1) - 1)).copied().map_or(0.0, micros))
    };
    let (ours, theirs) = (column(|t| Some(t.0)), column(|t| t.1));
    println!("{name} ({} programs), us: median, p95, most", times.len());
    println!("  bpftime {:9.1} {:9.1} {:9.1}", ours[0], ours[1], ours[2]);
    println!("  kernel  {:9.1} {:9.1} {:9.1}", theirs[0], theirs[1], theirs[2]);
}

fn main() {
    let kprobe = world("kprobe");
    let kernel = Kernel::new(&kprobe);
    let load = |source: &str, world: &World| {
        assemble(source).ok().and_then(|insns| both(&insns, world, kernel.as_ref()))
    };
    let mut own: Vec<_> = cases().iter().filter_map(|c| load(&c.source, &world(&c.header))).collect();
    show("programs of the tests", &mut own);
    let generated = (1..400).filter_map(|seed| load(&generate::Generator::program(seed), &kprobe));
    show("generated programs", &mut generated.collect::<Vec<_>>());
    for (name, source) in large() {
        match load(&source, &kprobe) {
            Some(time) => show(name, &mut [time]),
            None => println!("{name}: refused by one side"),
        }
    }
}
