//! Every number that can come out is in what comes out: all narrow sets, and random ones of registers.

use super::arith::alu_in;
use super::*;
use crate::isa::{AluOp, Cond, Size, SwapOp, Width};

const NARROW: Dims = Dims { wide: 5, narrow: 3 };
const INTERVALS: Dims = Dims { wide: 4, narrow: 2 };

/// What the machine computes, at any width.
fn concrete(op: AluOp, x: u64, y: u64, bits: u32) -> u64 {
    let by = (y % u64::from(bits)) as u32;
    let result = match op {
        AluOp::Rsh => x >> by,
        AluOp::Lsh => x << by,
        AluOp::Arsh => (signed(x, bits) >> by) as u64,
        AluOp::Add => x.wrapping_add(y),
        AluOp::Sub => x.wrapping_sub(y),
        AluOp::Mul => x.wrapping_mul(y),
        AluOp::And => x & y,
        AluOp::Or => x | y,
        AluOp::Xor => x ^ y,
        _ => y,
    };
    result & low(bits)
}

fn compared(cond: Cond, x: u64, y: u64, bits: u32) -> bool {
    let shift = 64 - bits;
    crate::alu::holds(cond, Width::W64, x << shift, y << shift)
}

const OPS: &[AluOp] = &[
    AluOp::Add,
    AluOp::Sub,
    AluOp::Mul,
    AluOp::And,
    AluOp::Or,
    AluOp::Xor,
    AluOp::Lsh,
    AluOp::Rsh,
    AluOp::Arsh,
    AluOp::Mov,
];

fn members(s: &Scalar, dims: Dims) -> Vec<u64> {
    (0..=low(dims.wide)).filter(|x| s.contains(*x, dims)).collect()
}

/// All sets of known bits.
fn all_bits(dims: Dims) -> Vec<Scalar> {
    let all = 0..=low(dims.wide);
    let pairs = all.clone().flat_map(|mask| all.clone().map(move |value| (value, mask)));
    let bits = pairs.filter(|(value, mask)| value & mask == 0).map(|(value, mask)| Tnum { value, mask });
    bits.map(|bits| Scalar { bits, ..Scalar::unknown_in(dims) }.synced(dims).unwrap()).collect()
}

/// All intervals, unsigned and signed.
fn all_intervals(dims: Dims) -> Vec<Scalar> {
    let full = Scalar::unknown_in(dims);
    let mut sets = vec![];
    for lo in 0..=low(dims.wide) {
        for hi in lo..=low(dims.wide) {
            let half = 1i64 << (dims.wide - 1);
            let unsigned = Bounds { umin: lo, umax: hi, ..full.wide };
            let signed = Bounds { smin: lo as i64 - half, smax: hi as i64 - half, ..full.wide };
            sets.extend([unsigned, signed].map(|wide| Scalar { wide, ..full }.synced(dims).unwrap()));
        }
    }
    sets
}

fn check_pair(a: &Scalar, b: &Scalar, ma: &[u64], mb: &[u64], dims: Dims) {
    for width in Width::ALL {
        let bits = if width == Width::W64 { dims.wide } else { dims.narrow };
        for op in OPS {
            let result = alu_in(*op, width, a, b, dims);
            for (x, y) in ma.iter().flat_map(|x| mb.iter().map(move |y| (*x, *y))) {
                let z = concrete(*op, x & low(bits), y & low(bits), bits);
                assert!(result.contains(z, dims), "{op:?} {width:?} {x} {y} = {z}: {a:?} {b:?} {result:?}");
            }
        }
    }
}

fn check_compare(a: &Scalar, b: &Scalar, ma: &[u64], mb: &[u64], dims: Dims) {
    for width in Width::ALL {
        let bits = if width == Width::W64 { dims.wide } else { dims.narrow };
        for cond in Cond::ALL {
            let decided = decide(*cond, width, a, b, dims);
            let sides = [false, true].map(|holds| refine(*cond, width, holds, a, b, dims));
            for (x, y) in ma.iter().flat_map(|x| mb.iter().map(move |y| (*x, *y))) {
                let holds = compared(*cond, x & low(bits), y & low(bits), bits);
                assert!(decided.is_none_or(|d| d == holds), "{cond:?} {width:?} {x} {y}: {a:?} {b:?}");
                let side = &sides[usize::from(holds)];
                let kept = side.is_some_and(|(ra, rb)| ra.contains(x, dims) && rb.contains(y, dims));
                assert!(kept, "{cond:?} {width:?} {x} {y}: {a:?} {b:?} to {side:?}");
            }
        }
    }
}

fn for_all_pairs(sets: &[Scalar], dims: Dims, check: fn(&Scalar, &Scalar, &[u64], &[u64], Dims)) {
    let members: Vec<_> = sets.iter().map(|s| members(s, dims)).collect();
    for (a, ma) in sets.iter().zip(&members) {
        for (b, mb) in sets.iter().zip(&members) {
            check(a, b, ma, mb, dims);
        }
    }
}

#[test]
fn operations_include_every_result_of_known_bits() {
    for_all_pairs(&all_bits(NARROW), NARROW, check_pair);
}

#[test]
fn operations_include_every_result_of_intervals() {
    for_all_pairs(&all_intervals(INTERVALS), INTERVALS, check_pair);
}

#[test]
fn comparisons_keep_every_member_of_known_bits() {
    for_all_pairs(&all_bits(INTERVALS), INTERVALS, check_compare);
}

