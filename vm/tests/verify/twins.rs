//! The fuzzers of vm/fuzz, without a fuzzer: random inputs for `BPFTIME_FUZZ_SECONDS` each, the same ones for the same
//! `BPFTIME_VERIFY_SEED`; an input that fails is made smaller before it is shown.

use super::env::{judge, world};
use super::fuzz::{self, limit, wanted};
use super::generate::Generator;
use super::guarded;
use bpftime_vm::asm::assemble;
use bpftime_vm::verify::{Log, Verified};
use bpftime_vm::{DecodeOptions, decode_with};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestCaseError, TestRng, TestRunner};
use std::cell::Cell;
use std::time::Instant;

/// Cases between two looks at the clock.
const BATCH: u32 = 16;

fn for_a_while<S: Strategy>(name: &str, inputs: &S, body: impl Fn(&S::Value)) {
    let (start, first) = (Instant::now(), wanted("BPFTIME_VERIFY_SEED").unwrap_or(1));
    let ran = Cell::new(0u64);
    for batch in 0u64.. {
        if start.elapsed() > limit() {
            break;
        }
        let result = runner(first, batch).run(inputs, |input| {
            ran.set(ran.get() + 1);
            body(&input);
            Ok::<(), TestCaseError>(())
        });
        result.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(ran.get(), (batch + 1) * u64::from(BATCH), "{name}: inputs that were tried");
    }
    println!("{name}: {} inputs in {:?}", ran.get(), start.elapsed());
}

/// A runner counts its cases: each batch needs one of its own.
fn runner(first: u64, batch: u64) -> TestRunner {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&first.to_le_bytes());
    seed[8..16].copy_from_slice(&batch.to_le_bytes());
    let config = ProptestConfig { cases: BATCH, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

fn script() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..600)
}

/// Bytecode of a program, with bytes of it changed.
fn nearly_bytecode() -> impl Strategy<Value = Vec<u8>> {
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (script(), changes).prop_map(|(script, changes)| {
        let insns = assemble(&Generator::scripted(&script)).unwrap();
        let bytes = |i: &bpftime_vm::Insn| {
            let ([o0, o1], [i0, i1, i2, i3]) = (i.off.to_le_bytes(), i.imm.to_le_bytes());
            [i.code, i.regs, o0, o1, i0, i1, i2, i3]
        };
        let mut bytes: Vec<u8> = insns.iter().flat_map(bytes).collect();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

#[test]
fn any_bytes_are_judged_without_a_panic() {
    for_a_while("decode", &prop_oneof![1 => script(), 9 => nearly_bytecode()], |bytes| fuzz::decode(bytes));
}

#[test]
fn what_is_accepted_runs_without_a_bad_access() {
    for_a_while("verify", &script(), |script| fuzz::verify(script));
}

#[test]
fn what_is_accepted_does_the_same_compiled_and_touches_nothing_else() {
    let compared = Cell::new(0);
    for_a_while("jit", &script(), |script| compared.set(compared.get() + u32::from(fuzz::jit(script))));
    println!("jit: {} programs compared", compared.get());
    assert!(compared.get() > 0);
}

/// A program that nobody verified.
fn unchecked(source: &str) -> Verified {
    let program =
        decode_with(&assemble(source).unwrap(), &mut world("kprobe"), DecodeOptions::default()).unwrap();
    // SAFETY: it does not keep the promise; it runs in a child that dies of it, against pages that are not there.
    unsafe { Verified::unchecked(program) }
}

#[test]
fn accesses_outside_of_a_region_are_noticed() {
    let wild = [
        "ldxb r0, [r1+168]; exit",
        "ldxb r0, [r1-1]; exit",
        "stb [r1], 1; mov r0, 0; exit",
        "lddw r1, value 101+0; ldxb r0, [r1+64]; exit",
        "lddw r1, value 101+0; stb [r1-1], 0; mov r0, 0; exit",
        "lddw r1, value 102+0; stb [r1], 0; mov r0, 0; exit",
        "lddw r1, map 103; mov r2, 32; mov r3, 0; call 131; jeq r0, 0, out; mov r6, r0; mov r1, r0; mov r2, 0
         call 132; ldxb r0, [r6]; exit; out: ldxb r0, [r0]; exit",
    ];
    let world = world("kprobe");
    for source in wild {
        let found = guarded::compare(&unchecked(source), &world, 1);
        assert!(found.as_ref().is_err_and(|e| e.contains("signal 11")), "{source}: {found:?}");
    }
    let fine = "ldxdw r0, [r1]; ldxdw r2, [r1+160]; xor r0, r2; lddw r1, value 101; stxdw [r1+56], r0; exit";
    assert!(judge(&assemble(fine).unwrap(), &world, &mut Log::new(0)).accepted());
    guarded::compare(&unchecked(fine), &world, 1).unwrap();
}

/// Both engines must see the same, or nothing that they do differently would be noticed either.
#[test]
fn results_that_differ_are_noticed() {
    // Stacks of the engines lie elsewhere.
    let found = guarded::compare(&unchecked("mov r0, r10; exit"), &world("kprobe"), 1);
    assert!(found.as_ref().is_err_and(|e| e.contains("differ")), "{found:?}");
    let stores = "lddw r1, value 101; stxdw [r1], r10; mov r0, 0; exit";
    let found = guarded::compare(&unchecked(stores), &world("kprobe"), 1);
    assert!(found.as_ref().is_err_and(|e| e.contains("differ")), "{found:?}");
}
