//! Counted loops run in strips: as many iterations as are certain to come, and as there is fuel for, are paid at
//! once and then check nothing but whether the strip is over. Behind a strip the loop's own test decides whether
//! another one follows. What leaves the loop early gives back what it did not use. So a run ends at the same place as
//! in the interpreter.

use super::translate::Translator;
use crate::isa::Width;
use crate::opt::loops::{Counted, Until};
use crate::opt::scan::Scan;
use crate::opt::summary::Summary;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{Block, InstBuilder, Type, Value};
use cranelift_frontend::Variable;

/// Back-edges that a strip may have at most. A counter that is 32 bits wide does not come around in so many.
const LONGEST: i64 = 1 << 24;
/// Back-edges of the first strip of a loop that looks for something: where it is found soon, a vector is not worth
/// its price.
const FIRST: i64 = 15;

/// The counted loop that is being translated.
#[derive(Clone, Debug)]
pub(super) struct Strip {
    pub(super) counted: Counted,
    /// What the counter is at the end of the strip.
    limit: Variable,
    /// Edges out of the loop, to be filled in: the block, where it goes, whether the counter was not moved yet.
    edges: Vec<(Block, usize, bool)>,
}

impl Strip {
    /// Whether a jump from one slot to another leaves the loop before its end.
    fn leaves(&self, from: usize, to: usize) -> bool {
        let Counted { head, test, end, .. } = self.counted;
        from != test && !(head..end).contains(&to)
    }
}

impl Translator<'_, '_> {
    /// Translates the loop whose first slot begins in the current block; the slot to go on at.
    pub(super) fn counted_loop(&mut self, counted: &Counted) -> usize {
        let limit = self.b.declare_var(type_of(counted));
        let strip = Strip { counted: *counted, limit, edges: vec![] };
        let summary = Summary::of(self.program, counted);
        let scan = Scan::of(self.program, counted);
        let first = self.affordable(counted);
        let first = if scan.is_some() { self.at_most(first, FIRST) } else { first };
        self.pay(&strip, first);
        if let Some(summary) = summary {
            self.kernel(&summary, first);
        }
        let (head, over) = (self.b.create_block(), self.b.create_block());
        self.b.ins().jump(head, &[]);
        self.strip = Some(strip);
        self.iteration(counted, head, over);
        if let Some(strip) = self.strip.take() {
            self.leave_early(&strip);
            self.next_strip(&strip, scan.as_ref(), head, over);
        }
        self.closed = true;
        counted.end
    }

    /// The ops of the loop, and its end.
    fn iteration(&mut self, counted: &Counted, head: Block, over: Block) {
        self.b.switch_to_block(head);
        self.closed = false;
        let next = self.op(counted.head, self.program.ops()[counted.head]);
        self.ops(next, counted.test);
        self.begin(counted.test);
        let counter = self.counter(counted);
        let Some(strip) = &self.strip else { return };
        let limit = self.b.use_var(strip.limit);
        let at_end = self.b.ins().icmp(IntCC::Equal, counter, limit);
        self.b.ins().brif(at_end, over, &[], head, &[]);
        self.closed = true;
    }

    /// The exits: each gives fuel back on its way.
    fn leave_early(&mut self, strip: &Strip) {
        for (edge, target, before) in &strip.edges {
            self.b.switch_to_block(*edge);
            let (counter, limit) = (self.counter(&strip.counted), self.b.use_var(strip.limit));
            let left = self.steps(&strip.counted, counter, limit);
            let left = if *before { self.b.ins().iadd_imm_s(left, -1) } else { left };
            self.give_fuel(left);
            let target = self.block(*target);
            self.b.ins().jump(target, &[]);
        }
    }

    /// Behind a strip: the loop is over, or goes on with another one.
    fn next_strip(&mut self, strip: &Strip, scan: Option<&Scan>, head: Block, over: Block) {
        let counted = &strip.counted;
        let again = self.b.create_block();
        self.at = counted.test;
        self.b.switch_to_block(over);
        let end = self.block(counted.end);
        // The counter is what the strip ends at. Saying so lets go of what it was before it was moved.
        let limit = self.b.use_var(strip.limit);
        if counted.width == Width::W64 {
            self.set(counted.counter, limit);
        }
        let bound = self.operand(counted.width, counted.bound);
        let is_over = match counted.until {
            Until::Equal => IntCC::Equal,
            Until::Reached => IntCC::UnsignedGreaterThanOrEqual,
        };
        let is_over = self.b.ins().icmp(is_over, limit, bound);
        self.b.ins().brif(is_over, end, &[], again, &[]);
        self.b.switch_to_block(again);
        self.b.set_cold_block(again);
        self.burn();
        let next = self.affordable(counted);
        self.pay(strip, next);
        if let Some(scan) = scan {
            self.scan(scan, strip, next);
        }
        self.b.ins().jump(head, &[]);
    }

