//! One BPF function to Cranelift IR: blocks, registers, control flow and fuel.

use super::call::Symbols;
use crate::contract::{FUEL_ABORTED, FUEL_OFFSET};
use crate::isa::{Callee, Cond, Op, Operand, Reg, Width};
use crate::program::{Func, Program};
use cranelift_codegen::ir::condcodes::{CondCode, IntCC};
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{Block, Function, InstBuilder, MemFlagsData, StackSlot, Value};
use cranelift_codegen::isa::TargetIsa;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};

/// Translates `func` into the empty function `into`.
pub(super) fn function(
    program: &Program,
    func: Func,
    isa: &dyn TargetIsa,
    into: &mut Function,
    context: &mut FunctionBuilderContext,
) {
    let mut translator = Translator::new(program, func, FunctionBuilder::new(into, context), isa);
    translator.entry();
    translator.body();
    translator.bail_blocks();
    translator.b.seal_all_blocks();
    translator.b.finalize(isa.frontend_config());
}

pub(super) struct Translator<'a, 'b> {
    pub(super) program: &'a Program,
    pub(super) func: Func,
    pub(super) b: FunctionBuilder<'b>,
    pub(super) symbols: Symbols,
    /// r0 to r9; r10 is the end of the stack slot.
    regs: [Variable; 10],
    pub(super) stack: Option<StackSlot>,
    /// The run, sixth argument of the function.
    pub(super) run: Value,
    /// Fuel, while it is kept in a register: in functions that burn some.
    fuel: Option<Variable>,
    /// Fuel ran out here: says so and returns 0.
    exhausted: Block,
    /// Somebody we called ran out of fuel or aborted, and said so: returns 0.
    stopped: Block,
    /// Block that begins at each slot of the function, if one does.
    blocks: Vec<Option<Block>>,
    /// The current block has its terminator.
    closed: bool,
}

impl<'a, 'b> Translator<'a, 'b> {
    fn new(program: &'a Program, func: Func, mut b: FunctionBuilder<'b>, isa: &dyn TargetIsa) -> Self {
        let symbols = Symbols::new(&mut b, isa);
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        let run = b.block_params(entry)[5];
        let regs = std::array::from_fn(|_| b.declare_var(I64));
        let fuel = burns(program, func).then(|| b.declare_var(I64));
        let (exhausted, stopped) = (b.create_block(), b.create_block());
        let blocks = leaders(program, func, &mut b);
        let (stack, closed) = (None, false);
        Translator { program, func, b, symbols, regs, stack, run, fuel, exhausted, stopped, blocks, closed }
    }

    /// Arguments into r1-r5, zero into the rest, stack and fuel made ready.
    fn entry(&mut self) {
        let entry = self.b.current_block().map(|block| self.b.block_params(block).to_vec());
        let params = entry.unwrap_or_default();
        let zero = self.b.ins().iconst(I64, 0);
        for (number, var) in self.regs.into_iter().enumerate() {
            let value = if (1..=5).contains(&number) { params[number - 1] } else { zero };
            self.b.def_var(var, value);
        }
        self.reserve_stack();
        self.load_fuel();
    }

    fn body(&mut self) {
        let mut at = self.func.start;
        while at < self.func.end {
            let op = self.program.ops()[at];
            if self.program.is_reachable(at) {
                self.begin(at);
                self.op(at, op);
            } else {
                self.cut();
            }
            at += op.slots();
        }
    }

