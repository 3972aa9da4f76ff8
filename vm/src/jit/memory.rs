//! Loads, stores, atomics and the stack.

use super::arith::size_type;
use super::translate::Translator;
use crate::isa::{AtomicOp, Op, Operand, Reg, Size, Width};
use crate::opt::cells::Cell;
use crate::opt::values::Value as Known;
use cranelift_codegen::ir::types::{I8X16, I64};
use cranelift_codegen::ir::{AtomicRmwOp, InstBuilder, MemFlagsData, StackSlotData, StackSlotKind, Value};
use cranelift_frontend::Variable;

/// Words that are cleared without vector registers.
const FEW_WORDS: usize = 8;

/// An access never becomes a trap of the compiler's own. Nothing is said about alignment.
fn flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

impl Translator<'_, '_> {
    /// Makes the stack slot for what is no variable, and clears what may be read before it is written: a
    /// program must not see what the host left there.
    pub(super) fn reserve_stack(&mut self, index: usize) {
        let reserve = self.frame.cells.reserve;
        if reserve == 0 && !self.reads_fp() {
            return;
        }
        let slot = StackSlotData::new(StackSlotKind::ExplicitSlot, reserve, 4);
        self.frame.stack = Some(self.b.create_sized_stack_slot(slot));
        let unwritten = self.program.unwritten(index);
        // Whole words: at entry nobody wrote any of their bytes.
        let is_read = |word: &i32| (0..8).any(|byte| unwritten.contains(i64::from(word + byte)));
        let is_memory = |word: &i32| self.frame.cells.cell(*word, Size::B).is_none();
        let words = (-(reserve as i32)..0).step_by(8);
        let words: Vec<i32> = words.filter(|word| is_read(word) && is_memory(word)).collect();
        self.clear(&words);
    }

    /// Clears words of the frame: pairs by vector registers when there are many, else one by one, which
    /// spares the caller to keep its vector registers.
    fn clear(&mut self, words: &[i32]) {
        if words.is_empty() {
            return;
        }
        let zero = self.b.ins().iconst(I64, 0);
        let pair = (words.len() > FEW_WORDS).then(|| {
            let zero = self.b.func.dfg.constants.insert(vec![0; 16].into());
            self.b.ins().vconst(I8X16, zero)
        });
        let mut rest = words;
        while let [word, tail @ ..] = rest {
            let addr = self.stack_addr(*word);
            match (pair, tail) {
                (Some(pair), [next, tail @ ..]) if *next == word + 8 => {
                    self.b.ins().store(flags(), pair, addr, 0);
                    rest = tail;
                }
                _ => {
                    self.b.ins().store(flags(), zero, addr, 0);
                    rest = tail;
                }
            }
        }
    }

    /// Whether r10 is used as a value although nothing is known to be accessed through it.
    fn reads_fp(&self) -> bool {
        let reg = |operand: Operand| operand == Operand::Reg(Reg::FP);
        self.program.ops()[self.frame.func.start..self.frame.func.end].iter().any(|op| match *op {
            Op::Alu { src, .. } | Op::Store { src, .. } => reg(src),
            Op::Branch { dst, src, .. } => dst == Reg::FP || reg(src),
            Op::MovSx { src, .. } | Op::Atomic { src, .. } => src == Reg::FP,
            _ => false,
        })
    }

    /// r10 plus a constant.
    pub(super) fn stack_addr(&mut self, off: i32) -> Value {
        match self.frame.stack {
            Some(slot) => self.b.ins().stack_addr(I64, slot, self.frame.cells.reserve as i32 + off),
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

    pub(super) fn load(&mut self, at: usize, size: Size, signed: bool, dst: Reg, base: Reg, off: i16) {
        let value = match self.program.known(at) {
            Some(constant) => self.b.ins().iconst(I64, constant as i64),
            None => self.loaded(at, size, signed, base, off),
        };
        self.set(dst, value);
    }

    /// What the op at this slot reads at a place.
    pub(super) fn loaded(&mut self, at: usize, size: Size, signed: bool, base: Reg, off: i16) -> Value {
        if let Some(cell) = self.cell(at, base, off, size) {
            return self.load_cell(cell, size, signed);
        }
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
        if !signed {
            self.learn_load(value, addr, off, size.bytes());
        }
        value
    }

    pub(super) fn store(&mut self, at: usize, size: Size, base: Reg, off: i16, src: Operand) {
        let value = self.operand(Width::W64, src);
        if let Some(cell) = self.cell(at, base, off, size) {
            return self.store_cell(cell, size, value);
        }
        self.origins.forget();
        let (addr, off) = self.place(base, off);
        let (flags, ins) = (flags(), self.b.ins());
        match size {
            Size::B => ins.istore8(flags, value, addr, off),
            Size::H => ins.istore16(flags, value, addr, off),
            Size::W => ins.istore32(flags, value, addr, off),
            Size::Dw => ins.store(flags, value, addr, off),
        };
    }

    /// The variable that this access goes to, if it is no memory.
    fn cell(&self, at: usize, base: Reg, off: i16, size: Size) -> Option<Cell> {
        let start = self.frame.values.at(at)?[base.index()];
        match start {
            Known::Fp(start) => self.frame.cells.cell(start + i32::from(off), size),
            _ => None,
        }
    }

    fn word(&self, cell: Cell) -> Variable {
        self.frame.words[&cell.word]
    }

    fn load_cell(&mut self, cell: Cell, size: Size, signed: bool) -> Value {
        let word = self.word(cell);
        let word = self.b.use_var(word);
        let value = match cell.shift {
            Some(shift) if shift > 0 => self.b.ins().ushr_imm_u(word, i64::from(shift)),
            _ => word,
        };
        match (size, signed, cell.shift) {
            (Size::Dw, ..) | (_, false, None) => value,
            (_, signed, _) => {
                let narrow = self.b.ins().ireduce(size_type(size), value);
                if signed { self.b.ins().sextend(I64, narrow) } else { self.b.ins().uextend(I64, narrow) }
            }
        }
    }

    fn store_cell(&mut self, cell: Cell, size: Size, value: Value) {
        let word = self.word(cell);
        let value = match size {
            Size::Dw => value,
            _ => {
                let narrow = self.b.ins().ireduce(size_type(size), value);
                self.b.ins().uextend(I64, narrow)
            }
        };
        let value = match cell.shift {
            Some(shift) if size != Size::Dw => {
                let mask = (u64::MAX >> (64 - size.bits_wide())) << shift;
                let old = self.b.use_var(word);
                let kept = self.b.ins().band_imm_s(old, !mask as i64);
                let moved = self.b.ins().ishl_imm_u(value, i64::from(shift));
                self.b.ins().bor(kept, moved)
            }
            _ => value,
        };
        self.b.def_var(word, value);
    }

    pub(super) fn atomic(&mut self, op: AtomicOp, fetch: bool, size: Size, base: Reg, off: i16, src: Reg) {
        self.origins.forget();
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
