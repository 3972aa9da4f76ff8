//! What does not load, and in which words. Tools read some of them.

use super::engines::{Env, load, load_insns};
use bpftime_vm::asm::assemble;
use bpftime_vm::decode::Class;
use bpftime_vm::isa::MAX_INSNS;
use bpftime_vm::{DecodeOptions, Insn, UnknownHelpers, compile, decode, decode_with};
use proptest::prelude::*;

/// Source, slot, text of the refusal.
const REFUSED: &[(&str, usize, &str)] = &[
    ("raw 0x8f 0 0 0 0; exit", 0, "unknown opcode 8f"),
    ("raw 0xff 0 0 0 0; exit", 0, "unknown opcode ff"),
    ("mov r0, 0; raw 0x8d 0 1 0 0; exit", 1, "unknown opcode 8d"),
    ("raw 0x00 0 0 0 0; exit", 0, "unknown opcode 00"),
    ("raw 0x99 0 1 0 0; exit", 0, "unknown opcode 99"),
    ("raw 0xd3 1 2 0 0; exit", 0, "invalid atomic operand size"),
    ("raw 0xdf 0 0 0 16; exit", 0, "unknown opcode df"),
    ("raw 0x86 0 0 0 0; exit", 0, "unknown opcode 86"),
    ("raw 0xe5 0 0 0 0; exit", 0, "unknown opcode e5"),
    ("raw 0xb7 11 0 0 0; exit", 0, "R11 is invalid"),
    ("raw 0xbf 0 15 0 0; exit", 0, "R15 is invalid"),
    ("mov r10, 1; exit", 0, "frame pointer is read only"),
    ("ldxdw r10, [r1]; exit", 0, "frame pointer is read only"),
    ("lock xchg [r1], r10; exit", 0, "frame pointer is read only"),
    ("raw 0xb7 0 1 0 0; exit", 0, "BPF_MOV uses reserved fields"),
    ("raw 0xb7 0 0 8 0; exit", 0, "BPF_MOV uses reserved fields"),
    ("raw 0xbf 0 1 4 0; exit", 0, "BPF_MOV uses reserved fields"),
    ("raw 0xbc 0 1 32 0; exit", 0, "BPF_MOV uses reserved fields"),
    ("raw 0x07 0 1 0 1; exit", 0, "BPF_ALU uses reserved fields"),
    ("raw 0x0f 0 1 0 1; exit", 0, "BPF_ALU uses reserved fields"),
    ("raw 0x0f 0 1 1 0; exit", 0, "BPF_ALU uses reserved fields"),
    ("raw 0x37 0 0 2 1; exit", 0, "BPF_ALU uses reserved fields"),
    ("raw 0x87 0 0 0 1; exit", 0, "BPF_NEG uses reserved fields"),
    ("raw 0xd4 0 0 0 8; exit", 0, "BPF_END uses reserved fields"),
    ("raw 0xdc 0 1 0 16; exit", 0, "BPF_END uses reserved fields"),
    ("raw 0x61 0 1 0 1; exit", 0, "BPF_LDX uses reserved fields"),
    ("raw 0x62 1 1 0 1; exit", 0, "BPF_ST uses reserved fields"),
    ("raw 0x63 1 1 0 1; exit", 0, "BPF_STX uses reserved fields"),
    ("raw 0x15 0 1 0 0; exit", 0, "BPF_JMP/JMP32 uses reserved fields"),
    ("raw 0x1d 0 1 0 5; exit", 0, "BPF_JMP/JMP32 uses reserved fields"),
    ("raw 0x05 0 0 0 1; exit", 0, "BPF_JA uses reserved fields"),
    ("raw 0x06 0 0 1 0; exit", 0, "BPF_JA uses reserved fields"),
    ("raw 0x85 1 0 0 5; exit", 0, "BPF_CALL uses reserved fields"),
    ("raw 0x85 0 3 0 5; exit", 0, "BPF_CALL uses reserved fields"),
    ("raw 0x95 0 0 0 1", 0, "BPF_EXIT uses reserved fields"),
    ("raw 0x85 0 2 0 77; exit", 0, "calling kernel function 77 is not allowed"),
    ("raw 0xdb 1 2 0 0x30; exit", 0, "BPF_ATOMIC uses invalid atomic opcode 30"),
    ("raw 0xdb 1 2 0 0xe0; exit", 0, "BPF_ATOMIC uses invalid atomic opcode e0"),
    ("raw 0x18 0 0 0 1; mov r0, 0; exit", 0, "invalid bpf_ld_imm64 insn"),
    ("mov r0, 0; raw 0x18 0 0 0 1", 1, "invalid bpf_ld_imm64 insn"),
    ("raw 0x18 0 0 1 1; raw 0 0 0 0 0; exit", 0, "BPF_LD_IMM64 uses reserved fields"),
    ("raw 0x18 0 7 0 1; raw 0 0 0 0 0; exit", 0, "unrecognized bpf_ld_imm64 insn"),
    ("raw 0x18 0 1 0 3; raw 0 0 0 0 1; exit", 0, "unrecognized bpf_ld_imm64 insn"),
    ("raw 0x20 0 0 0 0; exit", 0, "BPF_LD_[ABS|IND] instructions not allowed for this program type"),
    ("lddw r1, map 99; exit", 0, "fd 99 is not pointing to valid bpf_map"),
    ("lddw r1, map_idx 7; exit", 0, "fd_idx 7 is not pointing to valid bpf_map"),
    ("lddw r1, value 3+64; exit", 0, "invalid access to map value pointer, value_size=64 off=64"),
    ("lddw r1, value 4; exit", 0, "no direct value access support for this map type"),
    ("mov r0, 0; mov r0, 0; mov r0, 0; ja +5; exit", 3, "jump out of range from insn 3 to 9"),
    ("mov r0, 0; jeq r0, 0, -5; exit", 1, "jump out of range from insn 1 to -3"),
    ("ja +1; lddw r0, 1; exit", 0, "jump into the middle of ldimm64 insn 1"),
    ("mov r0, 0", 0, "last insn is not an exit or jmp"),
    ("exit; lddw r0, 5", 2, "last insn is not an exit or jmp"),
    ("call local f; f: mov r0, 0; exit", 0, "last insn is not an exit or jmp"),
    ("call local +9; exit", 0, "call to invalid destination"),
    ("lddw r1, func +9; exit", 0, "call to invalid destination"),
    ("call local f; ja out; out: exit; f: mov r0, 0; ja out", 4, "jump out of range from insn 4 to 2"),
    ("call local f; exit; f: call local f; exit", 2, "recursive call from insn 2 to insn 2"),
    ("mov r0, 0; call local -2; exit", 1, "recursive call from insn 1 to insn 0"),
    ("stdw [r10-520], 1; exit", 0, "invalid write to stack R10 off=-520 size=8"),
    ("ldxdw r0, [r10-4]; exit", 0, "invalid read from stack R10 off=-4 size=8"),
    ("mov r2, r10; add r2, -600; ldxb r0, [r2]; exit", 2, "invalid read from stack R2 off=-600 size=1"),
    ("call 195896081; exit", 0, "invalid func unknown#195896081"),
    ("call -1; exit", 0, "invalid func unknown#4294967295"),
    ("call 160; exit", 0, "unknown func bpf_ktime_get_coarse_ns#160"),
];

