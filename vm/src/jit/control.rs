//! Jumps and branches.

use super::select::Fork;
use super::translate::Translator;
use crate::isa::{Cond, Operand, Reg, Width};
use crate::opt::hammock;
use crate::opt::tree::Tree;
use cranelift_codegen::ir::condcodes::{CondCode, IntCC};
use cranelift_codegen::ir::{Block, InstBuilder, Value};

impl Translator<'_, '_> {
    pub(super) fn block(&mut self, slot: usize) -> Block {
        if let Some(edge) = self.edge(self.at, slot) {
            return edge;
        }
        // Targets without a block are those that the verifier proved dead.
        self.frame.block(slot).unwrap_or(self.stopped)
    }

    pub(super) fn jump(&mut self, at: usize, target: usize) {
        let block = self.block(target);
        if target <= at {
            self.burn_and_jump(block);
        } else {
            self.b.ins().jump(block, &[]);
        }
        self.closed = true;
    }

    /// Translates a branch, and whatever it only jumps over; the slot to go on at.
    pub(super) fn branch(
        &mut self,
        at: usize,
        cond: Cond,
        width: Width,
        dst: Reg,
        src: Operand,
        target: usize,
    ) -> usize {
        match self.program.outcome(at) {
            Some(true) => {
                self.jump(at, target);
                return at + 1;
            }
            Some(false) => {
                let next = self.block(at + 1);
                self.b.ins().jump(next, &[]);
                self.closed = true;
                return at + 1;
            }
            None => {}
        }
        if target > at && self.table(at) {
            return at + 1;
        }
        let (lhs, rhs) = (self.reg(width, dst), self.operand(width, src));
        let fork = Fork { at, cond, width, src, lhs, rhs, target };
        if let Some(next) = self.select(&fork).or_else(|| self.thread(&fork)) {
            return next;
        }
        let (taken, next) = (self.block(target), self.block(at + 1));
        if target <= at {
            self.branch_back(cond, lhs, rhs, taken, next);
        } else {
            let holds = self.holds(cond, lhs, rhs);
            self.b.ins().brif(holds, taken, &[], next, &[]);
        }
        self.closed = true;
        at + 1
    }

    /// Translates a branch whose condition is asked again soon: each way goes on behind the second question at once. The
    /// slot to go on at, which others may jump to.
    fn thread(&mut self, fork: &Fork) -> Option<usize> {
        let again = hammock::asks_again(self.program, fork.at, fork.target)?;
        // The end of a counted loop is not an ordinary question.
        if self.strip.as_ref().is_some_and(|strip| again >= strip.counted.test) {
            return None;
        }
        let target = self.program.ops()[again].target()?;
        let (if_so, if_not) = (self.b.create_block(), self.b.create_block());
        let holds = self.holds(fork.cond, fork.lhs, fork.rhs);
        self.b.ins().brif(holds, if_so, &[], if_not, &[]);
        for (block, start, target) in [(if_so, fork.target, target), (if_not, fork.at + 1, again + 1)] {
            self.b.switch_to_block(block);
            for at in start..again {
                self.op(at, self.program.ops()[at]);
            }
            self.at = again;
            self.jump(again, target);
        }
        Some(fork.target)
    }

    /// Nonzero when the condition holds.
    pub(super) fn holds(&mut self, cond: Cond, lhs: Value, rhs: Value) -> Value {
        match int_cc(cond) {
            Some(cc) => self.b.ins().icmp(cc, lhs, rhs),
            None => self.b.ins().band(lhs, rhs),
        }
    }

    /// A back-edge burns. Cranelift lays the second successor out next, so the condition is inverted to
    /// keep the loop in one piece and move its exit away.
    fn branch_back(&mut self, cond: Cond, lhs: Value, rhs: Value, taken: Block, next: Block) {
        let fails = self.fails(cond, lhs, rhs);
        let edge = self.b.create_block();
        self.b.ins().brif(fails, next, &[], edge, &[]);
        self.b.switch_to_block(edge);
        self.burn_and_jump(taken);
    }

    /// Nonzero when the condition does not hold.
    pub(super) fn fails(&mut self, cond: Cond, lhs: Value, rhs: Value) -> Value {
        match int_cc(cond) {
            Some(cc) => self.b.ins().icmp(cc.complement(), lhs, rhs),
            None => {
                let common = self.b.ins().band(lhs, rhs);
                self.b.ins().icmp_imm_s(IntCC::Equal, common, 0)
            }
        }
    }

    /// Turns the tree of comparisons that begins here into a jump table, if it is one.
    fn table(&mut self, at: usize) -> bool {
        if self.tabled.contains(&at) {
            return false;
        }
        let test = self.strip.as_ref().map(|strip| strip.counted.test);
        let Some(tree) = Tree::at(self.program, at, test) else { return false };
        self.tabled.extend(tree.branches.iter().copied());
        let made = self.value_table(&tree, test) || self.jump_table(&tree);
        self.closed |= made;
        made
    }
}

/// `None` for `Set`, which is no comparison.
pub(super) fn int_cc(cond: Cond) -> Option<IntCC> {
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
