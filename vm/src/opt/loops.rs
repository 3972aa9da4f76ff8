//! Innermost loops whose number of iterations is known on entry.
//!
//! Such a loop is a contiguous run of slots that is entered at its first one only and has one back-edge, at
//! its end. A register, the counter, moves by a constant exactly once per iteration, before the test at the end
//! compares it with a bound that stays the same. Compilers write most loops like that. Knowing the number, the
//! translation takes the fuel of many iterations at once, and may do many of them together.

use crate::isa::{AluOp, AtomicOp, Callee, Cond, Op, Operand, Reg, TAIL_CALL, Width};
use crate::program::{Func, Program};
use std::ops::Range;

/// Slots that such a loop may have.
const MOST: usize = 256;
/// The highest power of two that a counter of 32 bits may move by: so that it does not come around within a strip.
const NARROW_SHIFT: u32 = 6;

/// How the test at the end compares the counter with the bound to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// Goes on while they differ.
    Equal,
    /// Goes on while the counter is below, unsigned. The counter moves upwards.
    Reached,
}

/// A counted loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    /// First slot.
    pub head: usize,
    /// Slot of the test.
    pub test: usize,
    /// First slot behind the loop.
    pub end: usize,
    pub counter: Reg,
    /// Slot of the op that moves the counter.
    pub bump: usize,
    /// By how much: plus or minus two to the power of `shift`.
    pub down: bool,
    /// See `down`.
    pub shift: u32,
    /// Of the comparison.
    pub width: Width,
    pub until: Until,
    pub bound: Operand,
}

/// The counted loops of a function, by first slot.
pub(crate) fn find(program: &Program, func: Func) -> Vec<Counted> {
    let sources = Sources::of(program, func);
    let back_edges = (func.start..func.end).filter_map(|at| {
        let target = program.ops()[at].target().filter(|target| *target <= at)?;
        (program.is_reachable(at) && at - target < MOST).then_some((target, at))
    });
    let mut found: Vec<Counted> =
        back_edges.filter_map(|(head, back)| counted(program, func, &sources, head, back)).collect();
    found.sort_by_key(|l| l.head);
    found
}

/// The slots from the target of each jump back up to the jump.
pub(crate) fn ranges(program: &Program, func: Func) -> Vec<Range<usize>> {
    let back = |at: usize| {
        let target = program.ops()[at].target().filter(|target| *target <= at)?;
        program.is_reachable(at).then_some(target..at + 1)
    };
    (func.start..func.end).filter_map(back).collect()
}

/// From where jumps go to each slot: the lowest and the highest slot.
struct Sources {
    start: usize,
    range: Vec<Option<(usize, usize)>>,
}

impl Sources {
    fn of(program: &Program, func: Func) -> Sources {
        let mut range = vec![None; func.end - func.start];
        for at in func.start..func.end {
            if let Some(target) = program.ops()[at].target() {
                let old: &mut Option<(usize, usize)> = &mut range[target - func.start];
                let (low, high) = old.unwrap_or((at, at));
                *old = Some((low.min(at), high.max(at)));
            }
        }
        Sources { start: func.start, range }
    }

    /// Whether all jumps to a slot come from this range.
    fn inside(&self, slot: usize, from: usize, to: usize) -> bool {
        self.range[slot - self.start].is_none_or(|(low, high)| from <= low && high <= to)
    }
}

fn counted(program: &Program, func: Func, sources: &Sources, head: usize, back: usize) -> Option<Counted> {
    let ops = program.ops();
    // Either a branch back, or a jump back behind a branch around it.
    let (test, goes_on) = match ops[back] {
        Op::Branch { cond, .. } => (back, cond),
        Op::Jump { .. } if back > head && !program.is_target(back) => match ops[back - 1] {
            Op::Branch { cond, target, .. } if target == back + 1 => (back - 1, inverse(cond)?),
            _ => return None,
        },
        _ => return None,
    };
    let end = back + 1;
    let body = head..=back;
    let is_closed = end < func.end
        && body.clone().all(|at| program.is_reachable(at) && is_plain(program, &ops[at]))
        && (head + 1..=back).all(|at| sources.inside(at, head, back))
        && body.clone().filter(|at| ops[*at].target().is_some_and(|target| target <= *at)).count() == 1;
    if !is_closed {
        return None;
    }
    let Op::Branch { width, dst, src, .. } = ops[test] else { return None };
    let writes = |reg: Reg| writes(ops, head, back, reg);
    let (counter, bound, cond) = match src {
        Operand::Reg(src) if writes(dst).is_empty() => (src, Operand::Reg(dst), mirrored(goes_on)?),
        src => (dst, src, goes_on),
    };
    let until = match cond {
        Cond::Ne => Until::Equal,
        Cond::Ult => Until::Reached,
        _ => return None,
    };
    let fixed = match bound {
        Operand::Reg(bound) => writes(bound).is_empty(),
        Operand::Imm(_) => true,
    };
    let [bump] = writes(counter)[..] else { return None };
    let (down, shift) = step(&ops[bump], width)?;
    let skipped = (head..bump).any(|at| ops[at].target().is_some_and(|t| t > bump && t <= back));
    let comes_around = width == Width::W32 && shift > NARROW_SHIFT;
    let right = fixed && !skipped && !comes_around && bump < test && (until == Until::Equal || !down);
    right.then_some(Counted { head, test, end, counter, bump, down, shift, width, until, bound })
}

/// Whether an op neither leaves the function nor takes fuel in a way that nobody here sees.
fn is_plain(program: &Program, op: &Op) -> bool {
    match op {
        Op::Exit | Op::Call(Callee::Func(_) | Callee::Poisoned(..)) => false,
        Op::Call(Callee::Helper(id)) => *id != TAIL_CALL && !program.has_callbacks(),
        _ => true,
    }
}

/// The slots in a range that write a register, those of calls included.
fn writes(ops: &[Op], head: usize, back: usize, reg: Reg) -> Vec<usize> {
    let writes = |op: &Op| {
        let clobbered = matches!(op, Op::Call(_)) && reg.index() <= 5;
        let exchanged = matches!(op, Op::Atomic { op: AtomicOp::Cmpxchg, .. }) && reg == Reg::R0;
        clobbered || exchanged || op.written() == Some(reg)
    };
    (head..=back).filter(|at| writes(&ops[*at])).collect()
}

/// By how much an op moves the register it writes: whether down, and the power of two. Only moves that look the
/// same at the width of the test count.
fn step(op: &Op, test: Width) -> Option<(bool, u32)> {
    let Op::Alu { op, width, src: Operand::Imm(imm), .. } = *op else { return None };
    if test == Width::W64 && width == Width::W32 {
        return None;
    }
    let by = match op {
        AluOp::Add => i64::from(imm),
        AluOp::Sub => -i64::from(imm),
        _ => return None,
    };
    by.unsigned_abs().is_power_of_two().then_some((by < 0, by.unsigned_abs().trailing_zeros()))
}

/// What holds when the condition does not.
fn inverse(cond: Cond) -> Option<Cond> {
    Some(match cond {
        Cond::Eq => Cond::Ne,
        Cond::Uge => Cond::Ult,
        Cond::Ule => Cond::Ugt,
        _ => return None,
    })
}

/// The same comparison with its sides exchanged.
fn mirrored(cond: Cond) -> Option<Cond> {
    Some(match cond {
        Cond::Ne => Cond::Ne,
        Cond::Ugt => Cond::Ult,
        _ => return None,
    })
}
