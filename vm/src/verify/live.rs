//! Which registers and stack slots may still be read, for every instruction. Static, once per program.
//!
//! Two passes per function: forwards, what registers hold as far as the stack and sizes are concerned;
//! backwards, what is read. Both only approximate: where an address of this frame went out of sight, all
//! slots count as read. Two states that differ in dead places only are the same to the verifier.

use super::state::{SLOTS, place};
use crate::isa::{AluOp, AtomicOp, Callee, Const, MapIdx, Op, Operand, Reg, Size, Width};
use crate::program::{Func, Program};
use bpftime_abi::helper::{self, Arg};

const FP_MIN: i64 = -512;
/// Every slot of a frame.
const ALL: u64 = u64::MAX;
const _: () = assert!(SLOTS == 64);

/// Registers and slots of the frame, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Bit n is rn.
    pub regs: u16,
    /// Bit n is slot n.
    pub slots: u64,
}

impl Live {
    /// Everything.
    pub const ALL: Live = Live { regs: 0x7ff, slots: ALL };

    /// What is in either.
    pub fn join(self, other: Live) -> Live {
        Live { regs: self.regs | other.regs, slots: self.slots | other.slots }
    }
}

/// What a register may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// No address of this frame.
    Other,
    /// r10 plus a constant.
    Fp(i64),
    /// Perhaps an address of this frame, at an unknown offset.
    Lost,
    /// A number.
    Number(i64),
    /// A map.
    Map(MapIdx),
}

impl Value {
    fn is_stack(self) -> bool {
        matches!(self, Value::Fp(_) | Value::Lost)
    }

    fn join(self, other: Value) -> Value {
        match (self, other) {
            (a, b) if a == b => a,
            (a, b) if a.is_stack() || b.is_stack() => Value::Lost,
            _ => Value::Other,
        }
    }

    /// What is left when only the low bits, or a mix of bits, survive.
    fn blurred(self) -> Value {
        if self.is_stack() { Value::Lost } else { Value::Other }
    }
}

type Regs = [Value; Reg::COUNT];

/// Sizes of a map's keys and values.
pub type Sizes<'a> = &'a dyn Fn(MapIdx) -> (u32, u32);

/// Rounds of a backward dataflow before it is given up: deeply nested loops need many, and no load may
/// take forever.
pub(super) fn rounds(program: &Program) -> usize {
    const STEPS: usize = 50_000_000;
    STEPS / program.ops().len() + 8
}

/// What may be read, before each slot and after each call.
pub struct Liveness {
    /// What registers hold before each slot; `None` where control never gets.
    holds: Vec<Option<Regs>>,
    /// By function: whether an address of its stack goes to memory.
    escapes: Vec<bool>,
    effects: Vec<Effect>,
    before: Vec<Live>,
    /// Of the caller's frame, while a function that it called runs. Sparse: by call slot.
    during: Vec<Live>,
}

impl Liveness {
    /// Analyses a program.
    pub fn of(program: &Program, sizes: Sizes<'_>) -> Liveness {
        let ops = program.ops();
        let mut holds = vec![None; ops.len()];
        let mut escapes = vec![false; program.funcs().len()];
        for (index, func) in program.funcs().iter().enumerate() {
            escapes[index] = forwards(program, *func, &mut holds);
        }
        let mut effects: Vec<Effect> = Vec::with_capacity(ops.len());
        for (index, func) in program.funcs().iter().enumerate() {
            for at in func.start..func.end {
                let effect = match &holds[at] {
                    Some(regs) => Effect::of(&ops[at], regs, escapes[index], sizes),
                    None => Effect::default(),
                };
                effects.push(effect);
            }
        }
        let before = vec![Live::default(); ops.len()];
        let mut live = Liveness { holds, escapes, effects, before, during: Vec::new() };
        if !(0..rounds(program)).any(|_| !live.backwards(program)) {
            live.before.fill(Live::ALL);
        }
        live.during = (0..ops.len()).map(|at| live.caller(ops, at)).collect();
        live
    }

