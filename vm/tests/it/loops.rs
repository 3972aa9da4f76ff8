//! Counted loops and what is made of them: fast copies without fuel checks, vector kernels. Both engines agree, with any
//! amount of fuel.

use super::engines::Engines;
use proptest::prelude::*;
use proptest::sample::select;
use std::fmt::Write;

/// Bytes that loops may touch.
const LEN: usize = 2048;

fn memory(seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    (0..LEN).map(|_| next()).collect()
}

/// Enough fuel, just enough, not enough and none.
fn with_every_fuel(source: &str, iterations: i64, seed: u64) {
    let mut engines = Engines::assemble(source);
    let memory = memory(seed);
    assert!(engines.run(&memory).r0.is_some(), "{source}");
    for fuel in [0, 1, 2, 7, iterations / 2, iterations - 2, iterations - 1, iterations, iterations + 1] {
        engines.run_with_fuel(&memory, fuel.max(0));
    }
}

/// The ways in which compilers end a loop over r2 that goes on while it differs from r5 (which equals the number).
const TESTS: [&str; 5] = [
    "jne r2, BOUND, top",
    "jne r2, r5, top",
    "jeq r2, BOUND, out; ja top",
    "jlt r2, r5, top",
    "jgt r5, r2, top",
];

#[test]
fn reductions_over_arrays_give_what_one_element_at_a_time_gives() {
    for (size, bytes) in [("b", 1), ("h", 2), ("w", 4), ("dw", 8)] {
        for op in ["add", "xor", "or", "and", "add32", "xor32", "or32", "and32"] {
            for (n, elements) in [1, 2, 15, 16, 17, 31, 33, 64, 100, 200].into_iter().enumerate() {
                let bound = elements * bytes;
                let test = TESTS[n % TESTS.len()].replace("BOUND", &bound.to_string());
                let source = format!(
                    "mov r0, -1; mov r2, 0; mov r5, {bound}; lddw r3, 0x123456789abcdef
                     top: mov r4, r1; add r4, r2; ldx{size} r4, [r4+3]; {op} r3, r4; add r2, {bytes}; {test}
                     out: mov r0, r3; xor r0, r4; add r0, r2; exit"
                );
                with_every_fuel(&source, elements, n as u64 + 5);
                let lane = if op.ends_with("32") { 4 } else { 8 };
                let vector = Engines::assemble(&source).image.borrow().needs().vector;
                assert_eq!(vector, bytes <= lane, "{source}");
            }
        }
    }
}

#[test]
fn sums_of_sums_give_what_one_element_at_a_time_gives() {
    // Two sums of sums, one of each kind; the way of compilers that keep the new one in two registers; one of which the
    // element is changed before; a sum of another sum's, which no vector does.
    let kinds = [
        (true, "ADD r3, r4; ADD r6, r3"),
        (true, "ADD r6, r3; ADD r3, r4"),
        (true, "ADD r7, r3; ADD r3, r4; ADD r6, r3"),
        (true, "ADD r3, r4; MOV r0, r3; ADD r0, r6; MOV r6, r0"),
        (true, "xor r4, 0x5a; ADD r3, r4; ADD r6, r3"),
        (false, "ADD r3, r4; ADD r6, r3; ADD r7, r6"),
        (false, "ADD r3, r4; xor r6, r3"),
        (false, "xor r3, r4; ADD r6, r3"),
        (false, "ADD r3, r4; ADD r6, r3; ADD r6, r4"),
    ];
    for (size, bytes) in [("b", 1), ("h", 2), ("w", 4), ("dw", 8)] {
        for width in ["", "32"] {
            for (vector, body) in kinds {
                for elements in [1, 2, 15, 16, 17, 31, 33, 64, 100, 200] {
                    let body =
                        body.replace("ADD", &format!("add{width}")).replace("MOV", &format!("mov{width}"));
                    let source = format!(
                        "mov r0, 0; mov r2, 0; lddw r3, 0x123456789abcdef; mov r6, -77; mov r7, 5
                         top: mov r4, r1; add r4, r2; ldx{size} r4, [r4+3]; {body}; add r2, {bytes}
                         jne r2, {}, top
                         lsh r0, 3; xor r0, r3; lsh r0, 5; xor r0, r6; lsh r7, 7; xor r0, r7; xor r0, r4; exit",
                        elements * bytes
                    );
                    with_every_fuel(&source, elements, elements as u64);
                    let lane = if width == "32" { 4 } else { 8 };
                    let has = Engines::assemble(&source).image.borrow().needs().vector;
                    assert_eq!(has, vector && bytes <= lane, "{source}");
                }
            }
        }
    }
}

