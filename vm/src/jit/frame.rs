//! What is known of a program's functions before translation, and the frame of one that is being translated.

use crate::isa::{Callee, Op};
use crate::opt::cells::Cells;
use crate::opt::inline;
use crate::opt::intrinsic::Environment;
use crate::opt::loops::{self, Counted};
use crate::opt::values::Values;
use crate::program::Func;
use crate::verify::Verified;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{Block, StackSlot};
use cranelift_frontend::{FunctionBuilder, Variable};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// The analyses of a whole program, by function.
pub(super) struct Known<'a> {
    pub(super) program: &'a Verified,
    pub(super) env: Environment<'a>,
    pub(super) values: Vec<Rc<Values>>,
    pub(super) cells: Vec<Cells>,
    pub(super) loops: Vec<Rc<Vec<Counted>>>,
    /// From the target of each jump back to the jump.
    ranges: Vec<Rc<Vec<Range<usize>>>>,
    /// Whether a function is translated into its callers, and nowhere else.
    pub(super) inlined: Vec<bool>,
}

impl Known<'_> {
    pub(super) fn of<'p>(program: &'p Verified, env: Environment<'p>) -> Known<'p> {
        let values: Vec<_> = program.funcs().iter().map(|func| Rc::new(Values::of(program, *func))).collect();
        let cells = program.funcs().iter().zip(&values);
        let cells = cells.map(|(func, values)| Cells::of(program, env, *func, values)).collect();
        let loops = program.funcs().iter().map(|func| Rc::new(loops::find(program, *func))).collect();
        let ranges = program.funcs().iter().map(|func| Rc::new(loops::ranges(program, *func))).collect();
        Known { program, env, values, cells, loops, ranges, inlined: inline::decide(program) }
    }

    /// Whether a function takes fuel itself. What is inlined into it is called by it.
    pub(super) fn burns(&self, index: usize) -> bool {
        let func = self.program.funcs()[index];
        (func.start..func.end).any(|at| {
            let op = &self.program.ops()[at];
            op.target().is_some_and(|target| target <= at) || matches!(op, Op::Call(Callee::Func(_)))
        })
    }
}

/// The function whose ops are being translated.
pub(super) struct Frame {
    pub(super) func: Func,
    /// r0 to r9; r10 is the end of the stack slot.
    pub(super) regs: [Variable; 10],
    /// The words of the stack that are variables.
    pub(super) words: BTreeMap<usize, Variable>,
    pub(super) cells: Cells,
    pub(super) values: Rc<Values>,
    pub(super) loops: Rc<Vec<Counted>>,
    /// All loops, as they lie.
    pub(super) ranges: Rc<Vec<Range<usize>>>,
    /// The rest of the stack.
    pub(super) stack: Option<StackSlot>,
    /// Block that begins at each slot of the function, if one does.
    pub(super) blocks: Vec<Option<Block>>,
    /// Of an inlined function: where it returns to, with its result.
    pub(super) done: Option<Block>,
}

impl Frame {
    pub(super) fn new(known: &Known<'_>, index: usize, b: &mut FunctionBuilder<'_>) -> Frame {
        let func = known.program.funcs()[index];
        let cells = known.cells[index].clone();
        Frame {
            func,
            regs: std::array::from_fn(|_| b.declare_var(I64)),
            words: cells.words().map(|word| (word, b.declare_var(I64))).collect(),
            cells,
            values: known.values[index].clone(),
            loops: known.loops[index].clone(),
            ranges: known.ranges[index].clone(),
            stack: None,
            blocks: leaders(known.program, func, b),
            done: None,
        }
    }

    /// The block that begins at a slot.
    pub(super) fn block(&self, slot: usize) -> Option<Block> {
        self.blocks[slot - self.func.start]
    }
}

/// Blocks begin at jump targets and behind branches.
fn leaders(program: &Verified, func: Func, b: &mut FunctionBuilder<'_>) -> Vec<Option<Block>> {
    let is_leader = |at: usize| {
        let behind_branch = at > func.start && matches!(program.ops()[at - 1], Op::Branch { .. });
        program.is_reachable(at) && (program.is_target(at) || behind_branch)
    };
    (func.start..func.end).map(|at| is_leader(at).then(|| b.create_block())).collect()
}
