//! Jump tables from trees of comparisons.

use super::translate::Translator;
use crate::isa::Width;
use crate::opt::tree::{Leaf, Tree};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I32;
use cranelift_codegen::ir::{Block, BlockCall, InstBuilder, JumpTableData, Value};

/// Entries that a table may have.
const MOST: u64 = 512;
/// Ranges that a table must tell apart.
const FEWEST: usize = 4;

/// The part of a tree that becomes a table: ranges `first..last` of it, the values from the start of the
/// first up to the start of `last`.
struct Window {
    first: usize,
    last: usize,
}

impl Window {
    fn of(tree: &Tree) -> Window {
        let start = |at: usize| tree.ranges[at].0;
        // A long first range belongs to the values below the cases.
        let first = usize::from(tree.ranges.len() > 1 && start(1) > 64);
        let near = |at: &usize| start(*at) - start(first) <= MOST;
        let last = (first..tree.ranges.len()).take_while(near).last().unwrap_or(first);
        Window { first, last }
    }
}

/// Whether a table is worth its memory and its indirect jump.
pub(super) fn is_dense(tree: &Tree) -> bool {
    let window = Window::of(tree);
    let entries = tree.ranges[window.last].0 - tree.ranges[window.first].0;
    window.last - window.first >= FEWEST && entries <= 16 * (window.last - window.first) as u64
}

impl Translator<'_, '_> {
    /// The block is finished.
    pub(super) fn jump_table(&mut self, tree: &Tree) {
        let Window { first, last } = Window::of(tree);
        let base = tree.ranges[first].0;
        let value = self.reg(tree.width, tree.reg);
        let index = self.b.ins().iadd_imm_s(value, base.wrapping_neg() as i64);
        let blocks: Vec<Block> = tree.ranges.iter().map(|(_, leaf)| self.leaf_block(leaf)).collect();
        let mut entries = vec![];
        for (ranges, block) in tree.ranges[first..=last].windows(2).zip(&blocks[first..]) {
            entries.extend((ranges[0].0..ranges[1].0).map(|_| *block));
        }
        let rest = self.b.create_block();
        let index = match tree.width {
            Width::W32 => index,
            Width::W64 => self.narrowed(index, entries.len(), rest),
        };
        let entries: Vec<BlockCall> = entries.into_iter().map(|block| self.plain(block)).collect();
        let rest_call = self.plain(rest);
        let table = self.b.create_jump_table(JumpTableData::new(rest_call, &entries));
        self.b.ins().br_table(index, table);
        self.b.switch_to_block(rest);
        self.outside(tree, value, &blocks, first, last);
        self.leaf_bodies(tree, &blocks);
    }

    fn plain(&mut self, block: Block) -> BlockCall {
        BlockCall::new(block, [], &mut self.b.func.dfg.value_lists)
    }

    /// A 64-bit index that is small enough for 32 bits; the others go to `rest`.
    fn narrowed(&mut self, index: Value, entries: usize, rest: Block) -> Value {
        let (inside, len) = (self.b.create_block(), entries as i64);
        let is_inside = self.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, index, len);
        self.b.ins().brif(is_inside, inside, &[], rest, &[]);
        self.b.switch_to_block(inside);
        self.b.ins().ireduce(I32, index)
    }

    /// The values that the table has no entry for.
    fn outside(&mut self, tree: &Tree, value: Value, blocks: &[Block], first: usize, last: usize) {
        for at in (last + 1..tree.ranges.len()).rev() {
            self.split(value, tree.ranges[at].0, blocks[at]);
        }
        if first > 0 {
            self.split(value, tree.ranges[last].0, blocks[last]);
            self.b.ins().jump(blocks[0], &[]);
        } else {
            self.b.ins().jump(blocks[last], &[]);
        }
    }

    /// Sends values from `start` on to a block.
    fn split(&mut self, value: Value, start: u64, block: Block) {
        let next = self.b.create_block();
        let ty = self.b.func.dfg.value_type(value);
        let start = self.b.ins().iconst(ty, start as i64);
        let above = self.b.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, value, start);
        self.b.ins().brif(above, block, &[], next, &[]);
        self.b.switch_to_block(next);
    }

    /// Where a leaf begins: its target, unless there are moves on the way.
    fn leaf_block(&mut self, leaf: &Leaf) -> Block {
        if leaf.moves.is_empty() { self.block(leaf.target) } else { self.b.create_block() }
    }

    /// The moves on the way to the leaves that have some.
    fn leaf_bodies(&mut self, tree: &Tree, blocks: &[Block]) {
        for ((_, leaf), block) in
            tree.ranges.iter().zip(blocks).filter(|((_, leaf), _)| !leaf.moves.is_empty())
        {
            self.b.switch_to_block(*block);
            for at in &leaf.moves {
                self.op(*at, self.program.ops()[*at]);
            }
            let target = self.block(leaf.target);
            self.b.ins().jump(target, &[]);
        }
    }
}
