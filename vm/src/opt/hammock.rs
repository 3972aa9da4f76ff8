//! Branches over a few cheap operations, which are better computed and selected than jumped over: BPF has no
//! conditional move, so that compilers write every choice between two values as such a branch.

use crate::isa::{AluOp, Const, Op, Operand, Reg};
use crate::program::Program;
use std::ops::Range;

/// Operations that are cheaper than a branch that is guessed wrong half of the time.
const MOST: usize = 4;

/// The two ways from a branch to where they meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ways {
    /// What is done if the condition holds.
    pub if_so: Range<usize>,
    /// What is done if not.
    pub if_not: Range<usize>,
    /// A jump that ends one of them, and where both meet; `None` when they meet at the branch's target.
    pub jump: Option<(usize, usize)>,
    /// The slot behind it all.
    pub next: usize,
}

/// The ways from the branch at this slot, if they meet again after a few cheap operations.
pub(crate) fn ways(program: &Program, at: usize, target: usize) -> Option<Ways> {
    skip(program, at, target).or_else(|| choice(program, at, target)).or_else(|| diamond(program, at, target))
}

/// A branch that only skips cheap operations.
fn skip(program: &Program, at: usize, target: usize) -> Option<Ways> {
    let body = at + 1..target;
    let cheap =
        (1..=MOST).contains(&body.len()) && program.is_reachable(target) && is_cheap(program, body.clone());
    cheap.then_some(Ways { if_so: 0..0, if_not: body, jump: None, next: target })
}

/// A branch, and behind it a jump to the same target with nothing but cheap operations between them.
fn choice(program: &Program, at: usize, target: usize) -> Option<Ways> {
    let ops = program.ops();
    let jump = (at + 2..(at + 2 + MOST).min(ops.len())).find(|slot| matches!(ops[*slot], Op::Jump { .. }))?;
    let meets = ops[jump].target() == Some(target) && !(at..=jump).contains(&target);
    let cheap = meets && is_cheap(program, at + 1..jump) && is_skipped(program, jump);
    cheap.then_some(Ways { if_so: 0..0, if_not: at + 1..jump, jump: Some((jump, target)), next: jump + 1 })
}

/// Cheap operations up to a jump over the target, which is cheap operations as well. Others may jump into these.
fn diamond(program: &Program, at: usize, target: usize) -> Option<Ways> {
    let jump = target.checked_sub(1).filter(|jump| *jump > at + 1)?;
    let Op::Jump { target: meet } = program.ops()[jump] else { return None };
    let few = meet > target && jump - at - 1 + meet - target <= MOST;
    let cheap = few
        && is_cheap(program, at + 1..jump)
        && is_skipped(program, jump)
        && program.is_reachable(target)
        && is_cheap_op(&program.ops()[target])
        && is_cheap(program, target + 1..meet)
        && program.is_reachable(meet);
    let ways = Ways { if_so: target..meet, if_not: at + 1..jump, jump: Some((jump, meet)), next: target };
    cheap.then_some(ways)
}

/// The branch behind the meeting point of a skipping branch that asks the same again, with nothing but cheap operations
/// before it that leave what is compared alone. Compilers write two choices by one condition like that.
pub(crate) fn asks_again(program: &Program, at: usize, target: usize) -> Option<usize> {
    let ops = program.ops();
    skip(program, at, target)?;
    let again = (target..(target + 1 + MOST).min(ops.len())).find(|slot| !is_cheap_op(&ops[*slot]))?;
    let (Op::Branch { cond, width, dst, src, .. }, Op::Branch { cond: c, width: w, dst: d, src: s, .. }) =
        (ops[at], ops[again])
    else {
        return None;
    };
    let kept = (at + 1..again)
        .filter_map(|slot| ops[slot].written())
        .all(|reg| reg != dst && mask(src) & bit(reg) == 0);
    let straight =
        (target + 1..=again).all(|slot| is_skipped(program, slot)) && program.is_reachable(again + 1);
    ((cond, width, dst, src) == (c, w, d, s) && kept && straight).then_some(again)
}

/// Whether these slots are cheap operations that only the slot before each leads to.
fn is_cheap(program: &Program, mut slots: Range<usize>) -> bool {
    slots.all(|slot| is_skipped(program, slot) && is_cheap_op(&program.ops()[slot]))
}

/// Whether nothing but the slot before it leads to a slot.
fn is_skipped(program: &Program, slot: usize) -> bool {
    program.is_reachable(slot) && !program.is_target(slot)
}

fn is_cheap_op(op: &Op) -> bool {
    match op {
        Op::Alu { op, .. } => !matches!(op, AluOp::Mul | AluOp::Div | AluOp::Sdiv | AluOp::Mod | AluOp::Smod),
        Op::LoadConst { value, .. } => matches!(value, Const::Number(_)),
        Op::Neg { .. } | Op::MovSx { .. } | Op::Swap { .. } | Op::Second => true,
        _ => false,
    }
}

/// Whether what these ops choose is, in the next iteration of the loop that begins at `head`, part of an address that the
/// branch at `at` waits for: a search in a tree or a sorted array. There a guess that is often right beats waiting for
/// each load, and compilers of native code branch as well. The slots of the loop are looked at as if they came one
/// after the other, so that this is no more than likely.
pub(crate) fn leads_to_address(
    program: &Program,
    head: usize,
    at: usize,
    chosen: impl Iterator<Item = usize>,
) -> bool {
    let mut wait = Waits::default();
    wait.values(&program.ops()[at]);
    for slot in (head..at).rev().filter(|slot| program.is_reachable(*slot)) {
        wait.before(&program.ops()[slot]);
    }
    chosen.filter_map(|slot| program.ops()[slot].written()).any(|reg| wait.addresses & 1 << reg.index() != 0)
}

/// Registers that something waits for.
#[derive(Default)]
struct Waits {
    values: u16,
    /// Of these, those that some address is made of.
    addresses: u16,
}

impl Waits {
    /// What an op computes with, but for what it overwrites.
    fn values(&mut self, op: &Op) {
        let read = match *op {
            Op::Alu { op: AluOp::Mov, src, .. } => mask(src),
            Op::Alu { dst, src, .. } | Op::Branch { dst, src, .. } => mask(src) | bit(dst),
            Op::Neg { dst, .. } | Op::Swap { dst, .. } => bit(dst),
            Op::MovSx { src, .. } => bit(src),
            _ => 0,
        };
        self.values |= read;
    }

    fn before(&mut self, op: &Op) {
        let Some(dst) = op.written().map(bit) else { return };
        let (waits, in_address) = (self.values & dst != 0, self.addresses & dst != 0);
        self.values &= !dst;
        self.addresses &= !dst;
        if !waits {
            return;
        }
        let mut inner = Waits::default();
        inner.values(op);
        if let Op::Load { base, .. } = *op {
            inner.values |= bit(base);
            inner.addresses |= bit(base);
        }
        if in_address {
            inner.addresses |= inner.values;
        }
        self.values |= inner.values;
        self.addresses |= inner.addresses;
    }
}

fn bit(reg: Reg) -> u16 {
    1 << reg.index()
}

fn mask(src: Operand) -> u16 {
    match src {
        Operand::Reg(reg) => bit(reg),
        Operand::Imm(_) => 0,
    }
}
