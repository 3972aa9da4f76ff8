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
