//! Bounds the stack of each function and of chains of calls.
//!
//! Follows r10 and its copies with constant offsets through each function. The result is sound for
//! programs that the verifier accepts: their helpers reach upwards from a pointer, never below it. As soon
//! as a stack pointer goes where this analysis cannot follow it (memory, another function, arithmetic with
//! a register, a merge of different offsets that is then used), the function gets the whole window.

use super::error::{LoadError, Reason};
use super::func_of;
use crate::isa::{AluOp, AtomicOp, Callee, MAX_FRAMES, MAX_STACK, Op, Operand, Reg, Size, Width};
use crate::program::{Func, Program, StackUse};
use std::collections::HashMap;

/// What a register may hold, as far as the stack is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// No address of this frame.
    Other,
    /// r10 plus a constant.
    Fp(i32),
    /// Perhaps an address of this frame, at an unknown offset.
    Lost,
}

impl Value {
    fn join(self, other: Value) -> Value {
        if self == other { self } else { Value::Lost }
    }

    fn is_stack(self) -> bool {
        self != Value::Other
    }
}

type Regs = [Value; Reg::COUNT];

/// Fills in the stack use of every function and checks chains of calls.
pub(super) fn bound(program: &mut Program) -> Result<(), LoadError> {
    for index in 0..program.funcs.len() {
        let func = program.funcs[index];
        if program.reachable[func.start] {
            program.funcs[index].stack = Frame::new(program, func).run()?;
        }
    }
    let (ops, funcs) = (&program.ops, &program.funcs);
    let mut chain = Chain { ops, funcs, done: vec![None; funcs.len()], open: vec![] };
    chain.depth(0, 0).map(|_| ())
}

/// The analysis of one function.
struct Frame<'a> {
    program: &'a Program,
    func: Func,
    /// Registers on entry to the blocks reached so far, by first slot.
    entry: HashMap<usize, Regs>,
    pending: Vec<usize>,
    seen: u32,
    escaped: bool,
}

impl Frame<'_> {
    fn new(program: &Program, func: Func) -> Frame<'_> {
        let mut regs = [Value::Other; Reg::COUNT];
        regs[Reg::FP.index()] = Value::Fp(0);
        let entry = HashMap::from([(func.start, regs)]);
        Frame { program, func, entry, pending: vec![func.start], seen: 0, escaped: false }
    }

    fn run(mut self) -> Result<StackUse, LoadError> {
        while let Some(start) = self.pending.pop() {
            self.block(start)?;
        }
        let reserve = if self.escaped { MAX_STACK } else { self.seen.next_multiple_of(16) };
        Ok(StackUse { seen: self.seen, reserve })
    }

    /// From the start of a block to where control leaves it or another one begins.
    fn block(&mut self, start: usize) -> Result<(), LoadError> {
        let (program, mut at) = (self.program, start);
        let Some(mut regs) = self.entry.get(&start).copied() else { return Ok(()) };
        while at < self.func.end {
            let op = program.ops[at];
            self.step(at, &op, &mut regs)?;
            if let Some(target) = op.target() {
                self.flow(target, &regs);
            }
            at += op.slots();
            if !op.falls_through() {
                break;
            }
            if program.is_target(at) {
                self.flow(at, &regs);
                break;
            }
        }
        Ok(())
    }

    /// Merges registers into a block's entry; a change queues the block.
    fn flow(&mut self, to: usize, regs: &Regs) {
        let old = self.entry.get(&to);
        let merged = old.map_or(*regs, |old| std::array::from_fn(|i| old[i].join(regs[i])));
        if old != Some(&merged) {
            self.entry.insert(to, merged);
            self.pending.push(to);
        }
    }

    fn step(&mut self, at: usize, op: &Op, regs: &mut Regs) -> Result<(), LoadError> {
        match *op {
            Op::Load { size, base, off, .. } => self.access(at, regs, base, off, size, "read from")?,
            Op::Store { size, base, off, src } => {
                self.access(at, regs, base, off, size, "write to")?;
                self.stored(regs, src);
            }
            Op::Atomic { size, base, off, src, .. } => {
                self.access(at, regs, base, off, size, "write to")?;
                self.stored(regs, Operand::Reg(src));
            }
            Op::Call(callee) => self.call(at, regs, callee)?,
            _ => {}
        }
        if let Some(dst) = op.written() {
            regs[dst.index()] = computed(op, regs);
        }
        if matches!(op, Op::Atomic { op: AtomicOp::Cmpxchg, .. }) {
            regs[Reg::R0.index()] = Value::Other;
        }
        Ok(())
    }

    fn access(
        &mut self,
        at: usize,
        regs: &Regs,
        base: Reg,
        off: i16,
        size: Size,
        access: &'static str,
    ) -> Result<(), LoadError> {
        match regs[base.index()] {
            Value::Other => {}
            Value::Lost => self.escaped = true,
            Value::Fp(start) => {
                let off = start.saturating_add(i32::from(off));
                let size = size.bytes();
                if off < -(MAX_STACK as i32) || off > -(size as i32) {
                    let reg = base.index();
                    return Err(Reason::StackAccess { access, reg, off, size }.at(at));
                }
                self.uses(off);
            }
        }
        Ok(())
    }

    fn uses(&mut self, off: i32) {
        self.seen = self.seen.max(off.min(0).unsigned_abs());
    }

    /// A stack pointer in memory comes back as a value that is not tracked.
    fn stored(&mut self, regs: &Regs, src: Operand) {
        if let Operand::Reg(src) = src {
            self.escaped |= regs[src.index()].is_stack();
        }
    }

    fn call(&mut self, at: usize, regs: &mut Regs, callee: Callee) -> Result<(), LoadError> {
        for (reg, value) in regs.iter().enumerate().skip(1).take(5) {
            match (callee, *value) {
                (_, Value::Other) | (Callee::Poisoned(..), _) => {}
                (Callee::Helper(_), Value::Fp(off)) if off < -(MAX_STACK as i32) => {
                    let access = "indirect access to";
                    return Err(Reason::StackAccess { access, reg, off, size: 0 }.at(at));
                }
                (Callee::Helper(_), Value::Fp(off)) => {
                    self.uses(off);
                    // Which may hand it on to a callback.
                    self.escaped |= self.program.callbacks;
                }
                _ => self.escaped = true,
            }
        }
        // The verifier lets nobody read r1-r5 after a call.
        regs[..=5].fill(Value::Other);
        Ok(())
    }
}

