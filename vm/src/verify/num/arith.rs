//! Transfer functions of the ALU operations.

use super::{Bounds, Dims, REGISTER, Scalar, Tnum, low};
use crate::isa::{AluOp, Size, SwapOp, Width};

/// One width of a number: what an operation of that width works on.
#[derive(Clone, Copy)]
struct Part {
    bits: Tnum,
    bounds: Bounds,
}

/// `dst op src` of registers; a 32-bit result is zero-extended.
pub fn alu(op: AluOp, width: Width, dst: &Scalar, src: &Scalar) -> Scalar {
    alu_in(op, width, dst, src, REGISTER)
}

/// `dst op src` in these dimensions.
pub(super) fn alu_in(op: AluOp, width: Width, dst: &Scalar, src: &Scalar, dims: Dims) -> Scalar {
    if matches!(op, AluOp::Div | AluOp::Sdiv | AluOp::Mod | AluOp::Smod) {
        return Scalar::unknown_in(dims);
    }
    let low_part = |s: &Scalar| Part { bits: s.bits.truncated(dims.narrow), bounds: s.narrow };
    let narrow = part(op, low_part(dst), low_part(src), dims.narrow);
    let result = match width {
        Width::W32 => {
            let narrow = narrow.unwrap_or(Part::unknown(dims.narrow));
            let Bounds { umin, umax, .. } = narrow.bounds;
            let wide = Bounds::unsigned(umin, umax, dims.wide);
            Scalar { bits: narrow.bits, wide, narrow: narrow.bounds }
        }
        Width::W64 => {
            let whole = |s: &Scalar| Part { bits: s.bits, bounds: s.wide };
            let wide = part(op, whole(dst), whole(src), dims.wide).unwrap_or(Part::unknown(dims.wide));
            // Only of these is the lower half of the result a function of the lower halves alone.
            let local = matches!(
                op,
                AluOp::Add | AluOp::Sub | AluOp::Mul | AluOp::And | AluOp::Or | AluOp::Xor | AluOp::Mov
            );
            let narrow = narrow.filter(|_| local).map_or(Bounds::full(dims.narrow), |n| n.bounds);
            Scalar { bits: wide.bits, wide: wide.bounds, narrow }
        }
    };
    result.synced(dims).unwrap_or(Scalar::unknown_in(dims))
}

impl Part {
    const fn unknown(bits: u32) -> Part {
        Part { bits: Tnum { value: 0, mask: low(bits) }, bounds: Bounds::full(bits) }
    }
}

/// One operation at one width; `None` when nothing is known of the result.
fn part(op: AluOp, a: Part, b: Part, width: u32) -> Option<Part> {
    // Only constant counts below the width have a result that is worth describing.
    let count = || b.bits.constant().filter(|n| *n < u64::from(width)).map(|n| n as u32);
    let (bits, bounds) = match op {
        AluOp::Add => (a.bits.add(b.bits), a.bounds.add(&b.bounds, width)),
        AluOp::Sub => (a.bits.sub(b.bits), a.bounds.sub(&b.bounds, width)),
        AluOp::Mul => (a.bits.mul(b.bits), a.bounds.mul(&b.bounds, width)),
        AluOp::And => (a.bits.and(b.bits), a.bounds.and(&b.bounds, width)),
        AluOp::Or => (a.bits.or(b.bits), a.bounds.or(&b.bounds, width)),
        AluOp::Xor => (a.bits.xor(b.bits), Bounds::full(width)),
        AluOp::Mov => (b.bits, b.bounds),
        AluOp::Lsh => {
            let n = count()?;
            (a.bits.lsh(n, width), a.bounds.lsh(n, width))
        }
        AluOp::Rsh => {
            let n = count()?;
            (a.bits.rsh(n), a.bounds.rsh(n, width))
        }
        AluOp::Arsh => {
            let n = count()?;
            (a.bits.arsh(n, width), a.bounds.arsh(n, width))
        }
        AluOp::Div | AluOp::Sdiv | AluOp::Mod | AluOp::Smod => return None,
    };
    Some(Part { bits: bits.truncated(width), bounds })
}

/// `-dst`.
pub fn neg(width: Width, dst: &Scalar) -> Scalar {
    alu(AluOp::Sub, width, &Scalar::of(0), dst)
}

/// `movsx`: a shift up and an arithmetic shift down again.
pub fn movsx(width: Width, from: Size, src: &Scalar) -> Scalar {
    let by = Scalar::of(u64::from(width.bits() - from.bits_wide()));
    alu(AluOp::Arsh, width, &alu(AluOp::Lsh, width, src, &by), &by)
}

/// Byte order conversions move bits, known or not.
pub fn swap(op: SwapOp, size: Size, dst: &Scalar) -> Scalar {
    if op == SwapOp::ToLe {
        return dst.truncated(size.bits_wide());
    }
    let moved = |bits: u64| crate::alu::swap(op, size, bits);
    let bits = Tnum { value: moved(dst.bits.value), mask: moved(dst.bits.mask) };
    Scalar::UNKNOWN.meet_bits(bits, REGISTER).unwrap_or(Scalar::UNKNOWN)
}