    /// Makes the block for this slot current.
    fn begin(&mut self, at: usize) {
        let block = match self.blocks[at - self.func.start] {
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

    fn op(&mut self, at: usize, op: Op) {
        match op {
            Op::Alu { op, width, dst, src } => self.alu(op, width, dst, src),
            Op::Neg { width, dst } => self.neg(width, dst),
            Op::MovSx { width, from, dst, src } => self.movsx(width, from, dst, src),
            Op::Swap { op, size, dst } => self.swap(op, size, dst),
            Op::LoadConst { dst, value } => self.load_const(dst, value),
            Op::Load { size, signed, dst, base, off } => self.load(size, signed, dst, base, off),
            Op::Store { size, base, off, src } => self.store(size, base, off, src),
            Op::Atomic { op, fetch, size, base, off, src } => self.atomic(op, fetch, size, base, off, src),
            Op::Jump { target } => self.jump(at, target),
            Op::Branch { cond, width, dst, src, target } => self.branch(at, cond, width, dst, src, target),
            Op::Call(Callee::Helper(id)) => self.call_helper(id),
            Op::Call(Callee::Func(func)) => self.call_func(func),
            Op::Call(Callee::Poisoned(..)) => self.abort(),
            Op::Exit => self.exit(),
            Op::Second => {}
        }
    }

    pub(super) fn get(&mut self, reg: Reg) -> Value {
        match self.regs.get(reg.index()) {
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
        if let Some(var) = self.regs.get(reg.index()) {
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

    fn block(&mut self, slot: usize) -> Block {
        // Targets without a block are those that the verifier proved dead.
        self.blocks[slot - self.func.start].unwrap_or(self.stopped)
    }

    fn jump(&mut self, at: usize, target: usize) {
        if target <= at {
            self.burn();
        }
        let block = self.block(target);
        self.b.ins().jump(block, &[]);
        self.closed = true;
    }

    fn branch(&mut self, at: usize, cond: Cond, width: Width, dst: Reg, src: Operand, target: usize) {
        let (lhs, rhs) = (self.reg(width, dst), self.operand(width, src));
        let (taken, next) = (self.block(target), self.block(at + 1));
        if target <= at {
            self.branch_back(cond, lhs, rhs, taken, next);
        } else {
            let holds = match int_cc(cond) {
                Some(cc) => self.b.ins().icmp(cc, lhs, rhs),
                None => self.b.ins().band(lhs, rhs),
            };
            self.b.ins().brif(holds, taken, &[], next, &[]);
        }
        self.closed = true;
    }

    /// A back-edge burns. Cranelift lays the second successor out next, so the condition is inverted to
    /// keep the loop in one piece and move its exit away.
    fn branch_back(&mut self, cond: Cond, lhs: Value, rhs: Value, taken: Block, next: Block) {
        let fails = match int_cc(cond) {
            Some(cc) => self.b.ins().icmp(cc.complement(), lhs, rhs),
            None => {
                let common = self.b.ins().band(lhs, rhs);
                self.b.ins().icmp_imm_s(IntCC::Equal, common, 0)
            }
        };
        let edge = self.b.create_block();
        self.b.ins().brif(fails, next, &[], edge, &[]);
        self.b.switch_to_block(edge);
        self.burn();
        self.b.ins().jump(taken, &[]);
    }

    fn exit(&mut self) {
        let result = self.get(Reg::R0);
        self.ret(result);
    }

    /// Returns from the function. The block is finished.
    pub(super) fn ret(&mut self, result: Value) {
        self.store_fuel();
        self.b.ins().return_(&[result]);
        self.closed = true;
    }

    /// A poisoned call: marks the run as aborted, so that callers return too.
    fn abort(&mut self) {
        let aborted = self.b.ins().iconst(I64, FUEL_ABORTED);
        let (flags, run) = (run_flags(), self.run);
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
                self.b.ins().store(run_flags(), empty, run, FUEL_OFFSET);
            }
            let zero = self.b.ins().iconst(I64, 0);
            self.b.ins().return_(&[zero]);
        }
    }

    /// Takes one unit of fuel; leaves the function when there was none. Looks at the fuel before, not after:
    /// that way nothing but the test and the branch comes before the jump.
    pub(super) fn burn(&mut self) {
        let Some(fuel) = self.fuel else { return };
        let old = self.b.use_var(fuel);
        let none = self.b.ins().icmp_imm_s(IntCC::SignedLessThanOrEqual, old, 0);
        self.leave_if(none, self.exhausted);
        let left = self.b.ins().iadd_imm_s(old, -1);
        self.b.def_var(fuel, left);
    }

    fn leave_if(&mut self, condition: Value, exit: Block) {
        let go_on = self.b.create_block();
        self.b.ins().brif(condition, exit, &[], go_on, &[]);
        self.b.switch_to_block(go_on);
    }

    /// Memory to register, at entry and after calls that may burn.
    pub(super) fn load_fuel(&mut self) {
        if let Some(fuel) = self.fuel {
            let left = self.fuel_in_memory();
            self.b.def_var(fuel, left);
        }
    }

    /// Register to memory, before anybody else looks.
    pub(super) fn store_fuel(&mut self) {
        if let Some(fuel) = self.fuel {
            let (left, run) = (self.b.use_var(fuel), self.run);
            self.b.ins().store(run_flags(), left, run, FUEL_OFFSET);
        }
    }

    /// After a call that may have run out of fuel or aborted: leave as well.
    pub(super) fn bail_if_stopped(&mut self) {
        let left = self.fuel_in_memory();
        if let Some(fuel) = self.fuel {
            self.b.def_var(fuel, left);
        }
        let negative = self.b.ins().icmp_imm_s(IntCC::SignedLessThan, left, 0);
        self.leave_if(negative, self.stopped);
    }

    fn fuel_in_memory(&mut self) -> Value {
        let run = self.run;
        self.b.ins().load(I64, run_flags(), run, FUEL_OFFSET)
    }
}

fn run_flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap().with_aligned()
}

/// Whether a function takes fuel itself.
fn burns(program: &Program, func: Func) -> bool {
    (func.start..func.end).any(|at| {
        let op = &program.ops()[at];
        op.target().is_some_and(|target| target <= at) || matches!(op, Op::Call(Callee::Func(_)))
    })
}

/// Blocks begin at jump targets and behind branches.
fn leaders(program: &Program, func: Func, b: &mut FunctionBuilder<'_>) -> Vec<Option<Block>> {
    let is_leader = |at: usize| {
        let behind_branch = at > func.start && matches!(program.ops()[at - 1], Op::Branch { .. });
        program.is_reachable(at) && (program.is_target(at) || behind_branch)
    };
    (func.start..func.end).map(|at| is_leader(at).then(|| b.create_block())).collect()
}

/// `None` for `Set`, which is no comparison.
fn int_cc(cond: Cond) -> Option<IntCC> {
    Some(match cond {
        Cond::Eq => IntCC::Equal,
        Cond::Ne => IntCC::NotEqual,
        Cond::Ugt => IntCC::UnsignedGreaterThan,
        Cond::Uge => IntCC::UnsignedGreaterThanOrEqual,
        Cond::Ult => IntCC::UnsignedLessThan,
        Cond::Ule => IntCC::UnsignedLessThanOrEqual,
        Cond::Sgt => IntCC::SignedGreaterThan,
        Cond::Sge => IntCC::SignedGreaterThanOrEqual,
        Cond::Slt => IntCC::SignedLessThan,
        Cond::Sle => IntCC::SignedLessThanOrEqual,
        Cond::Set => return None,
    })
}