#[test]
fn refusals_have_the_kernels_words_and_the_right_slot() {
    for (source, insn, text) in REFUSED {
        match load(source) {
            Err(error) => assert_eq!((error.insn, error.to_string().as_str()), (*insn, *text), "{source}"),
            Ok(_) => panic!("{source} loads"),
        }
    }
}

#[test]
fn immediates_without_meaning_are_refused_as_the_kernel_does() {
    let decode = |source: &str| decode(&assemble(source).unwrap(), &mut Env);
    for op in ["div", "sdiv", "mod32", "smod"] {
        let error = decode(&format!("{op} r0, 0; exit")).unwrap_err();
        assert_eq!(error.to_string(), "div by zero", "{op}");
    }
    for (op, count) in [("lsh", 64), ("rsh32", 32), ("arsh", -1)] {
        let error = decode(&format!("{op} r0, {count}; exit")).unwrap_err();
        assert_eq!(error.to_string(), format!("invalid shift {count}"));
    }
    assert!(decode("lsh r0, 63; rsh32 r0, 31; div r0, 1; exit").is_ok());
}

#[test]
fn the_program_size_is_bounded() {
    let exit = assemble("exit").unwrap()[0];
    assert_eq!(load_insns(&[]).unwrap_err().class(), Class::TooBig);
    assert_eq!(load_insns(&vec![exit; MAX_INSNS + 1]).unwrap_err().class(), Class::TooBig);
    assert!(load_insns(&vec![exit; MAX_INSNS]).is_ok());
}

#[test]
fn refusals_have_errno_classes() {
    let class = |source| load(source).unwrap_err().class();
    assert_eq!(class("raw 0x8f 0 0 0 0; exit"), Class::Invalid);
    assert_eq!(class("mov r10, 1; exit"), Class::Access);
    assert_eq!(class("lddw r1, map 99; exit"), Class::BadFd);
}

