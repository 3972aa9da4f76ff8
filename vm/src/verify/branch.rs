//! Conditional jumps: which sides are possible, and what each side tells.

use super::alu::MAX_OFF;
use super::error::Check;
use super::explore::{Next, Verifier};
use super::num::{self, REGISTER, Scalar};
use super::state::State;
use super::value::{Kind, Val};
use crate::isa::{Cond, Op, Operand, Reg, Width};

impl Verifier<'_> {
    pub fn branch(&mut self, state: &mut State, at: usize, op: Op) -> Check<Next> {
        let Op::Branch { cond, width, dst, src, target } = op else { return Ok(Next::At(at + 1)) };
        let right = self.operand(state, src)?;
        let left = self.read(state, dst)?;
        let certain = match src {
            Operand::Reg(src) if src == dst && left.is_scalar() => with_itself(cond, width, &left),
            _ => outcome(cond, width, &left, &right),
        };
        if certain.is_some() && left.is_scalar() {
            self.decides(at);
        }
        match certain {
            Some(true) => return Ok(self.side(at, true, target)),
            Some(false) => return Ok(self.side(at, false, target)),
            None => {}
        }
        let mut taken = state.clone();
        let sides = Sides { cond, width, dst, src, left, right };
        let possible = (sides.learn(&mut taken, true), sides.learn(state, false));
        if possible != (true, true) {
            self.decides(at);
        }
        match possible {
            (true, true) => {
                self.side(at, true, target);
                self.postpone(taken, target, at)?;
            }
            (true, false) => {
                *state = taken;
                return Ok(self.side(at, true, target));
            }
            // Both impossible cannot be; go on with what was known before.
            (false, _) => {}
        }
        Ok(self.side(at, false, target))
    }

    /// Notes that a side is walked, and where it leads.
    fn side(&mut self, at: usize, taken: bool, target: usize) -> Next {
        let sides = &mut self.proved.sides[at];
        sides.taken |= taken;
        sides.not_taken |= !taken;
        Next::At(if taken { target } else { at + 1 })
    }
}

/// Whether the jump is taken, if that is certain.
fn outcome(cond: Cond, width: Width, left: &Val, right: &Val) -> Option<bool> {
    if left.is_scalar() && right.is_scalar() {
        return num::decide(cond, width, &left.num, &right.num, REGISTER);
    }
    // A valid address is not NULL.
    let (pointer, number) = if left.is_pointer() { (left, right) } else { (right, left) };
    let near = pointer.num.wide.smin > -MAX_OFF && pointer.num.wide.smax < MAX_OFF;
    let valid = pointer.is_pointer() && !pointer.nullable && near;
    let never_null = valid && number.is_null() && width == Width::W64;
    match cond {
        Cond::Eq if never_null => Some(false),
        Cond::Ne if never_null => Some(true),
        _ => None,
    }
}

/// A number compared with itself.
fn with_itself(cond: Cond, width: Width, val: &Val) -> Option<bool> {
    match cond {
        Cond::Eq | Cond::Ule | Cond::Uge | Cond::Sle | Cond::Sge => Some(true),
        Cond::Ne | Cond::Ult | Cond::Ugt | Cond::Slt | Cond::Sgt => Some(false),
        Cond::Set => num::decide(Cond::Ne, width, &val.num, &Scalar::of(0), REGISTER),
    }
}

/// The operands of an undecided jump.
struct Sides {
    cond: Cond,
    width: Width,
    dst: Reg,
    src: Operand,
    left: Val,
    right: Val,
}

impl Sides {
    /// Applies the outcome to everything that is linked to the operands; false if it is impossible.
    fn learn(&self, state: &mut State, holds: bool) -> bool {
        if self.left.is_scalar() && self.right.is_scalar() {
            let (a, b) = (&self.left.num, &self.right.num);
            let Some((a, b)) = num::refine(self.cond, self.width, holds, a, b, REGISTER) else {
                return false;
            };
            assign(state, self.dst, &self.left, a);
            if let Operand::Reg(src) = self.src {
                assign(state, src, &self.right, b);
            }
            return true;
        }
        let null = match self.cond {
            Cond::Eq => holds,
            Cond::Ne => !holds,
            _ => return true,
        };
        // As in the kernel, a register that holds 0 is no check.
        if self.left.nullable && self.src == Operand::Imm(0) && self.width == Width::W64 {
            settle(state, self.left.id, null);
        }
        true
    }
}

/// A number that is now known better, and its copies.
fn assign(state: &mut State, reg: Reg, old: &Val, num: Scalar) {
    state.frame_mut().regs[reg.index()].num = num;
    if old.id != 0 {
        state.update(|v| v.is_scalar() && v.id == old.id, |v| v.num = num);
    }
}

/// An address that is now known to be NULL or not, and its copies. NULL needs no release.
fn settle(state: &mut State, id: u32, null: bool) {
    if null {
        // A slice that is NULL leaves its dynptr to be given up.
        let of_id = |v: &&Val| v.nullable && v.id == id && !matches!(v.kind, Kind::Slice(_));
        let reference = state.frame().regs.iter().find(of_id).map_or(0, |v| v.reference);
        state.references.retain(|r| reference == 0 || r.id != reference);
    }
    state.update(
        |v| v.nullable && v.id == id,
        |v| {
            v.nullable = false;
            v.id = 0;
            if null {
                *v = Val::constant(0);
            }
        },
    );
}
