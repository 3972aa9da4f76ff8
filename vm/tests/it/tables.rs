//! Chains and trees of comparisons, which may become jump tables, lead where each comparison by itself would.

use super::engines::Engines;
use std::fmt::Write;

/// Runs a program with each of these values in r2, the first word of its memory.
fn with_values(source: &str, base: i64) {
    let mut engines = Engines::assemble(source);
    let near =
        (-3..60).map(|n| base + n).chain([i64::from(i32::MAX), i64::from(i32::MIN), i64::MAX, i64::MIN]);
    for value in near.chain([0xffff_ffff, 0x1_0000_0005, -1, 255, 512, 600]) {
        assert!(engines.run(&value.to_le_bytes()).r0.is_some());
    }
}

fn leaves(count: i32) -> String {
    (0..count).fold(String::new(), |mut text, n| {
        writeln!(text, "l{n}: mov r0, {}; add r0, r3; exit", n * 100).unwrap();
        text
    })
}

#[test]
fn chains_of_equal_comparisons() {
    for (jump, base) in [("jeq", 0), ("jeq32", 0), ("jeq", 5), ("jeq32", 1000), ("jeq", -20), ("jeq32", -7)] {
        let mut text = String::from("ldxdw r2, [r1]; mov r0, 0; mov r3, 1\n");
        for n in 0..16 {
            if n % 5 == 3 {
                writeln!(text, "mov r3, {n}").unwrap();
            }
            writeln!(text, "{jump} r2, {}, l{}", base + n, n % 11).unwrap();
        }
        with_values(&(text + "mov r0, 5; add r0, r3; exit\n" + &leaves(11)), base.into());
    }
}

#[test]
fn ladders_of_ranges() {
    for jump in
        ["jgt", "jge", "jlt", "jsgt", "jslt", "jsge", "jle", "jsle", "jgt32", "jsgt32", "jslt32", "jlt32"]
    {
        for descending in [false, true] {
            let mut text = String::from("ldxdw r2, [r1]; mov r0, 0; mov r3, 1\n");
            for n in 0..14 {
                let bound = if descending { 40 - 3 * n } else { 3 * n };
                writeln!(text, "{jump} r2, {bound}, l{n}").unwrap();
            }
            with_values(&(text + "exit\n" + &leaves(14)), 0);
        }
    }
}

#[test]
fn inner_comparisons_may_be_reached_from_elsewhere() {
    let mut text = String::from("ldxdw r2, [r1]; mov r0, 0; mov r3, 1; jset r2, 64, middle\n");
    for n in 0..14 {
        if n == 7 {
            text += "middle: mov r3, r2\n";
        }
        writeln!(text, "jeq r2, {}, l{n}", n + 60).unwrap();
    }
    with_values(&(text + "exit\n" + &leaves(14)), 58);
}

/// Any fuel, and every value that a byte can have.
fn with_bytes(source: &str, fuels: &[i64]) {
    let mut engines = Engines::assemble(source);
    for start in (0..256).step_by(8) {
        let memory: Vec<u8> = (0..8).map(|n| (start + n) as u8).collect();
        for fuel in fuels {
            engines.run_with_fuel(&memory, *fuel);
        }
    }
}

#[test]
fn a_switch_that_chooses_a_constant() {
    for (w, bias) in [("", 0), ("32", 0), ("", 7), ("32", -20)] {
        for values in [[7, 13, 2, 91, 5, 19, 77], [0, 0, 3, 300, 70_000, 0, 9], [-1, 2, 3, -7, 1, 1, 1]] {
            // The compiler puts where all ways meet first, so that each jumps back.
            let mut text = format!(
                "mov r0, 0; mov r6, 0; ja next
                 rest: mov r3, 100
                 meet: mul r0, 3; add r0, r3; add r6, 1; jeq r6, 8, end
                 next: mov r7, r1; add r7, r6; ldxb r4, [r7]; add{w} r4, {bias}
                 jsgt{w} r4, 3, high; mov r3, {}; jeq{w} r4, 0, meet; jeq{w} r4, 1, l1; jeq{w} r4, 2, l2
                 jeq{w} r4, 3, l3; ja rest
                 high: jeq{w} r4, 4, l4; jeq{w} r4, 5, l5; jeq{w} r4, 6, l6; ja rest\n",
                values[0]
            );
            for (n, value) in values.iter().enumerate().skip(1) {
                writeln!(text, "l{n}: mov r3, {value}; ja meet").unwrap();
            }
            with_bytes(&(text + "end: exit"), &[0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 100]);
        }
    }
}

#[test]
fn a_switch_whose_ways_do_not_all_jump_back_keeps_its_fuel() {
    // The way to `rest` is two jumps back, those behind `next` are none.
    let source = "mov r0, 0; mov r6, 0; ja next
         meet: mul r0, 3; add r0, r3; add r6, 1; jeq r6, 8, end; ja next
         again: ja meet
         rest: mov r3, 9; ja again
         next: mov r7, r1; add r7, r6; ldxb r4, [r7]; mov r3, 1
         jeq r4, 0, meet; mov r3, 2; jeq r4, 1, meet; mov r3, 3; jeq r4, 2, meet; mov r3, 4; jeq r4, 3, last
         mov r3, 5; jeq r4, 4, last; mov r3, 6; jeq r4, 5, last; ja rest
         last: mul r0, 3; add r0, r3; add r6, 1; jne r6, 8, next
         end: exit";
    with_bytes(source, &(0..40).collect::<Vec<_>>());
}

#[test]
fn a_switch_of_constants_in_a_counted_loop() {
    let mut text =
        String::from("mov r0, 0; mov r6, 0\ntop: mov r7, r1; add r7, r6; ldxb r4, [r7]; mov r3, 50\n");
    for n in 0..7 {
        writeln!(text, "jeq r4, {n}, l{n}").unwrap();
    }
    text += "ja meet\n";
    for n in 0..7 {
        writeln!(text, "l{n}: mov r3, {}; ja meet", n * n + 1).unwrap();
    }
    text += "meet: mul r0, 3; add r0, r3; add r6, 1; jne r6, 8, top; exit";
    with_bytes(&text, &[0, 1, 3, 6, 7, 8, 100]);
}

#[test]
fn a_choice_between_two_ways_back_takes_one_jump_of_fuel() {
    for choice in [
        "jgt r4, 100, top; mov r3, 5; ja top",
        "jgt r4, 100, top; mov r3, 5; xor r5, r4; add r2, 3; ja top",
        "jset32 r4, 3, top; mov32 r3, r5; ja top",
        "jeq r4, r3, done; mov r3, 5; ja done; done: jgt r4, 7, top; ja top",
        "jgt r4, 100, other; mov r3, 5; add r5, 1; ja top; other: sub r3, r4; xor r2, r3; ja top",
        "jset r4, 3, other; mov32 r3, 5; ja meet; other: sub r3, r4; xor r2, r3; meet: add r0, r3; ja top",
        "jne r4, 9, half; jset r4, 3, other; add r3, r2; ja meet; half: add r5, 1; ja other
         other: sub r3, r4; xor r2, r3; meet: add r0, r3; ja top",
    ] {
        let source = format!(
            "mov r0, 0; mov r6, 0; mov r3, 1; mov r2, 0; mov r5, 2; ja in
             top: add r0, r3; mul r0, 3; add r0, r2; xor r0, r5; add r6, 1; jeq r6, 8, end
             in: mov r7, r1; add r7, r6; ldxb r4, [r7]; mov r3, 9
             {choice}
             end: exit"
        );
        with_bytes(&source, &[0, 1, 2, 5, 6, 7, 8, 9, 100]);
    }
}