    /// Before the instruction at this slot.
    pub fn before(&self, at: usize) -> Live {
        self.before[at]
    }

    /// In the frame of a caller, while the call at this slot is under way.
    pub fn during(&self, at: usize) -> Live {
        self.during[at]
    }

    /// Slots that the instruction may read or surely overwrites.
    pub(super) fn effect(&self, at: usize) -> &Effect {
        &self.effects[at]
    }

    /// What a register may hold before the instruction.
    pub(super) fn value(&self, at: usize, reg: Reg) -> Option<Value> {
        self.holds[at].map(|regs| regs[reg.index()])
    }

    /// Whether an address of the function's stack goes to memory.
    pub(super) fn escapes(&self, func: usize) -> bool {
        self.escapes[func]
    }

    fn caller(&self, ops: &[Op], at: usize) -> Live {
        let after = self.before.get(at + 1).copied().unwrap_or_default();
        match ops[at] {
            // A callback may be called again, with the same arguments as now.
            Op::Call(Callee::Helper(_)) => self.before[at].join(after),
            // The callee's reads of this frame count as reads of the call.
            Op::Call(_) => {
                Live { regs: after.regs & !0x3f, slots: after.slots | self.effects[at].slots_read }
            }
            _ => Live::default(),
        }
    }

    /// One round; whether anything changed.
    fn backwards(&mut self, program: &Program) -> bool {
        let mut changed = false;
        for func in program.funcs() {
            for at in (func.start..func.end).rev() {
                let live = self.step(program, at, &self.effects[at]);
                changed |= live != self.before[at];
                self.before[at] = live;
            }
        }
        changed
    }

    fn step(&self, program: &Program, at: usize, effect: &Effect) -> Live {
        let op = &program.ops()[at];
        let mut after = Live::default();
        if op.falls_through() {
            after = after.join(self.before.get(at + op.slots()).copied().unwrap_or_default());
        }
        if let Some(target) = op.target() {
            after = after.join(self.before[target]);
        }
        let mut reads = effect.reads;
        if let Op::Call(Callee::Func(func)) = op {
            reads |= self.before[program.funcs()[*func as usize].start].regs & 0x3e;
        }
        Live {
            regs: after.regs & !effect.writes | reads,
            slots: after.slots & !effect.slots_written | effect.slots_read,
        }
    }
}

/// Reads and certain writes of one instruction.
#[derive(Clone, Copy, Default)]
pub(super) struct Effect {
    reads: u16,
    writes: u16,
    pub slots_read: u64,
    pub slots_written: u64,
}

/// A register, as a set of one.
pub(super) const fn bit(reg: Reg) -> u16 {
    1 << reg.index()
}

/// The registers that an operand is.
pub(super) fn operand(src: Operand) -> u16 {
    match src {
        Operand::Reg(reg) => bit(reg),
        Operand::Imm(_) => 0,
    }
}

impl Effect {
    fn of(op: &Op, regs: &Regs, escapes: bool, sizes: Sizes<'_>) -> Effect {
        let mut effect = Effect { writes: op.written().map_or(0, bit), ..Effect::default() };
        match *op {
            Op::Alu { op: AluOp::Mov, src, .. } => effect.reads = operand(src),
            Op::Alu { dst, src, .. } | Op::Branch { dst, src, .. } => effect.reads = bit(dst) | operand(src),
            Op::Neg { dst, .. } | Op::Swap { dst, .. } => effect.reads = bit(dst),
            Op::MovSx { src, .. } => effect.reads = bit(src),
            Op::Load { base, off, size, .. } => {
                effect.reads = bit(base);
                effect.slots_read = touched(regs[base.index()], off, size, escapes);
            }
            Op::Store { base, off, size, src } => {
                effect.reads = bit(base) | operand(src);
                effect.slots_written = covered(regs[base.index()], off, size);
            }
            Op::Atomic { op, base, off, size, src, .. } => {
                effect.reads = bit(base) | bit(src);
                if op == AtomicOp::Cmpxchg {
                    effect.reads |= bit(Reg::R0);
                }
                effect.slots_read = touched(regs[base.index()], off, size, escapes);
            }
            Op::Call(callee) => effect.call(callee, regs, escapes, sizes),
            Op::Exit => effect.reads = bit(Reg::R0),
            Op::LoadConst { .. } | Op::Second | Op::Jump { .. } => {}
        }
        effect
    }