#[test]
fn elements_may_be_changed_before_they_are_summed() {
    for (size, bytes) in [("b", 1), ("h", 2), ("w", 4), ("dw", 8)] {
        for change in [
            "and r4, 0x7f",
            "and32 r4, -3",
            "xor r4, r6",
            "xor32 r4, 5",
            "add r4, -1",
            "add32 r4, r6",
            "or r4, r6",
            "sub r4, r6",
            "or32 r4, r6",
            "xor32 r4, -1",
        ] {
            for op in ["add", "xor", "add32", "and"] {
                let source = format!(
                    "mov r2, 0; lddw r6, 0x8877665544332211; mov r3, -1
                     top: mov r4, r1; add r4, r2; ldx{size} r4, [r4]; {change}; {op} r3, r4; add r2, {bytes}
                     jne r2, {}, top
                     mov r0, r3; exit",
                    97 * bytes
                );
                with_every_fuel(&source, 97, 3);
            }
        }
    }
}

#[test]
fn copies_and_fills_keep_their_meaning_when_source_and_destination_overlap() {
    for (size, bytes) in [("b", 1), ("h", 2), ("w", 4), ("dw", 8)] {
        for distance in [-64i32, -17, -16, -8, -1, 0, 1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 500] {
            for change in ["", "xor r4, 0x55", "add32 r4, r6", "and r4, r6"] {
                let source = format!(
                    "mov r7, r1; add r7, 100; mov r2, 0; mov r6, 0x71
                     top: mov r3, r7; add r3, r2; ldx{size} r4, [r3+0]; {change}; add r3, {distance}
                     stx{size} [r3+0], r4; add r2, {bytes}; jne r2, {}, top
                     mov r0, r4; exit",
                    90 * bytes
                );
                with_every_fuel(&source.replace("; ;", ";"), 90, 11);
            }
        }
        let fill = format!(
            "mov r2, 0; lddw r6, 0x1122334455667788
             top: mov r3, r1; add r3, r2; stx{size} [r3+5], r6; st{size} [r3+1000], -7; add r2, {bytes}
             jne r2, {}, top; mov r0, 0; exit",
            100 * bytes
        );
        with_every_fuel(&fill, 100, 1);
    }
}

#[test]
fn two_stores_that_overlap_keep_their_order() {
    for distance in [-20, -16, -15, -1, 1, 7, 15, 16, 40] {
        let source = format!(
            "mov r7, r1; add r7, 100; mov r2, 0
             top: mov r3, r7; add r3, r2; ldxb r4, [r3+800]; stxb [r3+0], r4; xor r4, 0xff; stxb [r3{distance:+}], r4
             add r2, 1; jne r2, 100, top; mov r0, 0; exit"
        );
        with_every_fuel(&source, 100, 9);
    }
}

#[test]
fn loops_that_wrap_around_or_miss_their_bound_are_not_counted() {
    // The bound is behind the start: 2^32 iterations, which no fuel pays.
    for source in [
        "mov r0, 0; mov32 r2, 5; top: add r0, 1; add32 r2, 1; jne32 r2, 5, top; exit",
        "mov r0, 0; mov r2, 1; top: add r0, 1; add r2, 2; jne r2, 8, top; exit",
        "mov r0, 0; mov r2, 9; mov r5, 3; top: add r0, 1; add r2, 1; jlt r2, r5, top; exit",
        "mov r0, 0; mov r2, -3; mov r5, -1; top: add r0, 1; add r2, 2; jlt r2, r5, top; exit",
        "mov r0, 0; mov32 r2, -3; mov r5, -1; top: add r0, 1; add32 r2, 4; jlt32 r2, r5, top; exit",
        "mov r0, 0; mov r2, 0; top: add r0, 1; sub r2, 1; jne r2, -40, top; exit",
        "mov r0, 0; mov r2, 40; top: add r0, 1; add r2, -4; jne r2, 0, top; exit",
    ] {
        let mut engines = Engines::assemble(source);
        for fuel in [0, 1, 9, 38, 39, 40, 1000] {
            engines.run_with_fuel(&memory(1), fuel);
        }
    }
}

