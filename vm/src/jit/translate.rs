//! One BPF function to Cranelift IR: its frames, blocks and registers, op by op.

use super::bytes::Origins;
use super::call::Symbols;
use super::frame::{Frame, Known};
use super::loops::Strip;
use crate::contract::{FUEL_ABORTED, FUEL_OFFSET};
use crate::isa::{Callee, Op, Operand, Reg, Width};
use crate::opt::loops::Counted;
use crate::verify::Verified;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{Block, Function, InstBuilder, Value};
use cranelift_codegen::isa::TargetIsa;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use std::collections::HashSet;

/// Translates the function with this index into the empty function `into`; the tables that it reads.
pub(super) fn function(
    known: &Known<'_>,
    index: usize,
    isa: &dyn TargetIsa,
    into: &mut Function,
    context: &mut FunctionBuilderContext,
) -> Vec<Vec<u8>> {
    let mut translator = Translator::new(known, index, FunctionBuilder::new(into, context), isa);
    translator.entry(index);
    translator.body();
    translator.bail_blocks();
    translator.b.seal_all_blocks();
    translator.drop_dead();
    let tables = std::mem::take(&mut translator.symbols.tables);
    translator.b.finalize(isa.frontend_config());
    tables
}

pub(super) struct Translator<'a, 'b> {
    pub(super) known: &'a Known<'a>,
    pub(super) program: &'a Verified,
    pub(super) b: FunctionBuilder<'b>,
    pub(super) symbols: Symbols,
    /// The function whose ops are being translated: this one, or one that is inlined into it.
    pub(super) frame: Frame,
    /// The run, sixth argument of the function.
    pub(super) run: Value,
    /// Fuel, while it is kept in a register: in functions that burn some.
    pub(super) fuel: Option<Variable>,
    /// Fuel ran out here: says so and returns 0.
    pub(super) exhausted: Block,
    /// Somebody we called ran out of fuel or aborted, and said so: returns 0.
    pub(super) stopped: Block,
    /// Branches that are part of a jump table.
    pub(super) tabled: HashSet<usize>,
    /// The counted loop that is being translated.
    pub(super) strip: Option<Strip>,
    /// Slot of the current op.
    pub(super) at: usize,
    pub(super) origins: Origins,
    /// The current block has its terminator.
    pub(super) closed: bool,
}

impl<'a, 'b> Translator<'a, 'b> {
    fn new(known: &'a Known<'a>, index: usize, mut b: FunctionBuilder<'b>, isa: &dyn TargetIsa) -> Self {
        let symbols = Symbols::new(&mut b, isa);
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        let run = b.block_params(entry)[5];
        let fuel = known.burns(index).then(|| b.declare_var(I64));
        let (exhausted, stopped) = (b.create_block(), b.create_block());
        let frame = Frame::new(known, index, &mut b);
        let (program, tabled, strip, at, closed) = (known.program, HashSet::new(), None, index, false);
        Translator {
            known,
            program,
            b,
            symbols,
            frame,
            run,
            fuel,
            exhausted,
            stopped,
            tabled,
            strip,
            at,
            origins: Origins::default(),
            closed,
        }
    }

    /// Arguments into r1-r5, stack and fuel made ready.
    fn entry(&mut self, index: usize) {
        let entry = self.b.current_block().map(|block| self.b.block_params(block).to_vec());
        let args = entry.unwrap_or_default();
        self.enter(index, &args[..5]);
        self.load_fuel();
    }

    /// Starts the current frame: arguments into r1-r5, zero into the rest, stack made ready.
    pub(super) fn enter(&mut self, index: usize, args: &[Value]) {
        let zero = self.b.ins().iconst(I64, 0);
        for (number, var) in self.frame.regs.into_iter().enumerate() {
            let value = if (1..=5).contains(&number) { args[number - 1] } else { zero };
            self.b.def_var(var, value);
        }
        for word in self.frame.words.clone().into_values() {
            self.b.def_var(word, zero);
        }
        self.reserve_stack(index);
    }

    /// Every op of the current frame's function.
    pub(super) fn body(&mut self) {
        let (start, end) = (self.frame.func.start, self.frame.func.end);
        self.ops(start, end);
    }

    /// The ops from one slot up to another.
    pub(super) fn ops(&mut self, start: usize, end: usize) {
        let mut at = start;
        while at < end {
            let op = self.program.ops()[at];
            if self.program.is_reachable(at) {
                self.begin(at);
                at = match self.counted_at(at) {
                    Some(counted) => self.counted_loop(&counted),
                    None => self.op(at, op),
                };
            } else {
                self.cut();
                at += op.slots();
            }
        }
    }

    /// The counted loop that begins at a slot.
    fn counted_at(&self, at: usize) -> Option<Counted> {
        let loops = &self.frame.loops;
        loops.binary_search_by_key(&at, |counted| counted.head).ok().map(|found| loops[found])
    }