    fn call(&mut self, callee: Callee, regs: &Regs, escapes: bool, sizes: Sizes<'_>) {
        self.writes = 0x3f;
        let args = &regs[1..=5];
        match callee {
            Callee::Helper(id) => match helper::proto(id) {
                Some(proto) => {
                    self.reads = ((1u16 << proto.args.len()) - 1) << 1;
                    for n in 0..proto.args.len() {
                        self.argument(id, proto.args, n, args, sizes);
                    }
                    // An address that went through memory may be among the arguments.
                    if escapes && !proto.args.is_empty() {
                        self.slots_read = ALL;
                    }
                }
                None => (self.reads, self.slots_read) = (0x3e, ALL),
            },
            Callee::Func(_) if escapes || args.iter().any(|v| v.is_stack()) => self.slots_read = ALL,
            Callee::Func(_) | Callee::Poisoned(..) => {}
        }
    }

    /// The bytes a helper reads or surely writes at a stack address.
    fn argument(&mut self, id: u32, protos: &[Arg], n: usize, args: &[Value], sizes: Sizes<'_>) {
        let off = match args[n] {
            Value::Fp(off) => off,
            Value::Lost => {
                self.slots_read = ALL;
                return;
            }
            _ => return,
        };
        let map_sizes = args[..n].iter().find_map(|v| match v {
            Value::Map(map) => Some(sizes(*map)),
            _ => None,
        });
        let next = args.get(n + 1).and_then(|v| match v {
            Value::Number(size) => Some(*size),
            _ => None,
        });
        let bytes = match protos[n] {
            Arg::MapKey => map_sizes.map(|(key, _)| i64::from(key)),
            Arg::MapValue => map_sizes.map(|(_, value)| i64::from(value)),
            Arg::Mem | Arg::MemOrNull | Arg::MemOut | Arg::MemOutOrNull => {
                next.filter(|n| (0..=-FP_MIN).contains(n))
            }
            _ => None,
        };
        match (protos[n], bytes) {
            (Arg::MemOut | Arg::MemOutOrNull, Some(size)) if super::helper::fills(id) => {
                self.slots_written |= inside(off, off + size);
            }
            // Written at most; a slot is only dead where it is surely written.
            (Arg::MemOut | Arg::MemOutOrNull | Arg::Word, _) => {}
            // The callback may move the address up and down.
            (Arg::CallbackCtx, _) => self.slots_read = ALL,
            (_, Some(size)) => self.slots_read |= overlapped(off, off + size),
            (_, None) => self.slots_read |= overlapped(off, 0),
        }
    }
}

/// Slots that an access may read.
fn touched(base: Value, off: i16, size: Size, escapes: bool) -> u64 {
    match base {
        Value::Fp(at) => overlapped(at + i64::from(off), at + i64::from(off) + i64::from(size.bytes())),
        Value::Lost => ALL,
        Value::Other if escapes => ALL,
        _ => 0,
    }
}

/// Slots that an access surely overwrites.
fn covered(base: Value, off: i16, size: Size) -> u64 {
    match base {
        Value::Fp(at) => inside(at + i64::from(off), at + i64::from(off) + i64::from(size.bytes())),
        _ => 0,
    }
}

/// Slots with a byte in `[from, to)`.
fn overlapped(from: i64, to: i64) -> u64 {
    let (from, to) = (from.max(FP_MIN), to.min(0));
    if from >= to {
        return 0;
    }
    (place(to - 1).0..=place(from).0).fold(0, |slots, n| slots | 1 << n)
}

