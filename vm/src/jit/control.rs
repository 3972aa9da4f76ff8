//! Jumps, branches, and what is made of branches that only choose.

use super::translate::Translator;
use crate::isa::{Cond, Op, Operand, Reg, Width};
use crate::opt::hammock::is_hammock;
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
        if target <= at {
            self.burn();
        }
        let block = self.block(target);
        self.b.ins().jump(block, &[]);
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
        if is_hammock(self.program, at, target) {
            let holds = self.holds(cond, lhs, rhs);
            self.hammock(holds, at + 1, target);
            return target;
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

    /// Nonzero when the condition holds.
    pub(super) fn holds(&mut self, cond: Cond, lhs: Value, rhs: Value) -> Value {
        match int_cc(cond) {
            Some(cc) => self.b.ins().icmp(cc, lhs, rhs),
            None => self.b.ins().band(lhs, rhs),
        }
    }

    /// Computes what the branch may skip, and keeps the old values if it does.
    fn hammock(&mut self, skips: Value, start: usize, end: usize) {
        let ops: Vec<(usize, Op)> = (start..end).map(|at| (at, self.program.ops()[at])).collect();
        let mut written: Vec<Reg> = ops.iter().filter_map(|(_, op)| op.written()).collect();
        written.sort_unstable();
        written.dedup();
        let old: Vec<Value> = written.iter().map(|reg| self.get(*reg)).collect();
        for (at, op) in ops {
            self.op(at, op);
        }
        for (reg, old) in written.into_iter().zip(old) {
            let new = self.get(reg);
            let value = self.b.ins().select(skips, old, new);
            self.set(reg, value);
        }
    }

    /// A back-edge burns. Cranelift lays the second successor out next, so the condition is inverted to
    /// keep the loop in one piece and move its exit away.
    fn branch_back(&mut self, cond: Cond, lhs: Value, rhs: Value, taken: Block, next: Block) {
        let fails = self.fails(cond, lhs, rhs);
        let edge = self.b.create_block();
        self.b.ins().brif(fails, next, &[], edge, &[]);
        self.b.switch_to_block(edge);
        self.burn();
        self.b.ins().jump(taken, &[]);
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
        let Some(tree) = Tree::at(self.program, at) else { return false };
        self.tabled.extend(tree.branches.iter().copied());
        if !super::table::is_dense(&tree) {
            return false;
        }
        self.jump_table(&tree);
        self.closed = true;
        true
    }
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
