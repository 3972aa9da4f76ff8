//! Branches over a few cheap operations, which are better computed and selected than jumped over: BPF has no
//! conditional move, so that compilers write every choice between two values as such a branch.

use crate::isa::{AluOp, Const, Op};
use crate::program::Program;

/// Operations that are cheaper than a branch that is guessed wrong half of the time.
const MOST: usize = 4;

/// Whether the forward branch at this slot only skips cheap operations on registers.
pub(crate) fn is_hammock(program: &Program, at: usize, target: usize) -> bool {
    let body = at + 1..target;
    (1..=MOST).contains(&body.len())
        && program.is_reachable(target)
        && body.into_iter().all(|slot| {
            program.is_reachable(slot) && !program.is_target(slot) && is_cheap(&program.ops()[slot])
        })
}

fn is_cheap(op: &Op) -> bool {
    match op {
        Op::Alu { op, .. } => !matches!(op, AluOp::Mul | AluOp::Div | AluOp::Sdiv | AluOp::Mod | AluOp::Smod),
        Op::LoadConst { value, .. } => matches!(value, Const::Number(_)),
        Op::Neg { .. } | Op::MovSx { .. } | Op::Swap { .. } | Op::Second => true,
        _ => false,
    }
}
