//! ALU edge semantics, defined once (RFC 9669, sections 4.1 to 4.3): what division by zero, overflow,
//! oversized shifts and narrow operands mean. The interpreter executes these functions; the compiler is
//! tested against them.
#![forbid(unsafe_code)]

use crate::isa::{AluOp, Cond, Size, SwapOp, Width};

/// `dst op src` at the given width; a 32-bit result is zero-extended.
pub fn alu(op: AluOp, width: Width, dst: u64, src: u64) -> u64 {
    match width {
        Width::W64 => alu64(op, dst, src),
        Width::W32 => u64::from(alu32(op, dst as u32, src as u32)),
    }
}

/// The 64-bit operations.
pub fn alu64(op: AluOp, dst: u64, src: u64) -> u64 {
    // Only the low six bits of a shift count matter.
    let count = (src & 63) as u32;
    match op {
        AluOp::Add => dst.wrapping_add(src),
        AluOp::Sub => dst.wrapping_sub(src),
        AluOp::Mul => dst.wrapping_mul(src),
        AluOp::Div => dst.checked_div(src).unwrap_or(0),
        AluOp::Sdiv => sdiv64(dst as i64, src as i64) as u64,
        AluOp::Or => dst | src,
        AluOp::And => dst & src,
        AluOp::Lsh => dst << count,
        AluOp::Rsh => dst >> count,
        AluOp::Mod => dst.checked_rem(src).unwrap_or(dst),
        AluOp::Smod => smod64(dst as i64, src as i64) as u64,
        AluOp::Xor => dst ^ src,
        AluOp::Mov => src,
        AluOp::Arsh => ((dst as i64) >> count) as u64,
    }
}

/// The 32-bit operations.
pub fn alu32(op: AluOp, dst: u32, src: u32) -> u32 {
    let count = src & 31;
    match op {
        AluOp::Add => dst.wrapping_add(src),
        AluOp::Sub => dst.wrapping_sub(src),
        AluOp::Mul => dst.wrapping_mul(src),
        AluOp::Div => dst.checked_div(src).unwrap_or(0),
        AluOp::Sdiv => sdiv32(dst as i32, src as i32) as u32,
        AluOp::Or => dst | src,
        AluOp::And => dst & src,
        AluOp::Lsh => dst << count,
        AluOp::Rsh => dst >> count,
        AluOp::Mod => dst.checked_rem(src).unwrap_or(dst),
        AluOp::Smod => smod32(dst as i32, src as i32) as u32,
        AluOp::Xor => dst ^ src,
        AluOp::Mov => src,
        AluOp::Arsh => ((dst as i32) >> count) as u32,
    }
}

// Division by zero gives 0 and its remainder the dividend; MIN / -1 wraps to MIN with remainder 0.

fn sdiv64(dst: i64, src: i64) -> i64 {
    if src == 0 { 0 } else { dst.wrapping_div(src) }
}

fn smod64(dst: i64, src: i64) -> i64 {
    if src == 0 { dst } else { dst.wrapping_rem(src) }
}

fn sdiv32(dst: i32, src: i32) -> i32 {
    if src == 0 { 0 } else { dst.wrapping_div(src) }
}

fn smod32(dst: i32, src: i32) -> i32 {
    if src == 0 { dst } else { dst.wrapping_rem(src) }
}

/// Two's complement negation; a 32-bit result is zero-extended.
pub fn neg(width: Width, dst: u64) -> u64 {
    match width {
        Width::W64 => dst.wrapping_neg(),
        Width::W32 => u64::from((dst as u32).wrapping_neg()),
    }
}

/// Sign-extends the lower bits of a value into the whole register.
pub fn sign_extend(from: Size, value: u64) -> u64 {
    match from {
        Size::B => value as i8 as u64,
        Size::H => value as i16 as u64,
        Size::W => value as i32 as u64,
        Size::Dw => value,
    }
}

/// `movsx`: sign-extends to the width; a 32-bit result is zero-extended above that.
pub fn movsx(width: Width, from: Size, src: u64) -> u64 {
    let wide = sign_extend(from, src);
    match width {
        Width::W64 => wide,
        Width::W32 => u64::from(wide as u32),
    }
}

/// Keeps the lower bits.
pub fn zero_extend(from: Size, value: u64) -> u64 {
    match from {
        Size::B => u64::from(value as u8),
        Size::H => u64::from(value as u16),
        Size::W => u64::from(value as u32),
        Size::Dw => value,
    }
}

/// Byte order conversions on a little-endian machine: `le` only truncates.
pub fn swap(op: SwapOp, size: Size, value: u64) -> u64 {
    match op {
        SwapOp::ToLe => zero_extend(size, value),
        SwapOp::ToBe | SwapOp::Swap => swap_bytes(size, value),
    }
}

fn swap_bytes(size: Size, value: u64) -> u64 {
    match size {
        Size::B => u64::from(value as u8),
        Size::H => u64::from((value as u16).swap_bytes()),
        Size::W => u64::from((value as u32).swap_bytes()),
        Size::Dw => value.swap_bytes(),
    }
}

/// Whether `dst cond src` holds at the width.
pub fn holds(cond: Cond, width: Width, dst: u64, src: u64) -> bool {
    match width {
        Width::W64 => compare(cond, dst, src, dst as i64, src as i64),
        Width::W32 => {
            let (a, b) = (dst as u32, src as u32);
            compare(cond, u64::from(a), u64::from(b), i64::from(a as i32), i64::from(b as i32))
        }
    }
}

fn compare(cond: Cond, a: u64, b: u64, sa: i64, sb: i64) -> bool {
    match cond {
        Cond::Eq => a == b,
        Cond::Ne => a != b,
        Cond::Set => a & b != 0,
        Cond::Ugt => a > b,
        Cond::Uge => a >= b,
        Cond::Ult => a < b,
        Cond::Ule => a <= b,
        Cond::Sgt => sa > sb,
        Cond::Sge => sa >= sb,
        Cond::Slt => sa < sb,
        Cond::Sle => sa <= sb,
    }
}