#[test]
fn frames_and_their_stack_are_bounded() {
    let mut source = String::from("call local f1; exit;");
    for n in 1..8 {
        source += &format!("f{n}: call local f{}; exit;", n + 1);
    }
    let error = load(&(source + "f8: mov r0, 0; exit")).unwrap_err();
    assert_eq!(error.to_string(), "the call stack of 9 frames is too deep !");
    let error =
        load("stdw [r10-300], 0; call local f; exit; f: stdw [r10-300], 0; mov r0, 0; exit").unwrap_err();
    assert_eq!(error.to_string(), "combined stack size of 2 calls is 608. Too large");
}

#[test]
fn unknown_helpers_matter_only_where_control_flow_reaches_them() {
    assert!(load("mov r0, 0; exit; call 4000; exit").is_ok());
    let insns = assemble("call 195896080; exit").unwrap();
    assert!(decode(&insns, &mut Env).is_ok());
    let options = DecodeOptions { unknown_helpers: UnknownHelpers::Refuse, ..DecodeOptions::default() };
    let error = decode_with(&insns, &mut Env, options).unwrap_err();
    assert_eq!(error.to_string(), "invalid func unknown#195896080");
    let options = DecodeOptions { unknown_helpers: UnknownHelpers::AcceptAll, ..options };
    assert!(decode_with(&assemble("call 4000; exit").unwrap(), &mut Env, options).is_ok());
}

#[test]
fn what_a_program_uses_is_listed() {
    let program = load("lddw r1, map 4; lddw r2, value 3; call 5; mov r1, 0; call 1; exit").unwrap();
    assert_eq!(program.maps_used().iter().map(|m| m.0).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(program.helpers_used().collect::<Vec<_>>(), [5, 1]);
    assert!(!program.has_callbacks());
}

#[test]
fn stack_use_is_bounded_where_it_can_be() {
    let reserve = |source| load(source).unwrap().funcs()[0].stack.reserve;
    assert_eq!(reserve("mov r0, 0; exit"), 0);
    assert_eq!(reserve("stb [r10-3], 1; mov r0, 0; exit"), 16);
    assert_eq!(reserve("stdw [r10-24], 0; mov r1, r10; add r1, -40; call 5; exit"), 48);
    assert_eq!(reserve("mov r6, r10; add r6, -8; jeq r1, 0, +1; stdw [r6], 1; ldxdw r0, [r6]; exit"), 16);
    assert_eq!(reserve("mov r6, r10; add r6, r1; stb [r6], 0; mov r0, 0; exit"), 512);
    assert_eq!(reserve("stxdw [r1], r10; mov r0, 0; exit"), 512);
    assert_eq!(reserve("mov r1, r10; call local f; exit; f: mov r0, 0; exit"), 512);
}

fn any_insn() -> impl Strategy<Value = Insn> {
    (any::<u8>(), any::<u8>(), -6i16..6, prop_oneof![-4i32..64, any::<i32>()])
        .prop_map(|(code, regs, off, imm)| Insn { code, regs, off, imm })
}

/// Mostly plausible slots, so that later passes are reached too.
fn plausible_insn() -> impl Strategy<Value = Insn> {
    let codes = proptest::sample::select(vec![
        0x18u8, 0x05, 0x06, 0x85, 0x85, 0x95, 0x15, 0x1d, 0xb7, 0xbf, 0x07, 0x61, 0x7b, 0x7a, 0xdb, 0x00,
    ]);
    let imm = proptest::sample::select(vec![0i32, 0, 1, 1, -2, 2, 3, 5, 12, 64]);
    (codes, 0u8..12, 0u8..3, -3i16..4, imm, any::<bool>()).prop_map(|(code, dst, src, off, imm, clean)| {
        if clean { Insn::new(code, dst.min(9), src & 1, 0, imm) } else { Insn::new(code, dst, src, off, imm) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn random_slots_never_panic(mut insns in proptest::collection::vec(any_insn(), 1..24)) {
        insns.push(Insn::new(0x95, 0, 0, 0, 0));
        let _ = load_insns(&insns);
    }

    #[test]
    fn what_decodes_compiles(mut insns in proptest::collection::vec(plausible_insn(), 1..16)) {
        insns.push(Insn::new(0x95, 0, 0, 0, 0));
        if let Ok(program) = load_insns(&insns) {
            compile(&super::engines::trusted(program), &Default::default()).unwrap();
        }
    }
}
