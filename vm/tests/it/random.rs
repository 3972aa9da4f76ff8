//! Random structured programs: ALU, forward jumps, bounded loops, stack, memory, atomics, local calls and
//! helpers. Interpreter and compiler must agree on r0 and memory.

use super::engines::Engines;
use super::kernel::{kernel_log, kernel_result, kernel_runs};
use bpftime_vm::isa::{AluOp, AtomicOp, Cond, Size};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use std::cell::{Cell, RefCell};
use std::fmt::Write;

/// Bytes of memory and of stack that programs touch.
const MEMORY: i16 = 64;
const STACK: i16 = 64;

#[derive(Clone, Debug)]
enum Stmt {
    Line(String),
    /// Skips the body when the condition holds.
    If(String, Vec<Stmt>),
    /// Runs the body this often, counted in a stack slot the body cannot reach.
    Repeat(u8, Vec<Stmt>),
}

/// Whose rules programs keep.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// Anything that decodes.
    Ours,
    /// What the kernel's verifier accepts too: aligned stack accesses, no helpers of ours.
    Kernel,
}

/// Registers that statements may use: r9 holds the memory.
fn reg() -> impl Strategy<Value = u8> {
    0u8..9
}

fn operand() -> impl Strategy<Value = String> {
    prop_oneof![
        reg().prop_map(|r| format!("r{r}")),
        select(super::engines::IMMEDIATES).prop_map(|imm| imm.to_string()),
        any::<i32>().prop_map(|imm| imm.to_string()),
    ]
}

fn width() -> impl Strategy<Value = &'static str> {
    select(vec!["", "32"])
}

/// A place of this size in memory or on the stack.
fn place(rules: For, size: Size) -> impl Strategy<Value = String> {
    let bytes = size.bytes() as i16;
    let step = if rules == For::Kernel { bytes } else { 1 };
    let off = move || (0..=(MEMORY - bytes) / step).prop_map(move |n| n * step);
    prop_oneof![
        off().prop_map(|off| format!("[r9+{off}]")),
        off().prop_map(|off| format!("[r10-{}]", STACK - off)),
    ]
}

fn sized_place(rules: For) -> impl Strategy<Value = (Size, String)> {
    select(Size::ALL).prop_flat_map(move |size| place(rules, size).prop_map(move |place| (size, place)))
}

fn line(rules: For) -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (select(AluOp::ALL), width(), reg(), operand())
            .prop_map(|(op, w, dst, src)| format!("{}{w} r{dst}, {src}", op.mnemonic())),
        1 => (reg(), any::<u64>()).prop_map(|(dst, v)| format!("lddw r{dst}, {v:#x}")),
        1 => (width(), reg()).prop_map(|(w, dst)| format!("neg{w} r{dst}")),
        1 => (select(vec!["8", "16", "32", "8_32", "16_32"]), reg(), reg())
            .prop_map(|(kind, dst, src)| format!("movsx{kind} r{dst}, r{src}")),
        1 => (select(vec!["le", "be", "bswap"]), select(vec![16, 32, 64]), reg())
            .prop_map(|(op, bits, dst)| format!("{op}{bits} r{dst}")),
        3 => (sized_place(rules), reg(), any::<bool>()).prop_map(|((size, place), dst, signed)| {
            let s = if signed && size != Size::Dw { "s" } else { "" };
            format!("ldx{s}{} r{dst}, {place}", size.mnemonic())
        }),
        3 => (sized_place(rules), reg())
            .prop_map(|((size, place), src)| format!("stx{} {place}, r{src}", size.mnemonic())),
        1 => (sized_place(rules), any::<i32>())
            .prop_map(|((size, place), imm)| format!("st{} {place}, {imm}", size.mnemonic())),
        2 => (select(AtomicOp::ALL), any::<bool>(), select(vec![Size::W, Size::Dw]), reg()).prop_flat_map(
            move |(op, fetch, size, src)| place(rules, size).prop_map(move |place| {
                let fetch = if fetch && !op.always_fetches() { "fetch_" } else { "" };
                let w = if size == Size::W { "32" } else { "" };
                format!("lock {fetch}{}{w} {place}, r{src}", op.mnemonic())
            })
        ),
        1 => Just(if rules == For::Ours { "call 1" } else { "mov r1, 1" }.to_string()),
        1 => Just("call local f".to_string()),
    ]
}

fn stmts(rules: For, depth: u32) -> BoxedStrategy<Vec<Stmt>> {
    let cond = (select(Cond::ALL), width(), reg(), operand())
        .prop_map(|(cond, w, dst, src)| format!("{}{w} r{dst}, {src}", cond.mnemonic()));
    let line = line(rules).prop_map(Stmt::Line);
    if depth == 0 {
        return proptest::collection::vec(line, 1..6).boxed();
    }
    let stmt = prop_oneof![
        6 => line,
        2 => (cond, stmts(rules, depth - 1)).prop_map(|(cond, body)| Stmt::If(cond, body)),
        1 => (1u8..5, stmts(rules, depth - 1)).prop_map(|(times, body)| Stmt::Repeat(times, body)),
    ];
    proptest::collection::vec(stmt, 1..8).boxed()
}

