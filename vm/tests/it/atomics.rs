//! Every atomic in both widths: new memory, old value returned, neighbours untouched; and atomicity.

use super::engines::{BOUNDARIES, Engines};
use bpftime_vm::isa::AtomicOp;

/// Guard bytes around the eight bytes at offset 8.
const GUARD: u8 = 0xa5;

fn memory(old: u64, operand: u64, r0: u64) -> Vec<u8> {
    [[GUARD; 8], old.to_le_bytes(), [GUARD; 8], operand.to_le_bytes(), r0.to_le_bytes(), [0; 8]].concat()
}

/// New value in the cell, by bits rather than by machine operations.
fn oracle(op: AtomicOp, bits: u32, old: u64, operand: u64, r0: u64) -> u64 {
    let low = |v: u64| u128::from(v) % (1 << bits);
    let (o, x) = (low(old), low(operand));
    let new = match op {
        AtomicOp::Add => (o + x) % (1 << bits),
        AtomicOp::Or => o + x - (o & x),
        AtomicOp::And => o & x,
        AtomicOp::Xor => (o | x) - (o & x),
        AtomicOp::Xchg => x,
        AtomicOp::Cmpxchg => {
            if o == low(r0) {
                x
            } else {
                o
            }
        }
    };
    // A 32-bit atomic leaves the upper half of the cell alone.
    (u128::from(old) - o + new) as u64
}

/// r6 operand, r0 expectation; the source register and r0 are written back behind the guard.
fn source(name: &str) -> String {
    format!(
        "ldxdw r6, [r1+24]; ldxdw r0, [r1+32]; lock {name} [r1+8], r6
         stxdw [r1+24], r6; stxdw [r1+32], r0; mov r0, 0; exit"
    )
}

fn check(op: AtomicOp, bits: u32, fetch: bool) {
    let prefix = if fetch && !op.always_fetches() { "fetch_" } else { "" };
    let suffix = if bits == 32 { "32" } else { "" };
    let name = format!("{prefix}{}{suffix}", op.mnemonic());
    let mut engines = Engines::assemble(&source(&name));
    for old in BOUNDARIES {
        for operand in BOUNDARIES {
            for r0 in [*old, 5, *old | 1 << 40] {
                let outcome = engines.run(&memory(*old, *operand, r0));
                let returned = if bits == 32 { *old & 0xffff_ffff } else { *old };
                let want = match op {
                    AtomicOp::Cmpxchg => (*operand, returned),
                    _ if fetch => (returned, r0),
                    _ => (*operand, r0),
                };
                let new = oracle(op, bits, *old, *operand, r0);
                let mut expect = memory(new, want.0, want.1);
                expect.truncate(outcome.memory.len());
                assert_eq!(outcome.memory, expect, "{name} {old:#x}, {operand:#x}, {r0:#x}");
            }
        }
    }
}

#[test]
fn without_fetch() {
    for op in AtomicOp::ALL.iter().filter(|op| !op.always_fetches()) {
        check(*op, 64, false);
        check(*op, 32, false);
    }
}

#[test]
fn with_fetch() {
    for op in AtomicOp::ALL {
        check(*op, 64, true);
        check(*op, 32, true);
    }
}

#[test]
fn on_the_stack_and_at_odd_addresses() {
    let source = "stdw [r10-8], 5; mov r3, 3; lock fetch_add [r10-8], r3; ldxdw r0, [r10-8]; lsh r0, 8
        or r0, r3; exit";
    super::engines::on_every_engine(source, &[], 0x805);
    super::engines::on_every_engine(
        "mov r3, 1; lock add32 [r1+1], r3; ldxw r0, [r1+1]; exit",
        &[7; 8],
        0x0707_0708,
    );
}

#[test]
fn adds_of_many_threads_are_not_lost() {
    use super::engines::Nothing;
    use bpftime_vm::exec::Code;
    use bpftime_vm::{LinkError, Options, RunHeader, compile};
    use std::sync::atomic::AtomicU64;

    let program = super::engines::load(
        "mov r0, 0; mov r3, 1; top: lock add [r1], r3; mov r4, 1; lock fetch_add [r1+8], r4
         add r0, 1; jlt r0, 1000, top; exit",
    )
    .unwrap();
    let image = compile(&super::engines::trusted(program), &Options::default()).unwrap();
    let code = Code::link(image.borrow(), &Nothing).unwrap();
    let cells = [AtomicU64::new(0), AtomicU64::new(0)];
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut run = RunHeader::with_fuel(10_000);
                let addr = cells.as_ptr().expose_provenance() as u64;
                // SAFETY: two shared atomics; the program touches nothing else.
                unsafe { code.entry()(addr, 0, 0, 0, 0, &mut run) };
            });
        }
    });
    assert_eq!(cells.map(AtomicU64::into_inner), [4000, 4000]);
    // A program with a helper does not link where there is none.
    let calls = super::engines::load("call 5; exit").unwrap();
    let image = compile(&super::engines::trusted(calls), &Options::default()).unwrap();
    let mut room = vec![0; image.code_len()];
    assert_eq!(image.link(&mut room, 0, &Nothing), Err(LinkError::Helper(5)));
}