/// Slots with all bytes in `[from, to)`.
fn inside(from: i64, to: i64) -> u64 {
    let up = |x: i64| x.div_euclid(8) * 8 + if x.rem_euclid(8) == 0 { 0 } else { 8 };
    overlapped(up(from), to.div_euclid(8) * 8)
}

/// Fills in what registers hold before each slot of a function; whether an address of the frame goes to
/// memory, from where it could come back unseen.
fn forwards(program: &Program, func: Func, holds: &mut [Option<Regs>]) -> bool {
    let mut entry = [Value::Other; Reg::COUNT];
    entry[Reg::FP.index()] = Value::Fp(0);
    let (mut pending, mut escapes) = (vec![(func.start, entry)], false);
    while let Some((start, mut regs)) = pending.pop() {
        let mut at = start;
        while at < func.end {
            let merged = match &holds[at] {
                Some(old) => std::array::from_fn(|i| old[i].join(regs[i])),
                None => regs,
            };
            if holds[at] == Some(merged) {
                break;
            }
            holds[at] = Some(merged);
            regs = merged;
            let op = &program.ops()[at];
            escapes |= stores_stack(op, &regs);
            step(op, &mut regs);
            pending.extend(op.target().map(|target| (target, regs)));
            if !op.falls_through() {
                break;
            }
            at += op.slots();
        }
    }
    escapes
}

fn stores_stack(op: &Op, regs: &Regs) -> bool {
    match *op {
        Op::Store { src: Operand::Reg(src), .. } | Op::Atomic { src, .. } => regs[src.index()].is_stack(),
        _ => false,
    }
}

fn step(op: &Op, regs: &mut Regs) {
    let value = |src: Operand| match src {
        Operand::Reg(reg) => regs[reg.index()],
        Operand::Imm(imm) => Value::Number(i64::from(imm)),
    };
    let result = match *op {
        Op::Alu { op: AluOp::Mov, width: Width::W64, src, .. } => value(src),
        Op::Alu { op: AluOp::Mov, src: Operand::Imm(imm), .. } => Value::Number(i64::from(imm as u32)),
        Op::Alu { op: AluOp::Mov, src, .. } => value(src).blurred(),
        Op::Alu { op, width, dst, src } => computed(op, width, regs[dst.index()], value(src)),
        Op::Neg { dst, .. } | Op::Swap { dst, .. } => regs[dst.index()].blurred(),
        Op::MovSx { src, .. } => regs[src.index()].blurred(),
        Op::LoadConst { value: Const::Map(map), .. } => Value::Map(map),
        Op::LoadConst { value: Const::Number(x), .. } => Value::Number(x as i64),
        Op::Call(callee) => {
            // A function may return the address it was given.
            let given = regs[1..=5].iter().any(|v| v.is_stack()) && matches!(callee, Callee::Func(_));
            regs[..=5].fill(Value::Other);
            regs[0] = if given { Value::Lost } else { Value::Other };
            return;
        }
        _ => Value::Other,
    };
    if let Some(dst) = op.written() {
        regs[dst.index()] = result;
    }
    if matches!(op, Op::Atomic { op: AtomicOp::Cmpxchg, .. }) {
        regs[0] = Value::Other;
    }
}

fn computed(op: AluOp, width: Width, a: Value, b: Value) -> Value {
    match (op, width, a, b) {
        (AluOp::Add, Width::W64, Value::Fp(off), Value::Number(n))
        | (AluOp::Add, Width::W64, Value::Number(n), Value::Fp(off)) => near(off.checked_add(n)),
        (AluOp::Sub, Width::W64, Value::Fp(off), Value::Number(n)) => near(off.checked_sub(n)),
        _ if a.is_stack() || b.is_stack() => Value::Lost,
        _ => Value::Other,
    }
}

/// Sums of offsets and sizes stay far from the ends of their type.
fn near(off: Option<i64>) -> Value {
    match off {
        Some(off) if off.unsigned_abs() < 1 << 30 => Value::Fp(off),
        _ => Value::Lost,
    }
}
