//! Counted loops: translated twice. The fast copy runs when there is fuel for all of its iterations, takes it on
//! entry and checks nothing; what leaves the loop early gives back what it did not use. The slow copy is the plain
//! translation. So a run ends at the same place as in the interpreter.

use super::translate::Translator;
use crate::isa::Width;
use crate::opt::loops::{Counted, Until};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{Block, InstBuilder, Value};

/// The fast copy that is being translated.
#[derive(Clone, Debug)]
pub(super) struct Fast {
    counted: Counted,
    /// Edges out of the loop, to be filled in: the block, where it goes, whether the counter was not moved yet.
    edges: Vec<(Block, usize, bool)>,
}

impl Fast {
    /// Whether a jump from one slot to another leaves the loop before its end.
    fn leaves(&self, from: usize, to: usize) -> bool {
        let Counted { head, test, end, .. } = self.counted;
        from != test && !(head..end).contains(&to)
    }
}

impl Translator<'_, '_> {
    /// Translates the loop whose first slot begins in the current block; the slot to go on at.
    pub(super) fn counted_loop(&mut self, counted: &Counted) -> usize {
        let (fast, slow, prepaid) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        let (back_edges, countable) = self.back_edges(counted);
        let enough = self.has_fuel(back_edges);
        let both = self.b.ins().band(countable, enough);
        self.b.ins().brif(both, prepaid, &[], slow, &[]);
        self.b.switch_to_block(prepaid);
        self.take_fuel(back_edges);
        self.kernel(counted, back_edges);
        self.b.ins().jump(fast, &[]);
        self.fast_copy(counted, fast);
        self.b.set_cold_block(slow);
        let head = self.replace_block(counted.head, slow);
        self.copy(counted, slow);
        self.replace_block(counted.head, head);
        counted.end
    }

    fn fast_copy(&mut self, counted: &Counted, first: Block) {
        let slots = counted.head..counted.end;
        let plain: Vec<_> = slots.clone().map(|slot| (slot, self.frame.block(slot))).collect();
        for (slot, _) in plain.iter().filter(|(_, block)| block.is_some()) {
            let block = self.b.create_block();
            self.replace_block(*slot, block);
        }
        self.replace_block(counted.head, first);
        let tabled = self.tabled.clone();
        self.fast = Some(Fast { counted: *counted, edges: vec![] });
        self.copy(counted, first);
        let fast = self.fast.take();
        self.tabled = tabled;
        for (slot, block) in plain {
            self.frame.blocks[slot - self.frame.func.start] = block;
        }
        for (edge, target, before) in fast.into_iter().flat_map(|fast| fast.edges) {
            self.b.switch_to_block(edge);
            let left = self.left(counted, before);
            self.give_fuel(left);
            let target = self.block(target);
            self.b.ins().jump(target, &[]);
        }
    }

    /// The ops of the loop, the first one in this block.
    fn copy(&mut self, counted: &Counted, first: Block) {
        self.b.switch_to_block(first);
        self.closed = false;
        let next = self.op(counted.head, self.program.ops()[counted.head]);
        self.ops(next, counted.end);
    }

    fn replace_block(&mut self, slot: usize, block: Block) -> Block {
        let place = &mut self.frame.blocks[slot - self.frame.func.start];
        place.replace(block).unwrap_or(block)
    }

    /// The block to jump to for a target outside of the fast copy: one that gives fuel back on the way.
    pub(super) fn edge(&mut self, from: usize, to: usize) -> Option<Block> {
        let fast = self.fast.as_mut().filter(|fast| fast.leaves(from, to))?;
        let edge = self.b.create_block();
        fast.edges.push((edge, to, from < fast.counted.bump));
        Some(edge)
    }

    fn counter_and_bound(&mut self, counted: &Counted) -> (Value, Value) {
        (self.reg(counted.width, counted.counter), self.operand(counted.width, counted.bound))
    }

    /// From the counter to the bound in units of its step, rounded up. The counter is not beyond the bound by a
    /// whole step.
    fn steps(&mut self, counted: &Counted) -> Value {
        let (counter, bound) = self.counter_and_bound(counted);
        let way = match counted.down {
            true => self.b.ins().isub(counter, bound),
            false => self.b.ins().isub(bound, counter),
        };
        let up = self.b.ins().iadd_imm_s(way, (1 << counted.shift) - 1);
        let steps = self.b.ins().ushr_imm_u(up, i64::from(counted.shift));
        if counted.width == Width::W32 { self.b.ins().uextend(I64, steps) } else { steps }
    }

    /// How many back-edges the loop takes if nothing leaves it early, and whether that is so.
    fn back_edges(&mut self, counted: &Counted) -> (Value, Value) {
        let (counter, bound) = self.counter_and_bound(counted);
        let steps = self.steps(counted);
        let back_edges = self.b.ins().iadd_imm_s(steps, -1);
        let countable = match counted.until {
            Until::Equal => {
                let way = self.b.ins().isub(bound, counter);
                let off = self.b.ins().band_imm_s(way, (1 << counted.shift) - 1);
                self.b.ins().icmp_imm_u(IntCC::Equal, off, 0)
            }
            Until::Reached => {
                let below = self.b.ins().icmp(IntCC::UnsignedLessThan, counter, bound);
                // So that neither the counter nor the sums above wrap around.
                let ty = if counted.width == Width::W32 { I32 } else { I64 };
                let limit = if counted.width == Width::W32 { i64::from(i32::MAX) } else { i64::MAX };
                let limit = self.b.ins().iconst(ty, limit - (1 << counted.shift));
                let near = self.b.ins().icmp(IntCC::UnsignedLessThan, bound, limit);
                self.b.ins().band(below, near)
            }
        };
        (back_edges, countable)
    }

    /// Back-edges that a run which leaves the loop here did not take.
    fn left(&mut self, counted: &Counted, before: bool) -> Value {
        let steps = self.steps(counted);
        if before { self.b.ins().iadd_imm_s(steps, -1) } else { steps }
    }

    /// Counters that start at their bound wrap around: that many is never affordable, nor is a negative number.
    fn has_fuel(&mut self, amount: Value) -> Value {
        match self.fuel {
            Some(fuel) => {
                let fuel = self.b.use_var(fuel);
                self.b.ins().icmp(IntCC::UnsignedLessThanOrEqual, amount, fuel)
            }
            None => self.b.ins().iconst(cranelift_codegen::ir::types::I8, 0),
        }
    }

    fn take_fuel(&mut self, amount: Value) {
        if let Some(fuel) = self.fuel {
            let old = self.b.use_var(fuel);
            let left = self.b.ins().isub(old, amount);
            self.b.def_var(fuel, left);
        }
    }

    fn give_fuel(&mut self, amount: Value) {
        if let Some(fuel) = self.fuel {
            let old = self.b.use_var(fuel);
            let left = self.b.ins().iadd(old, amount);
            self.b.def_var(fuel, left);
        }
    }
}
