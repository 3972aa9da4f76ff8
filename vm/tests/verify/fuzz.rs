//! What the fuzzers do with an input. The targets of cargo-fuzz (vm/fuzz) and the tests in `twins` call the same.
//! A panic is a find.

use super::env::{World, judge, recorded, world};
use super::generate::Generator;
use super::guarded;
use super::machine::{Machine, NO_HELPER, OUT_OF_FUEL};
use bpftime_vm::asm::assemble;
use bpftime_vm::verify::{Log, Verified};
use bpftime_vm::{ImageRef, Insn};
use std::time::Duration;

/// Runs of each accepted program, with other data.
const RUNS: u64 = 3;
/// Seconds of each fuzzer without `BPFTIME_FUZZ_SECONDS`.
const SECONDS: u64 = 15;

/// How long programs are generated.
pub fn limit() -> Duration {
    Duration::from_secs(wanted("BPFTIME_FUZZ_SECONDS").unwrap_or(SECONDS))
}

/// A number of the environment.
pub fn wanted(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Any bytes: as an image and as bytecode, which is judged, and run if it is accepted.
pub fn decode(bytes: &[u8]) {
    let _ = ImageRef::parse(bytes);
    let (insns, world) = (insns(bytes), world("kprobe"));
    if judge(&insns, &world, &mut Log::new(2)).accepted() {
        runs_safely(&insns, &world, 1, &format!("{insns:x?}"), 1);
    }
}

/// A generated program: what is accepted runs without a bad access, each state among those of the walk.
pub fn verify(script: &[u8]) {
    let (source, world) = (Generator::scripted(script), world("kprobe"));
    let insns = assemble(&source).unwrap_or_else(|e| panic!("{e}\n{source}"));
    if judge(&insns, &world, &mut Log::new(2)).accepted() {
        runs_safely(&insns, &world, 1, &source, RUNS);
    }
}

/// A generated program: if it is accepted, compiled code does what the interpreter does, and touches nothing else.
/// Says whether it was.
pub fn jit(script: &[u8]) -> bool {
    // The numbers of the program end up in r0.
    let result = "out: mov r0, r7; mul r0, 31; xor r0, r8; mul r0, 31; xor r0, r9; exit";
    let source = Generator::scripted(script).replacen("out: mov r0, 0; exit", result, 1);
    let Some((verified, world)) = accepted(&source) else { return false };
    guarded::compare(&verified, &world, script.len() as u64).unwrap_or_else(|e| panic!("{e}\n{source}"));
    true
}

fn accepted(source: &str) -> Option<(Verified, World)> {
    let (insns, world) = (assemble(source).unwrap_or_else(|e| panic!("{e}\n{source}")), world("kprobe"));
    Some((recorded(&insns, &world)?.0, world))
}

fn insns(bytes: &[u8]) -> Vec<Insn> {
    let insn = |b: &[u8; 8]| Insn {
        code: b[0],
        regs: b[1],
        off: i16::from_le_bytes([b[2], b[3]]),
        imm: i32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    };
    bytes.as_chunks::<8>().0.iter().map(insn).collect()
}

/// Runs an accepted program with random data; panics at a bad access.
pub fn runs_safely(insns: &[Insn], world: &World, seed: u64, source: &str, runs: u64) {
    // Time decides here, too: it may be over on a busy machine.
    let Some((verified, recorded)) = recorded(insns, world) else { return };
    for n in 0..runs {
        match Machine::new(&verified, world, seed.wrapping_mul(31) + n).among(&recorded).run() {
            Err(e) if e != OUT_OF_FUEL && e != NO_HELPER => panic!("seed {seed}: {e}\n{source}"),
            _ => {}
        }
    }
}