/// Writes statements with fresh labels; loop counters lie below the stack the statements use.
fn emit(stmts: &[Stmt], depth: i16, labels: &mut u32, out: &mut String) {
    for stmt in stmts {
        *labels += 1;
        let label = *labels;
        match stmt {
            Stmt::Line(line) => writeln!(out, "{line}").unwrap(),
            Stmt::If(cond, body) => {
                writeln!(out, "{cond}, l{label}").unwrap();
                emit(body, depth, labels, out);
                writeln!(out, "l{label}:").unwrap();
            }
            Stmt::Repeat(times, body) => {
                let counter = format!("[r10-{}]", STACK + 8 + 8 * depth);
                writeln!(out, "stdw {counter}, {times}\nl{label}:").unwrap();
                emit(body, depth + 1, labels, out);
                // Borrows r8 for the count, so every iteration starts with the same r8.
                writeln!(out, "ldxdw r8, {counter}; sub r8, 1; stxdw {counter}, r8").unwrap();
                writeln!(out, "jne r8, 0, l{label}").unwrap();
            }
        }
    }
}

fn source(main: &[Stmt], callee: &[Stmt]) -> String {
    let mut text = String::from("mov r9, r1; mov r1, 0\n");
    let mut labels = 0;
    emit(main, 0, &mut labels, &mut text);
    // Everything a program computed ends up in r0 or memory.
    for reg in 1..9 {
        writeln!(text, "xor r0, r{reg}; mul r0, 31").unwrap();
    }
    writeln!(text, "ldxdw r1, [r10-8]; xor r0, r1; exit\nf: mov r9, r10; sub r9, 256").unwrap();
    let mut inner = String::new();
    emit(callee, 0, &mut labels, &mut inner);
    // The callee must not call itself.
    text + &inner.replace("call local f", "mov r0, 7") + "\nexit\n"
}

/// At least this many cases; PROPTEST_CASES asks for more.
fn config(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases.max(cases), ..default }
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn engines_agree(
        main in stmts(For::Ours, 2),
        callee in stmts(For::Ours, 1),
        memory in proptest::collection::vec(any::<u8>(), MEMORY as usize),
    ) {
        // r10 - 256 .. r10 - 192 stands in for the memory in the callee: 64 bytes above its loop counters.
        let text = source(&main, &callee);
        let outcome = Engines::assemble(&text).run(&memory);
        prop_assert!(outcome.r0.is_some(), "{text}");
    }

    #[test]
    fn engines_stop_at_the_same_place(
        main in stmts(For::Ours, 2),
        callee in stmts(For::Ours, 1),
        memory in proptest::collection::vec(any::<u8>(), MEMORY as usize),
        fuel in 0i64..40,
    ) {
        Engines::assemble(&source(&main, &callee)).run_with_fuel(&memory, fuel);
    }
}

/// Nothing uninitialised, which the kernel does not let us read.
const CLEAR_STACK: &str = "stdw [r10-64], 1; stdw [r10-56], 2; stdw [r10-48], 3; stdw [r10-40], 4
    stdw [r10-32], 5; stdw [r10-24], 6; stdw [r10-16], 7; stdw [r10-8], 8
    stdw [r10-192], -1; stdw [r10-184], -2; stdw [r10-176], -3; stdw [r10-168], -4
    stdw [r10-160], -5; stdw [r10-152], -6; stdw [r10-144], -7; stdw [r10-136], -8
    mov r9, r10; add r9, -192; mov r0, 10; mov r6, 16; mov r7, 17; mov r8, 18\n";
const CLEAR_ARGS: &str = "mov r1, 11; mov r2, 12; mov r3, 13; mov r4, 14; mov r5, 15\n";

fn kernel_source(main: &[Stmt], callee: &[Stmt]) -> String {
    let (mut labels, mut outer, mut inner) = (0, String::new(), String::new());
    emit(main, 0, &mut labels, &mut outer);
    emit(callee, 0, &mut labels, &mut inner);
    let outer = outer.replace("call local f", &format!("call local f\n{CLEAR_ARGS}"));
    let inner = inner.replace("call local f", "mov r0, 7");
    let mix: String = (1..9).map(|reg| format!("mul r0, 31; xor r0, r{reg}\n")).collect();
    // The callee is there even when nobody calls it, which the kernel refuses: call it once for sure.
    format!(
        "{CLEAR_ARGS}{CLEAR_STACK}{outer}{mix}mov r6, r0; {CLEAR_ARGS}call local f; xor r0, r6
         mov r1, r0; rsh r1, 32; xor r0, r1; exit
         f: {CLEAR_STACK}{inner}exit"
    )
}

#[test]
fn the_kernel_agrees() {
    if !kernel_runs() {
        return;
    }
    let (compared, refused) = (Cell::new(0), RefCell::new(String::new()));
    let programs = (stmts(For::Kernel, 2), stmts(For::Kernel, 1));
    let result = TestRunner::new(ProptestConfig { failure_persistence: None, ..config(400) }).run(
        &programs,
        |(main, callee)| {
            let text = kernel_source(&main, &callee);
            if let Some(kernel) = kernel_result(&text) {
                compared.set(compared.get() + 1);
                let ours = Engines::assemble(&text).run(&[]).r0;
                prop_assert_eq!(ours.map(|r0| r0 as u32), Some(kernel), "{}", text);
            } else {
                refused.replace(text);
            }
            Ok(())
        },
    );
    println!("{} random programs compared with the kernel", compared.get());
    result.unwrap();
    assert!(compared.get() >= 50, "{} accepted, then: {}", compared.get(), kernel_log(&refused.borrow()));
}
