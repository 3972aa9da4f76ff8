//! Loops that look for an element, a vector at a time: goes on to just before the iteration that leaves the loop, which
//! the loop itself then finds.
//!
//! A vector may reach behind the element that is looked for, where nobody promised memory. It never reaches into a page
//! that the element which the loop is about to read is not in, so that it cannot fault where the loop would not.

use super::kernel::Kernel;
use super::loops::Strip;
use super::translate::Translator;
use crate::opt::scan::{Exit, Scan};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8, I32, I64};
use cranelift_codegen::ir::{Block, InstBuilder, Value};
use cranelift_frontend::Variable;

/// Bytes of a vector.
const VECTOR: i64 = 16;
/// The smallest pages there are.
const PAGE: i64 = 4096;

/// A scan that is being translated.
struct Search<'s> {
    scan: &'s Scan,
    kernel: Kernel<'s>,
    /// Iterations that certainly stay in the loop.
    passed: Variable,
    /// Where it goes once `passed` is known.
    found: Block,
}

impl Translator<'_, '_> {
    /// Moves on in a strip that begins here with `paid` back-edges.
    pub(super) fn scan(&mut self, scan: &Scan, strip: &Strip, paid: Value) {
        if self.in_cells(&scan.summary.accesses()) {
            return;
        }
        let kernel = Kernel::new(&scan.summary, 1);
        let (groups, lanes) = (self.b.ins().ushr_imm_u(paid, i64::from(kernel.shift())), 1 << kernel.shift());
        let (passed, found) = (self.b.declare_var(I64), self.b.create_block());
        let mut search = Search { scan, kernel, passed, found };
        let zero = self.b.ins().iconst(I64, 0);
        self.b.def_var(passed, zero);
        self.point(&mut search.kernel);
        let (across, end) = (self.b.create_block(), self.b.create_block());
        self.groups_until_found(&search, groups, lanes, across);
        self.b.switch_to_block(across);
        let moved = self.pass(&search);
        let left = self.b.ins().isub(paid, moved);
        // One more than a vector: `pass` stops one short.
        let few = self.b.ins().iconst(I64, lanes);
        let few = self.b.ins().umin(left, few);
        self.cut_short(strip, left, few);
        self.b.ins().jump(end, &[]);
        self.b.switch_to_block(found);
        self.pass(&search);
        self.b.ins().jump(end, &[]);
        self.b.switch_to_block(end);
    }

    /// The loop over groups: to `found`, or `across` when the next vector reaches into another page.
    fn groups_until_found(&mut self, search: &Search<'_>, groups: Value, lanes: i64, across: Block) {
        let (top, inside, look, next) =
            (self.b.create_block(), self.b.create_block(), self.b.create_block(), self.b.create_block());
        let left = self.b.declare_var(I64);
        self.b.def_var(left, groups);
        self.b.ins().jump(top, &[]);
        self.b.switch_to_block(top);
        let groups = self.b.use_var(left);
        self.b.ins().brif(groups, inside, &[], search.found, &[]);
        self.b.switch_to_block(inside);
        let crosses = self.crosses(search);
        self.b.ins().brif(crosses, across, &[], look, &[]);
        self.b.switch_to_block(look);
        let hits = self.hits(search);
        let hit = self.b.create_block();
        self.b.ins().brif(hits, hit, &[], next, &[]);
        self.b.switch_to_block(hit);
        let first = self.b.ins().ctz(hits);
        let first = self.b.ins().uextend(I64, first);
        self.count(search.passed, first);
        self.b.ins().jump(search.found, &[]);
        self.b.switch_to_block(next);
        for (_, pointer) in &search.kernel.pointers {
            self.count_by(*pointer, VECTOR);
        }
        self.count_by(search.passed, lanes);
        self.count_by(left, -1);
        self.b.ins().jump(top, &[]);
    }

    fn count(&mut self, var: Variable, by: Value) {
        let old = self.b.use_var(var);
        let new = self.b.ins().iadd(old, by);
        self.b.def_var(var, new);
    }

    fn count_by(&mut self, var: Variable, by: i64) {
        let by = self.b.ins().iconst(I64, by);
        self.count(var, by);
    }

    /// Nonzero when some vector reaches into the next page.
    fn crosses(&mut self, search: &Search<'_>) -> Value {
        let mut crosses = self.b.ins().iconst(I8, 0);
        for (_, pointer) in &search.kernel.pointers {
            let pointer = self.b.use_var(*pointer);
            let off = self.b.ins().band_imm_s(pointer, PAGE - 1);
            let far = self.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, off, PAGE - VECTOR);
            crosses = self.b.ins().bor(crosses, far);
        }
        crosses
    }

    /// A bit for each element of the group at which the loop is left.
    fn hits(&mut self, search: &Search<'_>) -> Value {
        let mut hits = None;
        for exit in &search.scan.exits {
            if let (true, Some(hits)) = (exit.late, hits) {
                // The first element must get as far as this in the loop, too.
                let bits: Value = self.b.ins().vhigh_bits(I32, hits);
                let first = self.b.ins().band_imm_s(bits, 1);
                let go_on = self.b.create_block();
                self.b.ins().brif(first, search.found, &[], go_on, &[]);
                self.b.switch_to_block(go_on);
            }
            let holds = self.holds_at(search, exit);
            hits = Some(hits.map_or(holds, |hits| self.b.ins().bor(hits, holds)));
        }
        match hits {
            Some(hits) => self.b.ins().vhigh_bits(I32, hits),
            None => self.b.ins().iconst(I32, 0),
        }
    }

    /// All ones in the lanes at which a way out is taken.
    fn holds_at(&mut self, search: &Search<'_>, exit: &Exit) -> Value {
        let lane = search.scan.summary.size;
        let (a, b) =
            (self.lanes(&search.kernel, exit.a, lane, 0)[0], self.lanes(&search.kernel, exit.b, lane, 0)[0]);
        let cc = super::control::int_cc(exit.cond).unwrap_or(IntCC::NotEqual);
        self.b.ins().icmp(cc, a, b)
    }

    /// Moves the counters to the last iteration that stays in the loop, so that it leaves behind in registers what
    /// the next one may see; how many iterations that is.
    fn pass(&mut self, search: &Search<'_>) -> Value {
        let passed = self.b.use_var(search.passed);
        let some = self.b.ins().icmp_imm_u(IntCC::NotEqual, passed, 0);
        let some = self.b.ins().uextend(I64, some);
        let moved = self.b.ins().isub(passed, some);
        self.move_counters(&search.scan.summary, moved);
        moved
    }
}
