//! Loads, stores, atomics and the stack.

use super::arith::size_type;
use super::translate::Translator;
use crate::isa::{AtomicOp, Op, Operand, Reg, Size, Width};
use cranelift_codegen::ir::types::{I8X16, I64};
use cranelift_codegen::ir::{AtomicRmwOp, InstBuilder, MemFlagsData, StackSlotData, StackSlotKind, Value};

/// Bytes cleared by one store.
const VECTOR: u32 = 16;

/// An access never becomes a trap of the compiler's own. Nothing is said about alignment.
fn flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

impl Translator<'_, '_> {
    /// Makes the stack slot and clears it: a program must not see what the host left there.
    pub(super) fn reserve_stack(&mut self) {
        let reserve = self.func.stack.reserve;
        if reserve == 0 && !self.reads_fp() {
            return;
        }
        let slot = StackSlotData::new(StackSlotKind::ExplicitSlot, reserve, 4);
        self.stack = Some(self.b.create_sized_stack_slot(slot));
        if reserve == 0 {
            return;
        }
        let zero = self.b.func.dfg.constants.insert(vec![0; VECTOR as usize].into());
        let zero = self.b.ins().vconst(I8X16, zero);
        for at in (0..reserve).step_by(VECTOR as usize) {
            let addr = self.stack_addr(at as i32 - reserve as i32);
            self.b.ins().store(flags(), zero, addr, 0);
        }
    }

    /// Whether r10 is used as a value although nothing is known to be accessed through it.
    fn reads_fp(&self) -> bool {
        let reg = |operand: Operand| operand == Operand::Reg(Reg::FP);
        self.program.ops()[self.func.start..self.func.end].iter().any(|op| match *op {
            Op::Alu { src, .. } | Op::Store { src, .. } => reg(src),
            Op::Branch { dst, src, .. } => dst == Reg::FP || reg(src),
            Op::MovSx { src, .. } | Op::Atomic { src, .. } => src == Reg::FP,
            _ => false,
        })
    }

    /// r10 plus a constant.
    pub(super) fn stack_addr(&mut self, off: i32) -> Value {
        match self.stack {
            Some(slot) => self.b.ins().stack_addr(I64, slot, self.func.stack.reserve as i32 + off),
            // Only unreachable code gets here; see `reads_fp`.
            None => self.b.ins().iconst(I64, 0),
        }
    }

    /// Base and displacement of an access. Stack accesses fold into the slot's address.
    fn place(&mut self, base: Reg, off: i16) -> (Value, i32) {
        match base {
            Reg::FP => (self.stack_addr(i32::from(off)), 0),
            base => (self.get(base), i32::from(off)),
        }
    }

    pub(super) fn load(&mut self, size: Size, signed: bool, dst: Reg, base: Reg, off: i16) {
        let (addr, off) = self.place(base, off);
        let (flags, ins) = (flags(), self.b.ins());
        let value = match (size, signed) {
            (Size::B, false) => ins.uload8(I64, flags, addr, off),
            (Size::B, true) => ins.sload8(I64, flags, addr, off),
            (Size::H, false) => ins.uload16(I64, flags, addr, off),
            (Size::H, true) => ins.sload16(I64, flags, addr, off),
            (Size::W, false) => ins.uload32(flags, addr, off),
            (Size::W, true) => ins.sload32(flags, addr, off),
            (Size::Dw, _) => ins.load(I64, flags, addr, off),
        };
        self.set(dst, value);
    }

    pub(super) fn store(&mut self, size: Size, base: Reg, off: i16, src: Operand) {
        let value = self.operand(Width::W64, src);
        let (addr, off) = self.place(base, off);
        let (flags, ins) = (flags(), self.b.ins());
        match size {
            Size::B => ins.istore8(flags, value, addr, off),
            Size::H => ins.istore16(flags, value, addr, off),
            Size::W => ins.istore32(flags, value, addr, off),
            Size::Dw => ins.store(flags, value, addr, off),
        };
    }

    pub(super) fn atomic(&mut self, op: AtomicOp, fetch: bool, size: Size, base: Reg, off: i16, src: Reg) {
        let (addr, off) = self.place(base, off);
        let addr = self.b.ins().iadd_imm_s(addr, i64::from(off));
        let width = if size == Size::Dw { Width::W64 } else { Width::W32 };
        let operand = self.reg(width, src);
        let old = match rmw(op) {
            Some(rmw) => self.b.ins().atomic_rmw(size_type(size), flags(), rmw, addr, operand),
            None => {
                let expected = self.reg(width, Reg::R0);
                self.b.ins().atomic_cas(flags(), addr, expected, operand)
            }
        };
        if fetch {
            let dst = if op == AtomicOp::Cmpxchg { Reg::R0 } else { src };
            self.set_width(width, dst, old);
        }
    }
}

/// `None` for the compare and exchange.
fn rmw(op: AtomicOp) -> Option<AtomicRmwOp> {
    Some(match op {
        AtomicOp::Add => AtomicRmwOp::Add,
        AtomicOp::Or => AtomicRmwOp::Or,
        AtomicOp::And => AtomicRmwOp::And,
        AtomicOp::Xor => AtomicRmwOp::Xor,
        AtomicOp::Xchg => AtomicRmwOp::Xchg,
        AtomicOp::Cmpxchg => return None,
    })
}