    /// Makes the block for this slot current.
    pub(super) fn begin(&mut self, at: usize) {
        let block = match self.frame.block(at) {
            Some(block) => block,
            None if self.closed => self.b.create_block(), // behind a poisoned call
            None => return,
        };
        if !self.closed {
            self.b.ins().jump(block, &[]);
        }
        self.b.switch_to_block(block);
        self.closed = false;
    }

    /// Live code runs into code that the verifier proved dead: end here, whatever happens.
    fn cut(&mut self) {
        if !self.closed {
            self.b.ins().jump(self.stopped, &[]);
            self.closed = true;
        }
    }

    /// Translates one op; the slot to go on at.
    pub(super) fn op(&mut self, at: usize, op: Op) -> usize {
        self.at = at;
        match op {
            Op::Alu { op, width, dst, src } => self.alu(op, width, dst, src),
            Op::Neg { width, dst } => self.neg(width, dst),
            Op::MovSx { width, from, dst, src } => self.movsx(width, from, dst, src),
            Op::Swap { op, size, dst } => self.swap(op, size, dst),
            Op::LoadConst { dst, value } => self.load_const(dst, value),
            Op::Load { size, signed, dst, base, off } => self.load(at, size, signed, dst, base, off),
            Op::Store { size, base, off, src } => self.store(at, size, base, off, src),
            Op::Atomic { op, fetch, size, base, off, src } => self.atomic(op, fetch, size, base, off, src),
            Op::Jump { target } => self.jump(at, target),
            Op::Branch { cond, width, dst, src, target } => {
                return self.branch(at, cond, width, dst, src, target);
            }
            Op::Call(Callee::Helper(id)) => self.call_helper(at, id),
            Op::Call(Callee::Func(func)) => self.call_func(func),
            Op::Call(Callee::Poisoned(..)) => self.abort(),
            Op::Exit => self.exit(),
            Op::Second => {}
        }
        at + op.slots()
    }

    pub(super) fn get(&mut self, reg: Reg) -> Value {
        match self.frame.regs.get(reg.index()) {
            Some(var) => self.b.use_var(*var),
            None => self.stack_addr(0),
        }
    }

    /// The lower half of a register.
    pub(super) fn low(&mut self, reg: Reg) -> Value {
        let value = self.get(reg);
        self.b.ins().ireduce(I32, value)
    }

    /// The decoder lets no instruction write r10.
    pub(super) fn set(&mut self, reg: Reg, value: Value) {
        if let Some(var) = self.frame.regs.get(reg.index()) {
            self.b.def_var(*var, value);
        }
    }

    /// An operand at a width.
    pub(super) fn operand(&mut self, width: Width, operand: Operand) -> Value {
        match (width, operand) {
            (Width::W64, Operand::Reg(reg)) => self.get(reg),
            (Width::W32, Operand::Reg(reg)) => self.low(reg),
            (Width::W64, Operand::Imm(imm)) => self.b.ins().iconst(I64, i64::from(imm)),
            (Width::W32, Operand::Imm(imm)) => self.b.ins().iconst(I32, i64::from(imm as u32)),
        }
    }

    /// A register at a width.
    pub(super) fn reg(&mut self, width: Width, reg: Reg) -> Value {
        self.operand(width, Operand::Reg(reg))
    }

    fn exit(&mut self) {
        let result = self.get(Reg::R0);
        self.ret(result);
    }

    /// Returns from the current frame's function. The block is finished.
    pub(super) fn ret(&mut self, result: Value) {
        match self.frame.done {
            Some(done) => {
                self.b.ins().jump(done, &[result.into()]);
            }
            None => {
                self.store_fuel();
                self.b.ins().return_(&[result]);
            }
        }
        self.closed = true;
    }

    /// A poisoned call: marks the run as aborted, so that callers return too.
    fn abort(&mut self) {
        let aborted = self.b.ins().iconst(I64, FUEL_ABORTED);
        let (flags, run) = (super::fuel::run_flags(), self.run);
        self.b.ins().store(flags, aborted, run, FUEL_OFFSET);
        let zero = self.b.ins().iconst(I64, 0);
        self.b.ins().return_(&[zero]);
        self.closed = true;
    }

    fn bail_blocks(&mut self) {
        for block in [self.exhausted, self.stopped] {
            self.b.switch_to_block(block);
            self.b.set_cold_block(block);
            if block == self.exhausted {
                let (empty, run) = (self.b.ins().iconst(I64, -1), self.run);
                self.b.ins().store(super::fuel::run_flags(), empty, run, FUEL_OFFSET);
            }
            let zero = self.b.ins().iconst(I64, 0);
            self.b.ins().return_(&[zero]);
        }
    }
}
