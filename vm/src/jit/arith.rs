//! ALU instructions. The edge cases are those of [`crate::alu`].

use super::translate::Translator;
use crate::isa::{AluOp, Operand, Reg, Size, SwapOp, Width};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8, I16, I32, I64};
use cranelift_codegen::ir::{InstBuilder, Type, Value};

pub(super) fn int_type(width: Width) -> Type {
    match width {
        Width::W32 => I32,
        Width::W64 => I64,
    }
}

pub(super) fn size_type(size: Size) -> Type {
    match size {
        Size::B => I8,
        Size::H => I16,
        Size::W => I32,
        Size::Dw => I64,
    }
}

impl Translator<'_, '_> {
    /// Writes a result of either width; the narrow one zero-extends.
    pub(super) fn set_width(&mut self, width: Width, dst: Reg, value: Value) {
        let value = match width {
            Width::W64 => value,
            Width::W32 => self.b.ins().uextend(I64, value),
        };
        self.set(dst, value);
    }

    pub(super) fn alu(&mut self, op: AluOp, width: Width, dst: Reg, src: Operand) {
        match (op, src) {
            (AluOp::Or | AluOp::Add | AluOp::Xor, Operand::Reg(src)) => {
                let (a, b) = (self.get(dst), self.get(src));
                let joined = self.joined(a, b, width);
                match joined {
                    Some((_, Some(wide))) => self.set(dst, wide),
                    _ => self.compute(op, width, dst, Operand::Reg(src)),
                }
                let result = self.get(dst);
                if let Some((bytes, _)) = joined {
                    self.learn_bytes(result, bytes);
                }
            }
            (AluOp::Lsh, Operand::Imm(bits)) => {
                let old = self.get(dst);
                self.compute(op, width, dst, src);
                let new = self.get(dst);
                self.learn_shift(new, old, u64::from(bits as u32 & (width.bits() - 1)), width);
            }
            (AluOp::Mov, Operand::Reg(from)) if width == Width::W32 => {
                let old = self.get(from);
                self.compute(op, width, dst, src);
                let new = self.get(dst);
                self.learn_copy(new, old, width);
            }
            _ => self.compute(op, width, dst, src),
        }
    }

    fn compute(&mut self, op: AluOp, width: Width, dst: Reg, src: Operand) {
        let value = match op {
            AluOp::Mov => self.operand(width, src),
            AluOp::Div | AluOp::Sdiv | AluOp::Mod | AluOp::Smod => self.divide(op, width, dst, src),
            _ => {
                let (lhs, rhs) = (self.reg(width, dst), self.operand(width, src));
                self.simple(op, lhs, rhs)
            }
        };
        self.set_width(width, dst, value);
    }

    /// Cranelift masks shift counts to the width, as BPF does.
    fn simple(&mut self, op: AluOp, lhs: Value, rhs: Value) -> Value {
        let ins = self.b.ins();
        match op {
            AluOp::Add => ins.iadd(lhs, rhs),
            AluOp::Sub => ins.isub(lhs, rhs),
            AluOp::Mul => ins.imul(lhs, rhs),
            AluOp::Or => ins.bor(lhs, rhs),
            AluOp::And => ins.band(lhs, rhs),
            AluOp::Xor => ins.bxor(lhs, rhs),
            AluOp::Lsh => ins.ishl(lhs, rhs),
            AluOp::Rsh => ins.ushr(lhs, rhs),
            AluOp::Arsh => ins.sshr(lhs, rhs),
            AluOp::Mov | AluOp::Div | AluOp::Sdiv | AluOp::Mod | AluOp::Smod => rhs,
        }
    }

