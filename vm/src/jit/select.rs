//! Branches that only choose between values: both are computed, and one is selected.

use super::translate::Translator;
use crate::isa::{Cond, Operand, Reg, Width};
use crate::opt::hammock::{self, Ways};
use crate::opt::values::{self, Value as Known};
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{InstBuilder, Value};
use std::ops::Range;

/// A branch.
pub(super) struct Fork {
    pub at: usize,
    pub cond: Cond,
    pub width: Width,
    pub src: Operand,
    /// What is compared.
    pub lhs: Value,
    pub rhs: Value,
    pub target: usize,
}

impl Translator<'_, '_> {
    /// Translates a branch, and what follows it, into selections if they are cheaper; the slot to go on at.
    pub(super) fn select(&mut self, fork: &Fork) -> Option<usize> {
        let ways = hammock::ways(self.program, fork.at, fork.target)?;
        if self.is_awkward(fork, &ways) {
            return None;
        }
        let holds = self.holds(fork.cond, fork.lhs, fork.rhs);
        self.either(fork, holds, &ways);
        match ways.jump {
            Some((jump, target)) => self.jump(jump, target),
            // The code behind goes on in the same block.
            None => return Some(fork.target),
        }
        Some(ways.next)
    }

    /// Whether a branch is better, or the only thing that is right.
    fn is_awkward(&self, fork: &Fork, ways: &Ways) -> bool {
        // Exits of a counted loop tell by where they are whether the counter was moved.
        let ops = || ways.if_not.clone().chain(ways.if_so.clone());
        let moves_counter =
            self.strip.as_ref().is_some_and(|strip| ops().any(|slot| slot == strip.counted.bump));
        let around = self.frame.ranges.iter().filter(|around| around.contains(&fork.at));
        let guesses = around
            .min_by_key(|around| around.len())
            .is_some_and(|around| hammock::leads_to_address(self.program, around.start, fork.at, ops()));
        moves_counter || guesses
    }

    /// Computes both ways, and selects.
    fn either(&mut self, fork: &Fork, holds: Value, ways: &Ways) {
        let ops = || ways.if_so.clone().chain(ways.if_not.clone()).map(|slot| self.program.ops()[slot]);
        let mut written: Vec<Reg> = ops().filter_map(|op| op.written()).collect();
        written.sort_unstable();
        written.dedup();
        let old: Vec<Value> = written.iter().map(|reg| self.get(*reg)).collect();
        let if_so = self.one_way(&written, &old, &ways.if_so);
        let if_not = self.one_way(&written, &old, &ways.if_not);
        for (reg, (so, not)) in written.into_iter().zip(if_so.into_iter().zip(if_not)) {
            let value = match (self.constant(fork, &ways.if_so, reg), self.constant(fork, &ways.if_not, reg))
            {
                (Some(1), Some(0)) => self.truth(fork, holds),
                (Some(0), Some(1)) => {
                    let truth = self.truth(fork, holds);
                    self.b.ins().bxor_imm_s(truth, 1)
                }
                _ => self.b.ins().select(holds, so, not),
            };
            self.set(reg, value);
        }
    }

    /// What these registers hold behind some ops.
    fn one_way(&mut self, regs: &[Reg], old: &[Value], ops: &Range<usize>) -> Vec<Value> {
        regs.iter().zip(old).for_each(|(reg, old)| self.set(*reg, *old));
        ops.clone().for_each(|at| _ = self.op(at, self.program.ops()[at]));
        regs.iter().map(|reg| self.get(*reg)).collect()
    }

    /// The constant that a register holds behind some ops on the way from a branch.
    fn constant(&self, fork: &Fork, ops: &Range<usize>, reg: Reg) -> Option<u64> {
        let mut regs = *self.frame.values.at(fork.at)?;
        ops.clone().for_each(|at| values::step(&self.program.ops()[at], &mut regs));
        match regs[reg.index()] {
            Known::Number(n) => Some(n),
            _ => None,
        }
    }

    /// 1 when the condition holds, else 0. Not from the flags to a byte: that waits for whatever the byte's register
    /// held before, in a loop perhaps for the iteration before.
    fn truth(&mut self, fork: &Fork, holds: Value) -> Value {
        let negative = match (fork.cond, fork.width) {
            // The sign of the difference of two 32-bit numbers in 64 bits.
            (Cond::Ugt, Width::W32) => self.difference(fork.rhs, fork.lhs),
            (Cond::Ult, Width::W32) => self.difference(fork.lhs, fork.rhs),
            // Above all that fits in some bits: there are others.
            (Cond::Ugt, Width::W64) => match self.operand_constant(fork) {
                Some(most) if most > 0 && most.wrapping_add(1).is_power_of_two() => {
                    let rest = self.b.ins().ushr_imm_u(fork.lhs, i64::from(most.count_ones()));
                    self.b.ins().ineg(rest)
                }
                _ => return self.chosen(holds),
            },
            _ => return self.chosen(holds),
        };
        self.b.ins().ushr_imm_u(negative, 63)
    }

    fn difference(&mut self, a: Value, b: Value) -> Value {
        let (a, b) = (self.b.ins().uextend(I64, a), self.b.ins().uextend(I64, b));
        self.b.ins().isub(a, b)
    }

    fn operand_constant(&self, fork: &Fork) -> Option<u64> {
        match values::operand(fork.src, self.frame.values.at(fork.at)?) {
            Known::Number(n) => Some(n),
            _ => None,
        }
    }

    /// By a conditional move, which 2 and 0 are left to be.
    fn chosen(&mut self, holds: Value) -> Value {
        let (two, zero) = (self.b.ins().iconst(I64, 2), self.b.ins().iconst(I64, 0));
        let value = self.b.ins().select(holds, two, zero);
        self.b.ins().ushr_imm_u(value, 1)
    }
}