    /// The block to jump to for a target outside of the loop: one that gives fuel back on the way.
    pub(super) fn edge(&mut self, from: usize, to: usize) -> Option<Block> {
        let strip = self.strip.as_mut().filter(|strip| strip.leaves(from, to))?;
        let edge = self.b.create_block();
        strip.edges.push((edge, to, from < strip.counted.bump));
        Some(edge)
    }

    fn counter(&mut self, counted: &Counted) -> Value {
        self.reg(counted.width, counted.counter)
    }

    /// From one value of the counter to a later one in units of its step, rounded up.
    fn steps(&mut self, counted: &Counted, from: Value, to: Value) -> Value {
        let way = match counted.down {
            true => self.b.ins().isub(from, to),
            false => self.b.ins().isub(to, from),
        };
        let up = self.b.ins().iadd_imm_s(way, (1 << counted.shift) - 1);
        let steps = self.b.ins().ushr_imm_u(up, i64::from(counted.shift));
        if counted.width == Width::W32 { self.b.ins().uextend(I64, steps) } else { steps }
    }

    /// Back-edges that the loop will make for certain if nothing leaves it early, and that there is fuel for.
    fn affordable(&mut self, counted: &Counted) -> Value {
        let (counter, bound) = (self.counter(counted), self.operand(counted.width, counted.bound));
        // A counter that starts at its bound comes around: that many count as more than the longest strip has.
        let steps = self.steps(counted, counter, bound);
        let back_edges = self.b.ins().iadd_imm_s(steps, -1);
        let near = self.at_most(back_edges, LONGEST);
        let sure = match self.fuel {
            Some(fuel) => {
                let fuel = self.b.use_var(fuel);
                self.b.ins().umin(near, fuel)
            }
            None => near,
        };
        match self.is_countable(counted, counter, bound) {
            Some(countable) => {
                let none = self.b.ins().iconst(I64, 0);
                self.b.ins().select(countable, sure, none)
            }
            None => sure,
        }
    }

    /// Whether [`Self::steps`] tells how many iterations there are; `None` when it always does.
    fn is_countable(&mut self, counted: &Counted, counter: Value, bound: Value) -> Option<Value> {
        match counted.until {
            Until::Equal if counted.shift == 0 => None,
            Until::Equal => {
                let way = self.b.ins().isub(bound, counter);
                let off = self.b.ins().band_imm_s(way, (1 << counted.shift) - 1);
                Some(self.b.ins().icmp_imm_u(IntCC::Equal, off, 0))
            }
            Until::Reached => {
                let below = self.b.ins().icmp(IntCC::UnsignedLessThan, counter, bound);
                // So that neither the counter nor the sums above wrap around.
                let limit = if counted.width == Width::W32 { i64::from(i32::MAX) } else { i64::MAX };
                let limit = self.b.ins().iconst(type_of(counted), limit - (1 << counted.shift));
                let near = self.b.ins().icmp(IntCC::UnsignedLessThan, bound, limit);
                Some(self.b.ins().band(below, near))
            }
        }
    }

    fn at_most(&mut self, value: Value, most: i64) -> Value {
        let most = self.b.ins().iconst(I64, most);
        self.b.ins().umin(value, most)
    }

    /// Begins a strip with this many back-edges: takes their fuel and says where it ends.
    fn pay(&mut self, strip: &Strip, back_edges: Value) {
        let taken = self.b.ins().ineg(back_edges);
        self.give_fuel(taken);
        self.end_after(strip, back_edges);
    }

    /// Sets the end of a strip whose back-edges are paid.
    fn end_after(&mut self, strip: &Strip, back_edges: Value) {
        let counted = &strip.counted;
        let counter = self.counter(counted);
        let steps = self.b.ins().iadd_imm_s(back_edges, 1);
        let way = self.b.ins().ishl_imm_u(steps, i64::from(counted.shift));
        let way = if counted.width == Width::W32 { self.b.ins().ireduce(I32, way) } else { way };
        let limit = match counted.down {
            true => self.b.ins().isub(counter, way),
            false => self.b.ins().iadd(counter, way),
        };
        self.b.def_var(strip.limit, limit);
    }

    /// Ends a strip earlier: after `back_edges` more of the `paid` ones.
    pub(super) fn cut_short(&mut self, strip: &Strip, paid: Value, back_edges: Value) {
        let left = self.b.ins().isub(paid, back_edges);
        self.give_fuel(left);
        self.end_after(strip, back_edges);
    }

    fn give_fuel(&mut self, amount: Value) {
        if let Some(fuel) = self.fuel {
            let old = self.b.use_var(fuel);
            let left = self.b.ins().iadd(old, amount);
            self.b.def_var(fuel, left);
        }
    }
}

fn type_of(counted: &Counted) -> Type {
    if counted.width == Width::W32 { I32 } else { I64 }
}
