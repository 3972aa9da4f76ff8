//! Every ALU operation over boundary operands: interpreter = compiler = an oracle written from RFC 9669 in
//! exact integer arithmetic, not from `alu.rs`.

use super::engines::{BOUNDARIES, Engines, IMMEDIATES, narrowed, on_every_engine, operands};
use bpftime_vm::isa::{AluOp, Width};

/// Exact value of the low `bits` of `v`, signed.
fn signed(v: u64, bits: u32) -> i128 {
    let unsigned = unsigned(v, bits);
    if unsigned >> (bits - 1) == 1 { unsigned - (1 << bits) } else { unsigned }
}

fn unsigned(v: u64, bits: u32) -> i128 {
    i128::from(v) & ((1 << bits) - 1)
}

/// The low `bits` of an exact result, zero-extended.
pub fn wrap(exact: i128, bits: u32) -> u64 {
    exact.rem_euclid(1 << bits) as u64
}

pub fn oracle(op: AluOp, bits: u32, a: u64, b: u64) -> u64 {
    let (ua, ub, sa, sb) = (unsigned(a, bits), unsigned(b, bits), signed(a, bits), signed(b, bits));
    let power = 1i128 << (ub % i128::from(bits));
    let exact = match op {
        AluOp::Add => ua + ub,
        AluOp::Sub => ua - ub,
        // 64 x 64 bits overflow i128; signed operands have the same low bits and do not.
        AluOp::Mul => sa * sb,
        AluOp::Div if ub == 0 => 0,
        AluOp::Div => ua / ub,
        AluOp::Sdiv if sb == 0 => 0,
        AluOp::Sdiv => sa / sb,
        AluOp::Mod if ub == 0 => ua,
        AluOp::Mod => ua % ub,
        AluOp::Smod if sb == 0 => sa,
        AluOp::Smod => sa - sb * (sa / sb),
        AluOp::Or => ua + ub - (ua & ub),
        AluOp::And => ua & ub,
        AluOp::Xor => ua + ub - 2 * (ua & ub),
        AluOp::Lsh => ((ua as u128).wrapping_mul(power as u128) & u128::from(u64::MAX)) as i128,
        AluOp::Rsh => ua / power,
        AluOp::Arsh => sa.div_euclid(power),
        AluOp::Mov => ub,
    };
    wrap(exact, bits)
}

fn every_op() -> impl Iterator<Item = (AluOp, u32, String)> {
    let ops = AluOp::ALL.iter().flat_map(|op| Width::ALL.map(|width| (*op, width.bits())));
    ops.map(|(op, bits)| (op, bits, narrowed(op.mnemonic(), bits)))
}

#[test]
fn register_operands() {
    for (op, bits, name) in every_op() {
        let source = format!("ldxdw r3, [r1]; ldxdw r4, [r1+8]; {name} r3, r4; mov r0, r3; exit");
        let mut engines = Engines::assemble(&source);
        for a in BOUNDARIES {
            for b in BOUNDARIES {
                let r0 = engines.run(&operands(*a, *b)).r0;
                assert_eq!(r0, Some(oracle(op, bits, *a, *b)), "{name} {a:#x}, {b:#x}");
            }
        }
    }
}

#[test]
fn one_register_twice() {
    for (op, bits, name) in every_op() {
        let mut engines = Engines::assemble(&format!("ldxdw r0, [r1]; {name} r0, r0; exit"));
        for a in BOUNDARIES {
            assert_eq!(engines.run(&operands(*a, 0)).r0, Some(oracle(op, bits, *a, *a)), "{name} {a:#x}");
        }
    }
}

#[test]
fn immediate_operands() {
    for (op, bits, name) in every_op() {
        for imm in IMMEDIATES {
            let mut engines = Engines::assemble(&format!("ldxdw r0, [r1]; {name} r0, {imm}; exit"));
            for a in BOUNDARIES {
                let want = oracle(op, bits, *a, i64::from(*imm) as u64);
                assert_eq!(engines.run(&operands(*a, 0)).r0, Some(want), "{name} {a:#x}, {imm:#x}");
            }
        }
    }
}

/// The compiler folds these away, by rules of its own.
#[test]
fn constant_operands() {
    const SAMPLE: &[u64] =
        &[0, 1, 33, 64, 0x8000_0000, 0xffff_ffff, 1 << 63, u64::MAX, 0x0123_4567_89ab_cdef];
    for (op, bits, name) in every_op() {
        for a in SAMPLE {
            for b in SAMPLE {
                let source = format!("lddw r0, {a:#x}; lddw r4, {b:#x}; {name} r0, r4; exit");
                on_every_engine(&source, &[], oracle(op, bits, *a, *b));
            }
        }
    }
}

#[test]
fn negation() {
    for bits in [32, 64] {
        let mut engines = Engines::assemble(&format!("ldxdw r0, [r1]; {} r0; exit", narrowed("neg", bits)));
        for a in BOUNDARIES {
            let want = wrap(-unsigned(*a, bits), bits);
            assert_eq!(engines.run(&operands(*a, 0)).r0, Some(want), "{bits} {a:#x}");
        }
    }
}

#[test]
fn moves_with_sign_extension() {
    for (width, from) in [(64, 8), (64, 16), (64, 32), (32, 8), (32, 16)] {
        let suffix = if width == 32 { "_32" } else { "" };
        let mut engines = Engines::assemble(&format!("ldxdw r3, [r1]; movsx{from}{suffix} r0, r3; exit"));
        for a in BOUNDARIES {
            let want = wrap(signed(*a, from), width);
            assert_eq!(engines.run(&operands(*a, 0)).r0, Some(want), "movsx{from}{suffix} {a:#x}");
        }
    }
}

#[test]
fn byte_order() {
    for bits in [16, 32, 64] {
        for (name, swaps) in [("le", false), ("be", true), ("bswap", true)] {
            let mut engines = Engines::assemble(&format!("ldxdw r0, [r1]; {name}{bits} r0; exit"));
            for a in BOUNDARIES {
                let mut bytes = a.to_le_bytes()[..bits / 8].to_vec();
                if swaps {
                    bytes.reverse();
                }
                bytes.resize(8, 0);
                let want = u64::from_le_bytes(bytes.try_into().unwrap());
                assert_eq!(engines.run(&operands(*a, 0)).r0, Some(want), "{name}{bits} {a:#x}");
            }
        }
    }
}

#[test]
fn sixty_four_bit_constants() {
    for a in BOUNDARIES {
        on_every_engine(&format!("lddw r0, {a:#x}; exit"), &[], *a);
    }
}
