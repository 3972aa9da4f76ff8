//! Helpers, functions of the program, callbacks, tail calls, poisoned calls.

use super::engines::{Engines, on_every_engine};

#[test]
fn a_helper_gets_five_arguments_and_returns_r0() {
    let source = "mov r1, 1; mov r2, 20; mov r3, 300; mov r4, 4000; mov r5, 50000; call 1; exit";
    on_every_engine(source, &[], 54_321);
}

#[test]
fn r6_to_r9_survive_calls_and_the_rest_is_cleared() {
    let source = "mov r6, 6; mov r7, 7; mov r8, 8; mov r9, 9; mov r4, 1; call 1
        mov r0, r6; add r0, r7; add r0, r8; add r0, r9; add r0, r4; exit";
    on_every_engine(source, &[], 30);
}

#[test]
fn a_helper_reads_the_stack_it_is_given() {
    let source =
        "stdw [r10-16], 0x01020304; stdw [r10-8], 1; mov r1, r10; add r1, -16; mov r2, 16; call 2; exit";
    on_every_engine(source, &[], 11);
}

#[test]
fn local_calls_have_their_own_frame() {
    let source = "mov r6, 1; stdw [r10-8], 5; mov r1, 10; mov r2, 20; call local sub
        ldxdw r3, [r10-8]; add r0, r3; add r0, r6; exit
        sub: mov r6, 100; stdw [r10-8], 7; mov r0, r1; add r0, r2; exit";
    on_every_engine(source, &[], 36);
}

#[test]
fn a_callee_writes_its_callers_stack() {
    let source = "mov r1, r10; add r1, -8; call local sub; ldxdw r0, [r10-8]; exit
        sub: stdw [r1], 42; mov r0, 0; exit";
    on_every_engine(source, &[], 42);
}

#[test]
fn functions_may_be_called_backwards_and_eight_deep() {
    let mut source = String::from("call local f1; exit;");
    for n in 1..7 {
        source += &format!("f{n}: call local f{}; add r0, 1; exit;", n + 1);
    }
    on_every_engine(&(source + "f7: mov r0, 1; exit"), &[], 7);
    on_every_engine("ja main; main: call local two; ja end; end: exit; two: mov r0, 2; exit", &[], 2);
}

#[test]
fn fuel_bounds_calls_and_an_exhausted_callee_ends_the_caller() {
    let source = "mov r6, 0; top: call local spin; mov r0, 1; exit; spin: ja spin";
    let outcome = Engines::assemble(source).run(&[]);
    assert_eq!(outcome.r0, None);
    let source = "top: call local sub; stb [r1], 1; ja top; sub: mov r0, 0; exit";
    assert_eq!(Engines::assemble(source).run_with_fuel(&[0; 8], 0).r0, None);
}

#[test]
fn callbacks_run_in_their_own_frame_with_the_callers_context() {
    let source =
        "stdw [r10-8], 0; mov r1, 5; lddw r2, func body; mov r3, r10; add r3, -8; mov r4, 0; call 181
        mov r6, r0; ldxdw r0, [r10-8]; lsh r0, 8; or r0, r6; exit
        body: ldxdw r3, [r2]; add r3, r1; stxdw [r2], r3; mov r0, 0; jlt r1, 3, +1; mov r0, 1; exit";
    // 0 + 1 + 2 + 3, then stopped by the callback after four calls.
    on_every_engine(source, &[], 6 << 8 | 4);
}

#[test]
fn an_endless_callback_ends_the_run() {
    let source = "mov r1, 5; lddw r2, func body; call 181; mov r0, 1; exit; body: ja body";
    assert_eq!(Engines::assemble(source).run(&[]).r0, None);
    let source = "mov r1, 100000000; lddw r2, func body; call 181; mov r0, 1; exit; body: mov r0, 0; exit";
    assert_eq!(Engines::assemble(source).run(&[]).r0, None);
}

#[test]
fn a_tail_call_replaces_the_program() {
    on_every_engine("mov r2, 0; mov r3, 0; call 12; mov r0, 5; exit", &[7], 1007);
}

#[test]
fn a_tail_call_without_target_goes_on() {
    on_every_engine("mov r2, 0; mov r3, 1; call 12; exit", &[7], -22i64 as u64);
    on_every_engine("mov r2, 0; mov r3, 1; call 12; mov r0, 5; exit", &[7], 5);
}

#[test]
fn a_poisoned_call_aborts_the_run_and_its_callers() {
    for id in [195_896_080, 2_001_000_123, 2_002_000_000] {
        let source = format!(
            "mov r6, r1; call local sub; stb [r6], 2; mov r0, 1; exit
             sub: ldxb r2, [r1]; jne r2, 1, out; stb [r1], 9; call {id}; stb [r1], 3; out: mov r0, 0; exit"
        );
        let mut engines = Engines::assemble(&source);
        let aborted = engines.run(&[1]);
        assert_eq!((aborted.r0, aborted.memory), (None, vec![9]), "{id}");
        assert_eq!(engines.run(&[0]).r0, Some(1));
    }
}

#[test]
fn a_poisoned_lddw_is_two_calls() {
    // libbpf overwrites both slots.
    on_every_engine("mov r0, 1; jeq r0, 1, out; call 2001000001; call 2001000001; out: exit", &[], 1);
}

#[test]
fn many_live_values_are_kept_over_a_call() {
    let source = "ldxdw r6, [r1]; ldxdw r7, [r1+8]; ldxdw r8, [r1+16]; ldxdw r9, [r1+24]
        stxdw [r10-8], r6; stxdw [r10-16], r9; mov r1, r6; mov r2, r7; call 1
        add r0, r6; add r0, r7; add r0, r8; add r0, r9; ldxdw r1, [r10-8]; add r0, r1; ldxdw r1, [r10-16]
        add r0, r1; exit";
    let memory: Vec<u8> = [1u64, 10, 100, 1000].iter().flat_map(|v| v.to_le_bytes()).collect();
    // (1 + 10), all four, and the two from the stack.
    on_every_engine(source, &memory, 11 + 1111 + 1001);
}

#[test]
fn code_that_the_verifier_proved_dead_is_not_compiled() {
    let source =
        "mov r0, 1; jeq r1, 0, dead; call local f; ja out; dead: call 195896080; mov r0, 3; out: exit
        f: mov r0, 2; exit";
    let mut program = super::engines::load(source).unwrap();
    let all = program.clone();
    program.retain_live(&[true, true, true, true, false, false, true, true, true]);
    let (mut engines, whole) = (Engines::new(program), Engines::new(all));
    assert_eq!(engines.run(&[0]).r0, Some(2));
    assert!(engines.image.code_len() <= whole.image.code_len());
    // Live code that runs into dead code ends with 0 instead of running into whatever comes next.
    let mut program = super::engines::load("mov r0, 1; mov r0, 2; exit").unwrap();
    program.retain_live(&[true, false, true]);
    assert!(bpftime_vm::compile(&super::engines::trusted(program), &Default::default()).is_ok());
}
