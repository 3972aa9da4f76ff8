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

#[test]
fn a_search_in_a_sorted_array_asks_twice_and_chooses_addresses() {
    // As compilers write it: two choices by one condition, the second of which jumps back.
    for (again, moved) in
        [("jlt32 r8, r4, top", "mov32 r5, r7"), ("jlt r8, r4, top", "mov r5, r7; and r5, 63")]
    {
        for middle in ["add32 r7, 1", "add32 r7, 1; mov r2, r7", "add32 r7, 1; add r4, 0"] {
            let source = format!(
                "mov r6, 0; mov r5, 48; ldxb r4, [r1+60]; mov r7, 0; mov r0, 0; mov r2, 0; ja in
                 top: mov32 r6, r7; add r0, 1; jgt r0, 20, out; jge32 r7, r5, out
                 in: mov r7, r6; add32 r7, r5; rsh32 r7, 1; mov r9, r1; add r9, r7; ldxb r8, [r9]
                 {}, skip; {moved}
                 skip: {middle}; {again}; mov32 r7, r6; ja top
                 out: lsh r0, 16; add r0, r6; add r0, r2; exit",
                again.replace("top", "").trim_end().trim_end_matches(',')
            );
            let mut engines = Engines::assemble(&source);
            for key in (0..256).step_by(5) {
                let mut memory: Vec<u8> = (0..64).map(|n| n * 4).collect();
                memory[60] = key as u8;
                for fuel in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 20, 30] {
                    engines.run_with_fuel(&memory, fuel);
                }
            }
        }
    }
}

#[test]
fn a_question_that_the_end_of_a_loop_asks_again_is_the_loops() {
    for (first, again) in [("jne r2, 20, skip", "jne r2, 20, top"), ("jlt r2, r5, skip", "jlt r2, r5, top")] {
        let source = format!(
            "mov r0, 0; mov r2, 0; mov r5, 20; mov r4, 0
             top: add r2, 1; {first}; add r4, 7; skip: add r0, r2; {again}
             add r0, r4; exit"
        );
        let mut engines = Engines::assemble(&source);
        for fuel in 0..24 {
            engines.run_with_fuel(&[0; 8], fuel);
        }
    }
}
