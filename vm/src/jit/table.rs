//! Jump tables from trees of comparisons, and tables of values from those that only choose one.

use super::translate::Translator;
use crate::isa::{Size, Width};
use crate::opt::tree::{Choice, Leaf, Tree};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{Block, BlockCall, InstBuilder, JumpTableData, MemFlagsData, Value};

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

impl Window {
    /// Whether a table is worth its memory.
    fn is_dense(&self, tree: &Tree) -> bool {
        let entries = tree.ranges[self.last].0 - tree.ranges[self.first].0;
        self.last - self.first >= FEWEST && entries <= 16 * (self.last - self.first) as u64
    }
}

impl Translator<'_, '_> {
    /// Reads what the tree chooses from a table, if it only chooses a constant. Then the block is finished.
    pub(super) fn value_table(&mut self, tree: &Tree, test: Option<usize>) -> bool {
        let (window, Some(choice)) = (Window::of(tree), tree.choice(self.program, test)) else {
            return false;
        };
        let Some(rest) = rest(&window, &choice).filter(|_| window.is_dense(tree)) else { return false };
        let ranges = tree.ranges[window.first..=window.last].windows(2).zip(&choice.values[window.first..]);
        let mut values: Vec<u64> =
            ranges.flat_map(|(pair, value)| (pair[0].0..pair[1].0).map(|_| *value)).collect();
        // One more for all that lies outside.
        let last = values.len() as i64;
        values.push(rest);
        let value = self.reg(tree.width, tree.reg);
        let index = self.b.ins().iadd_imm_s(value, tree.ranges[window.first].0.wrapping_neg() as i64);
        let index = if tree.width == Width::W32 { self.b.ins().uextend(I64, index) } else { index };
        let last = self.b.ins().iconst(I64, last);
        let index = self.b.ins().umin(index, last);
        let chosen = self.entry_of(&values, index);
        self.set(choice.reg, chosen);
        (0..choice.back).for_each(|_| self.burn());
        let target = self.block(choice.target);
        self.b.ins().jump(target, &[]);
        true
    }

    /// The element of a table of constants, as narrow as they allow.
    fn entry_of(&mut self, values: &[u64], index: Value) -> Value {
        let most = values.iter().copied().max().unwrap_or(0);
        let size = match most {
            0..=0xff => Size::B,
            0x100..=0xffff => Size::H,
            0x1_0000..=0xffff_ffff => Size::W,
            _ => Size::Dw,
        };
        let bytes = size.bytes() as usize;
        let table = values.iter().flat_map(|value| value.to_le_bytes()[..bytes].to_vec()).collect();
        let table = self.table_address(table);
        let offset = self.b.ins().ishl_imm_u(index, i64::from(size.bytes().trailing_zeros()));
        let place = self.b.ins().iadd(table, offset);
        let (flags, ins) = (MemFlagsData::new().with_notrap().with_aligned(), self.b.ins());
        match size {
            Size::B => ins.uload8(I64, flags, place, 0),
            Size::H => ins.uload16(I64, flags, place, 0),
            Size::W => ins.uload32(flags, place, 0),
            Size::Dw => ins.load(I64, flags, place, 0),
        }
    }

    /// Jumps by a table, if the tree is deep and dense. Then the block is finished.
    pub(super) fn jump_table(&mut self, tree: &Tree) -> bool {
        let window = Window::of(tree);
        let good = tree.is_deep && window.is_dense(tree);
        if good {
            self.jump_by(tree, &window);
        }
        good
    }

    fn jump_by(&mut self, tree: &Tree, window: &Window) {
        let Window { first, last } = *window;
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

    /// Where a leaf begins: its target, unless something is to be done on the way.
    fn leaf_block(&mut self, leaf: &Leaf) -> Block {
        if is_plain(leaf) { self.block(leaf.target) } else { self.b.create_block() }
    }

    /// What is to be done on the way to the leaves.
    fn leaf_bodies(&mut self, tree: &Tree, blocks: &[Block]) {
        for ((_, leaf), block) in tree.ranges.iter().zip(blocks).filter(|((_, leaf), _)| !is_plain(leaf)) {
            self.b.switch_to_block(*block);
            for at in &leaf.moves {
                self.op(*at, self.program.ops()[*at]);
            }
            (0..leaf.back).for_each(|_| self.burn());
            let target = self.block(leaf.target);
            self.b.ins().jump(target, &[]);
        }
    }
}

fn is_plain(leaf: &Leaf) -> bool {
    leaf.moves.is_empty() && leaf.back == 0
}

/// What all values outside of the window get, if it is the same.
fn rest(window: &Window, choice: &Choice) -> Option<u64> {
    let rest = choice.values[window.last];
    let outside = choice.values[..window.first].iter().chain(&choice.values[window.last..]);
    outside.copied().all(|value| value == rest).then_some(rest)
}
