//! Generated programs: what we accept, the kernel accepts, and it runs without a bad access.

use super::env::{judge, recorded, world};
use super::fuzz::{limit, runs_safely, wanted};
use super::generate::{Generator, Random};
use super::kernel::Kernel;
use bpftime_vm::asm::assemble;
use bpftime_vm::verify::{Log, Moment, Place};
use std::collections::BTreeMap;
use std::time::Instant;

/// Programs of a run without `BPFTIME_VERIFY_PROGRAMS`; the time is bounded, too: `BPFTIME_FUZZ_SECONDS`.
const PROGRAMS: u64 = 1 << 32;

/// Numbers in a reason are not what distinguishes it.
pub fn bucket(reason: &str) -> String {
    let first = reason.split(" | ").last().unwrap_or("");
    let mut text = String::new();
    for c in first.chars() {
        let c = if c.is_ascii_digit() { '#' } else { c };
        if !(c == '#' && text.ends_with('#')) {
            text.push(c);
        }
    }
    text
}

/// Why the kernel may refuse what we accept.
const EXPLAINED: &[(&str, &str)] = &[
    ("the kernel does not get to the end", "too large"),
    ("the kernel does not get to the end", "too complex"),
    ("kernel 6.18 cannot compile a callback that it found dead", "verifier bug: No program to jit"),
    ("kernel 6.18 adds the distance of a linked number to a pointer", "pointer offset"),
    // Accepted by both at an offset that varies; the path with a known one was pruned by us, not by the kernel.
    ("a byte of a spilled address is read as a number", "invalid size of register fill"),
];

/// The kernel walks a few impossible paths that we see to be impossible: at most one program in this many
/// that we accept may need that explanation, and each is run many times more.
const IMPOSSIBLE_PATHS: usize = 100;
const MANY_RUNS: u64 = 300;

#[test]
fn what_we_accept_the_kernel_accepts_and_the_machine_runs() {
    let world = world("kprobe");
    let kernel = Kernel::new(&world);
    let first = wanted("BPFTIME_VERIFY_SEED").unwrap_or(1);
    let (count, start) = (wanted("BPFTIME_VERIFY_PROGRAMS"), Instant::now());
    let (mut both, mut neither, mut ran, mut done) = (0, 0, 0, 0);
    let (mut we_accept, mut imprecise) = (BTreeMap::new(), BTreeMap::<String, (usize, u64)>::new());
    let mut sharper = 0;
    for seed in first..first + count.unwrap_or(PROGRAMS) {
        if count.is_none() && start.elapsed() > limit() {
            break;
        }
        done += 1;
        let source = Generator::program(seed);
        let insns = assemble(&source).unwrap_or_else(|e| panic!("{e}\n{source}"));
        let verdict = judge(&insns, &world, &mut Log::new(0));
        if verdict.accepted() {
            runs_safely(&insns, &world, seed, &source, 3);
            ran += 1;
        }
        let Some(kernel) = &kernel else { continue };
        let answer = kernel.judge(&insns, &world);
        match (verdict.refusal(), answer.errno) {
            (None, 0) => both += 1,
            (Some(_), 0) => {
                let (_, reason) = verdict.refusal().unwrap_or_default();
                imprecise.entry(bucket(&reason.replace('\n', " | "))).or_insert((0, seed)).0 += 1;
            }
            (None, errno) => {
                let explained = EXPLAINED.iter().find(|(_, text)| answer.reason.contains(text));
                let explained = if errno == 7 { EXPLAINED.first() } else { explained };
                if verdict.accepted() {
                    runs_safely(&insns, &world, seed, &source, MANY_RUNS);
                }
                let key = explained.map_or(bucket(&answer.reason), |(why, _)| (*why).to_string());
                sharper += usize::from(explained.is_none());
                we_accept.entry(key).or_insert((0, seed)).0 += 1;
            }
            (Some(_), _) => neither += 1,
        }
    }
    println!(
        "{done} programs in {:?}: both accept {both}, both refuse {neither}, {ran} run",
        start.elapsed()
    );
    println!("we refuse, the kernel accepts: {imprecise:#?}");
    println!("we accept, the kernel refuses, {sharper} on impossible paths: {we_accept:#?}");
    assert!(sharper <= both / IMPOSSIBLE_PATHS + 1);
}

/// A few fields of a few instructions are changed to anything: no verdict is wrong, but there is one.
#[test]
fn mangled_programs_never_panic() {
    let world = world("kprobe");
    for seed in 1..4000 {
        let mut insns = assemble(&Generator::program(seed)).unwrap();
        let mut random = Random::new(seed);
        for _ in 0..1 + random.below(6) {
            let at = random.below(insns.len());
            let insn = &mut insns[at];
            match random.below(5) {
                0 => insn.code = random.next() as u8,
                1 => insn.regs = random.next() as u8,
                2 => insn.off = random.next() as i16,
                3 => insn.imm = random.next() as i32,
                _ => insn.imm = [i32::MAX, i32::MIN, 1 << 29, -1][random.below(4)],
            }
        }
        if judge(&insns, &world, &mut Log::new(1)).accepted() {
            runs_safely(&insns, &world, seed, "mangled", 1);
        }
    }
    let far = "mov r1, r10; lddw r2, 0x7fffffffffffffff; add r1, r2; ldxb r0, [r1+8]; exit";
    assert!(!judge(&assemble(far).unwrap(), &world, &mut Log::new(2)).accepted());
}

/// `BPFTIME_VERIFY_SHOW=seed`: one program, both logs.
#[test]
fn show_one() {
    let Some(seed) = wanted("BPFTIME_VERIFY_SHOW") else { return };
    let (world, source) = (world("kprobe"), Generator::program(seed));
    let insns = assemble(&source).unwrap();
    let mut log = Log::new(2);
    judge(&insns, &world, &mut log);
    println!("{source}\n--- ours\n{}\n--- kernel", log.text());
    if let Some(kernel) = Kernel::new(&world) {
        println!("{}", kernel.log(&insns, &world));
    }
}

/// A moment of the program below, with these registers.
struct Regs<F: Fn(usize) -> u64>(F);

impl<F: Fn(usize) -> u64> Moment for Regs<F> {
    fn frames(&self) -> usize {
        1
    }
    fn reg(&self, reg: usize) -> u64 {
        (self.0)(reg)
    }
    fn stack(&self, _off: i64) -> u8 {
        0
    }
    fn address(&self, x: u64) -> Option<(Place, i64)> {
        (x >> 40 == 1).then_some((Place::Stack(0), x as i64 & 0xffff))
    }
}

#[test]
fn a_state_that_was_not_walked_is_noticed() {
    const FP: u64 = 1 << 40;
    let source = "call 7; and r0, 7; mov r1, r10; add r1, -16; add r1, r0; stb [r1], 0; mov r0, 0; exit";
    let (_, recorded) = recorded(&assemble(source).unwrap(), &world("kprobe")).unwrap();
    let at = |slot, r0, r1| recorded.holds(slot, &Regs(|reg| [r0, r1].get(reg).copied().unwrap_or(FP)));
    assert!(at(2, 7, 0) && !at(2, 8, 0), "a number that moves an address");
    assert!(at(7, 8, 0), "a number that decides nothing");
    assert!(at(3, 3, FP) && !at(3, 3, FP + 8), "an address that is elsewhere");
    assert!(!at(3, 3, 5), "a number instead of an address");
}