    fn divide(&mut self, op: AluOp, width: Width, dst: Reg, src: Operand) -> Value {
        let lhs = self.reg(width, dst);
        match (op, src) {
            (_, Operand::Imm(0)) => self.by_zero(op, width, lhs),
            (AluOp::Sdiv, Operand::Imm(-1)) => self.b.ins().ineg(lhs),
            (AluOp::Smod, Operand::Imm(-1)) => self.b.ins().iconst(int_type(width), 0),
            (_, Operand::Imm(_)) => {
                let rhs = self.operand(width, src);
                self.quotient(op, lhs, rhs)
            }
            (_, Operand::Reg(_)) => {
                let rhs = self.operand(width, src);
                self.divide_checked(op, width, lhs, rhs)
            }
        }
    }

    fn by_zero(&mut self, op: AluOp, width: Width, lhs: Value) -> Value {
        match op {
            AluOp::Mod | AluOp::Smod => lhs,
            _ => self.b.ins().iconst(int_type(width), 0),
        }
    }

    fn quotient(&mut self, op: AluOp, lhs: Value, rhs: Value) -> Value {
        match op {
            AluOp::Sdiv => self.b.ins().sdiv(lhs, rhs),
            AluOp::Mod => self.b.ins().urem(lhs, rhs),
            AluOp::Smod => self.b.ins().srem(lhs, rhs),
            _ => self.b.ins().udiv(lhs, rhs),
        }
    }

    /// Goes around the divide instruction for the divisors it traps on: 0, and -1 when signed.
    fn divide_checked(&mut self, op: AluOp, width: Width, lhs: Value, rhs: Value) -> Value {
        let (plain, special, done) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        let result = self.b.append_block_param(done, int_type(width));
        let signed = matches!(op, AluOp::Sdiv | AluOp::Smod);
        let safe = if signed {
            // -1 and 0 become 0 and 1.
            let shifted = self.b.ins().iadd_imm_s(rhs, 1);
            self.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, shifted, 1)
        } else {
            rhs
        };
        self.b.ins().brif(safe, plain, &[], special, &[]);
        self.b.switch_to_block(plain);
        let value = self.quotient(op, lhs, rhs);
        self.b.ins().jump(done, &[value.into()]);
        self.b.switch_to_block(special);
        self.b.set_cold_block(special);
        let value = self.special_quotient(op, width, lhs, rhs);
        self.b.ins().jump(done, &[value.into()]);
        self.b.switch_to_block(done);
        result
    }

    /// The result for divisor 0 or (signed) -1.
    fn special_quotient(&mut self, op: AluOp, width: Width, lhs: Value, rhs: Value) -> Value {
        match op {
            AluOp::Smod => {
                let zero = self.b.ins().iconst(int_type(width), 0);
                let by_zero = self.b.ins().icmp_imm_s(IntCC::Equal, rhs, 0);
                self.b.ins().select(by_zero, lhs, zero)
            }
            // x * 0 is 0 and x * -1 is -x, wrapping: both quotients at once.
            AluOp::Sdiv => self.b.ins().imul(lhs, rhs),
            _ => self.by_zero(op, width, lhs),
        }
    }

    pub(super) fn neg(&mut self, width: Width, dst: Reg) {
        let value = self.reg(width, dst);
        let value = self.b.ins().ineg(value);
        self.set_width(width, dst, value);
    }

    pub(super) fn movsx(&mut self, width: Width, from: Size, dst: Reg, src: Reg) {
        let value = self.get(src);
        let narrow = self.b.ins().ireduce(size_type(from), value);
        let value = self.b.ins().sextend(int_type(width), narrow);
        self.set_width(width, dst, value);
    }

    pub(super) fn swap(&mut self, op: SwapOp, size: Size, dst: Reg) {
        let value = self.get(dst);
        let value = match size {
            Size::Dw => value,
            _ => self.b.ins().ireduce(size_type(size), value),
        };
        let value = match op {
            SwapOp::ToLe => value,
            SwapOp::ToBe | SwapOp::Swap => self.b.ins().bswap(value),
        };
        let value = match size {
            Size::Dw => value,
            _ => self.b.ins().uextend(I64, value),
        };
        self.set(dst, value);
    }
}