fn reg() -> impl Strategy<Value = u8> {
    select(vec![0u8, 3, 4, 7, 8])
}

fn body_line() -> impl Strategy<Value = String> {
    let width = || select(vec!["", "32"]);
    let op = select(vec!["add", "sub", "mul", "or", "and", "xor", "mov", "lsh", "rsh", "arsh"]);
    prop_oneof![
        4 => (op, width(), reg(), reg()).prop_map(|(op, w, dst, src)| format!("{op}{w} r{dst}, r{src}")),
        2 => (select(vec!["add", "xor", "mov", "lsh"]), width(), reg(), 0..60i32)
            .prop_map(|(op, w, dst, imm)| format!("{op}{w} r{dst}, {imm}")),
        2 => (select(vec!["b", "h", "w", "dw"]), reg(), 0..60u8)
            .prop_map(|(size, dst, off)| format!("ldx{size} r{dst}, [r1+{off}]")),
        2 => (select(vec!["b", "h", "w", "dw"]), reg(), 0..60u8)
            .prop_map(|(size, src, off)| format!("stx{size} [r1+{off}], r{src}")),
        // A choice, a way out of the loop, and a way to its end.
        2 => (select(vec!["jeq", "jgt", "jset", "jslt"]), width(), reg(), reg(), 0..9i32)
            .prop_map(|(cond, w, a, b, imm)| format!("{cond}{w} r{a}, r{b}, +1; mov r{a}, {imm}")),
        2 => (select(vec!["jeq", "jgt", "jset", "jslt"]), width(), reg(), -5..300i32)
            .prop_map(|(cond, w, a, imm)| format!("{cond}{w} r{a}, {imm}, away")),
        1 => (select(vec!["jne", "jlt"]), reg(), 0..100i32)
            .prop_map(|(cond, a, imm)| format!("{cond} r{a}, {imm}, last")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(500), ..ProptestConfig::default() })]

    #[test]
    fn engines_agree_on_counted_loops(
        lines in proptest::collection::vec(body_line(), 0..7),
        at in 0usize..8,
        (step, narrow, test) in (select(vec![1i32, 2, 4, 8, -1, -2, 3]), any::<bool>(), 0..TESTS.len()),
        (start, iterations) in (-3i32..5, 0i32..40),
        fuel in 0i64..60,
        seed in any::<u64>(),
    ) {
        let bound = start + step * iterations;
        let w = if narrow { "32" } else { "" };
        let mut text = format!("mov{w} r2, {start}; mov{w} r5, {bound}\nmov r0, 7; mov r3, 3; mov r4, 4; mov r7, 9; mov r8, 1\n");
        text += "top: mov r6, r0\n";
        let mut lines = lines;
        lines.insert(at.min(lines.len()), format!("add{w} r2, {step}"));
        for (n, line) in lines.iter().enumerate() {
            writeln!(text, "{}", line.replace("+1; ", &format!("s{n}; ")).replace("last", "end")).unwrap();
            if line.contains("+1; ") {
                writeln!(text, "s{n}:").unwrap();
            }
        }
        let test = TESTS[test].replace("BOUND", &bound.to_string());
        let test = if narrow { test.replace("jne ", "jne32 ").replace("jeq ", "jeq32 ").replace("jlt ", "jlt32 ").replace("jgt ", "jgt32 ") } else { test };
        writeln!(text, "end: {test}\nout: add r0, r2; add r0, r3; xor r0, r4; exit").unwrap();
        writeln!(text, "away: add r0, r2; xor r0, r3; mul r0, 3; add r0, r6; mov r2, 0").unwrap();
        writeln!(text, "more: add r2, 1; jne r2, 3, more; exit").unwrap();
        let mut engines = Engines::assemble(&text);
        let memory = memory(seed);
        for fuel in [fuel, 500] {
            engines.run_with_fuel(&memory, fuel);
        }
    }
}