/// The value that an op leaves in the register it writes.
fn computed(op: &Op, regs: &Regs) -> Value {
    let value = |src: Operand| match src {
        Operand::Reg(reg) => regs[reg.index()],
        Operand::Imm(_) => Value::Other,
    };
    match *op {
        Op::Alu { op: AluOp::Mov, width: Width::W64, src, .. } => value(src),
        Op::Alu { op, width: Width::W64, dst, src: Operand::Imm(imm) } => moved(regs[dst.index()], op, imm),
        Op::Alu { op: AluOp::Mov, src, .. } => value(src).join(Value::Other),
        Op::Alu { dst, src, .. } => regs[dst.index()].join(Value::Other).join(value(src).join(Value::Other)),
        Op::Neg { dst, .. } | Op::Swap { dst, .. } => regs[dst.index()].join(Value::Other),
        Op::MovSx { src, .. } => regs[src.index()].join(Value::Other),
        _ => Value::Other,
    }
}

fn moved(old: Value, op: AluOp, imm: i32) -> Value {
    match (old, op) {
        (Value::Fp(off), AluOp::Add) => off.checked_add(imm).map_or(Value::Lost, Value::Fp),
        (Value::Fp(off), AluOp::Sub) => off.checked_sub(imm).map_or(Value::Lost, Value::Fp),
        (old, _) => old.join(Value::Other),
    }
}

/// Frames and bytes of the deepest chain of calls below a function.
#[derive(Clone, Copy)]
struct Depth {
    frames: usize,
    bytes: u32,
}

/// Depth-first walk over the call graph.
struct Chain<'a> {
    ops: &'a [Op],
    funcs: &'a [Func],
    done: Vec<Option<Depth>>,
    open: Vec<u32>,
}

impl Chain<'_> {
    /// `at` is the slot that refers to `func`.
    fn depth(&mut self, func: u32, at: usize) -> Result<Depth, LoadError> {
        let Func { start, end, stack } = self.funcs[func as usize];
        if let Some(depth) = self.done[func as usize] {
            return Ok(depth);
        }
        if self.open.contains(&func) {
            return Err(Reason::Recursion { from: at, to: start }.at(at));
        }
        if self.open.len() == MAX_FRAMES {
            // Also bounds this recursion.
            return Err(Reason::TooManyFrames(MAX_FRAMES + 1).at(at));
        }
        self.open.push(func);
        let mut below = Depth { frames: 0, bytes: 0 };
        for at in start..end {
            if let Some(callee) = func_of(&self.ops[at]) {
                let depth = self.depth(callee, at)?;
                below.frames = below.frames.max(depth.frames);
                below.bytes = below.bytes.max(depth.bytes);
            }
        }
        self.open.pop();
        let depth = Depth { frames: below.frames + 1, bytes: below.bytes + stack.seen.next_multiple_of(16) };
        check(depth, start)?;
        self.done[func as usize] = Some(depth);
        Ok(depth)
    }
}

fn check(depth: Depth, at: usize) -> Result<(), LoadError> {
    if depth.frames > MAX_FRAMES {
        return Err(Reason::TooManyFrames(depth.frames).at(at));
    }
    if depth.bytes > MAX_STACK {
        return Err(Reason::StackTooLarge { calls: depth.frames, bytes: depth.bytes }.at(at));
    }
    Ok(())
}
