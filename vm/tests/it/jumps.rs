//! Every condition over boundary operands in both widths, and where jumps go.

use super::engines::{BOUNDARIES, Engines, IMMEDIATES, narrowed, on_every_engine, operands};
use bpftime_vm::isa::{Cond, Width};

fn oracle(cond: Cond, bits: u32, a: u64, b: u64) -> bool {
    // Shifted to the top, comparisons of the narrow width are those of the wide one.
    let (a, b) = (a << (64 - bits), b << (64 - bits));
    let order = a.cmp(&b);
    // Flipping the sign bit maps signed order to unsigned order.
    let signed_order = (a ^ (1 << 63)).cmp(&(b ^ (1 << 63)));
    match cond {
        Cond::Eq => order.is_eq(),
        Cond::Ne => order.is_ne(),
        Cond::Set => (a & b).count_ones() > 0,
        Cond::Ugt => order.is_gt(),
        Cond::Uge => order.is_ge(),
        Cond::Ult => order.is_lt(),
        Cond::Ule => order.is_le(),
        Cond::Sgt => signed_order.is_gt(),
        Cond::Sge => signed_order.is_ge(),
        Cond::Slt => signed_order.is_lt(),
        Cond::Sle => signed_order.is_le(),
    }
}

fn every_cond() -> impl Iterator<Item = (Cond, u32, String)> {
    let conds = Cond::ALL.iter().flat_map(|cond| Width::ALL.map(|width| (*cond, width.bits())));
    conds.map(|(cond, bits)| (cond, bits, narrowed(cond.mnemonic(), bits)))
}

#[test]
fn register_operands() {
    for (cond, bits, name) in every_cond() {
        let source =
            format!("ldxdw r3, [r1]; ldxdw r4, [r1+8]; mov r0, 1; {name} r3, r4, out; mov r0, 0; out: exit");
        let mut engines = Engines::assemble(&source);
        for a in BOUNDARIES {
            for b in BOUNDARIES {
                let want = u64::from(oracle(cond, bits, *a, *b));
                assert_eq!(engines.run(&operands(*a, *b)).r0, Some(want), "{name} {a:#x}, {b:#x}");
            }
        }
    }
}

#[test]
fn immediates_are_sign_extended() {
    for (cond, bits, name) in every_cond() {
        for imm in IMMEDIATES {
            let source = format!("ldxdw r3, [r1]; mov r0, 1; {name} r3, {imm}, out; mov r0, 0; out: exit");
            let mut engines = Engines::assemble(&source);
            for a in BOUNDARIES {
                let want = u64::from(oracle(cond, bits, *a, i64::from(*imm) as u64));
                assert_eq!(engines.run(&operands(*a, 0)).r0, Some(want), "{name} {a:#x}, {imm}");
            }
        }
    }
}

#[test]
fn jumps_of_both_lengths() {
    on_every_engine("mov r0, 1; ja +1; mov r0, 2; exit", &[], 1);
    on_every_engine("mov r0, 1; ja32 +1; mov r0, 2; exit", &[], 1);
    on_every_engine("mov r0, 1; ja +0; exit", &[], 1);
    on_every_engine("ja start; end: exit; start: mov r0, 7; ja32 end", &[], 7);
}

#[test]
fn a_long_jump_reaches_beyond_sixteen_bits() {
    let filler = "add r0, 1;".repeat(40_000);
    on_every_engine(&format!("mov r0, 5; ja32 end; {filler} end: exit"), &[], 5);
}

#[test]
fn a_branch_to_the_next_instruction_does_nothing() {
    on_every_engine("mov r0, 3; jeq r0, 3, +0; exit", &[], 3);
}

#[test]
fn a_loop_back_to_the_first_instruction() {
    let source = "add r0, 1; jlt r0, 10, -2; exit";
    on_every_engine(source, &[], 10);
}

#[test]
fn nested_loops() {
    let source = "mov r0, 0; mov r3, 0
        outer: mov r4, 0
        inner: add r0, 1; add r4, 1; jlt r4, 7, inner
        add r3, 1; jlt r3, 5, outer; exit";
    on_every_engine(source, &[], 35);
}

#[test]
fn an_infinite_loop_ends() {
    for source in ["top: ja top; exit", "mov r0, 1; top: jeq r0, 1, top; exit", "top: ja32 top; exit"] {
        assert_eq!(Engines::assemble(source).run(&[]).r0, None, "{source}");
    }
}

#[test]
fn both_engines_run_out_of_fuel_at_the_same_jump() {
    let mut engines = Engines::assemble(
        "mov r0, 0; top: ldxb r3, [r1]; add r3, 1; stxb [r1], r3; add r0, 1; jlt r0, 10, top; exit",
    );
    for fuel in 0..12 {
        let outcome = engines.run_with_fuel(&[0], fuel);
        assert_eq!(outcome.r0.is_some(), fuel >= 9, "{fuel}");
        assert_eq!(i64::from(outcome.memory[0]), (fuel + 1).min(10));
    }
}

#[test]
fn unreachable_code_is_left_out() {
    on_every_engine("mov r0, 3; exit; mov r0, 4; exit", &[], 3);
}