#[test]
fn comparisons_keep_every_member_of_intervals() {
    for_all_pairs(&all_intervals(INTERVALS), INTERVALS, check_compare);
}

#[test]
fn meeting_two_sets_keeps_the_common_members() {
    let sets: Vec<_> = all_bits(NARROW).into_iter().chain(all_intervals(NARROW)).collect();
    for a in &sets {
        for b in sets.iter().step_by(7) {
            let both = a.bits.meet(b.bits).map(|bits| Scalar { bits, wide: a.wide.meet(&b.wide), ..*a });
            let met = both.and_then(|s| s.synced(NARROW));
            for x in members(a, NARROW).into_iter().filter(|x| b.contains(*x, NARROW)) {
                assert!(met.is_some_and(|m| m.contains(x, NARROW)), "{x}: {a:?} {b:?}");
            }
        }
    }
}

#[test]
fn multiplication_of_known_bits_is_sharp_for_constants() {
    let product = alu(AluOp::Mul, Width::W64, &Scalar::of(6), &Scalar::of(7));
    assert_eq!(product.constant(), Some(42));
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Numbers near the places where intervals wrap, and any.
    fn number(&mut self) -> u64 {
        let edges = [0u64, 1 << 31, 1 << 32, 1 << 63, 0xffff_ffff_0000_0000, 0x7fff_ffff_8000_0000];
        let edge = edges[self.next() as usize % edges.len()];
        let near = (self.next() % 64).wrapping_sub(32);
        match self.next() % 4 {
            0 => self.next() >> (self.next() % 64),
            1 => edge.wrapping_add(near),
            2 => near,
            _ => self.next(),
        }
    }

    /// A set that `x` is in.
    fn around(&mut self, x: u64) -> Scalar {
        let mut s = Scalar::UNKNOWN;
        let kinds = self.next();
        if kinds & 1 != 0 {
            let mask = self.next() & self.next();
            s.bits = Tnum { value: x & !mask, mask };
        }
        let (below, above) = (self.number(), self.number());
        if kinds & 2 != 0 {
            (s.wide.umin, s.wide.umax) = (x.saturating_sub(below), x.saturating_add(above));
        }
        if kinds & 4 != 0 {
            let x = x as i64;
            s.wide.smin = x.saturating_sub_unsigned(below);
            s.wide.smax = x.saturating_add_unsigned(above);
        }
        let low_half = x as u32;
        if kinds & 8 != 0 {
            s.narrow.umin = u64::from(low_half.saturating_sub(below as u32));
            s.narrow.umax = u64::from(low_half.saturating_add(above as u32));
        }
        if kinds & 16 != 0 {
            s.narrow.smin = i64::from((low_half as i32).saturating_sub_unsigned(below as u32));
            s.narrow.smax = i64::from((low_half as i32).saturating_add_unsigned(above as u32));
        }
        let synced = s.synced(REGISTER);
        assert!(synced.is_some_and(|s| s.contains(x, REGISTER)), "{x:#x} left {s:?}");
        synced.unwrap()
    }
}

#[test]
fn random_registers_keep_their_value_through_everything() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..60_000 {
        let (x, y) = (random.number(), random.number());
        let (a, b) = (random.around(x), random.around(y));
        for width in Width::ALL {
            for op in AluOp::ALL {
                let (z, result) = (crate::alu::alu(*op, width, x, y), alu(*op, width, &a, &b));
                assert!(
                    result.contains(z, REGISTER),
                    "{op:?} {width:?} {x:#x} {y:#x}: {a:?} {b:?} {result:?}"
                );
            }
            let (z, result) = (crate::alu::neg(width, x), neg(width, &a));
            assert!(result.contains(z, REGISTER), "neg {x:#x}");
            for cond in Cond::ALL {
                let holds = crate::alu::holds(*cond, width, x, y);
                assert!(decide(*cond, width, &a, &b, REGISTER).is_none_or(|d| d == holds), "{cond:?}");
                let (ra, rb) = refine(*cond, width, holds, &a, &b, REGISTER).unwrap();
                assert!(
                    ra.contains(x, REGISTER) && rb.contains(y, REGISTER),
                    "{cond:?} {width:?} {x:#x} {y:#x}"
                );
            }
            for from in [Size::B, Size::H, Size::W] {
                if from.bits_wide() < width.bits() {
                    let z = crate::alu::movsx(width, from, x);
                    assert!(movsx(width, from, &a).contains(z, REGISTER), "movsx {x:#x}");
                }
            }
        }
        for op in SwapOp::ALL {
            for size in [Size::H, Size::W, Size::Dw] {
                let z = crate::alu::swap(*op, size, x);
                assert!(swap(*op, size, &a).contains(z, REGISTER), "{op:?} {x:#x}");
            }
        }
    }
}

#[test]
fn typical_bounds_are_found() {
    let masked = alu(AluOp::And, Width::W64, &Scalar::UNKNOWN, &Scalar::of(63));
    assert_eq!((masked.wide.umin, masked.wide.umax, masked.wide.smax), (0, 63, 63));
    let word = Scalar::of_width(32);
    let (below, _) = refine(Cond::Ult, Width::W32, true, &word, &Scalar::of(10), REGISTER).unwrap();
    assert_eq!(below.wide.umax, 9);
    let up = alu(AluOp::Lsh, Width::W64, &below, &Scalar::of(32));
    let down = alu(AluOp::Arsh, Width::W64, &up, &Scalar::of(32));
    assert_eq!((down.wide.smin, down.wide.smax), (0, 9));
}
