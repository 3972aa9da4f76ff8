//! Cuts a program into functions and checks that control stays inside them.

use super::error::{LoadError, Reason};
use crate::isa::{Insn, Op, code};
use crate::program::{Func, StackUse};

/// First slots of all functions, sorted: slot 0 and the destinations of local calls and callbacks.
pub(super) fn starts(insns: &[Insn]) -> Result<Vec<usize>, LoadError> {
    let mut starts = vec![0];
    let mut at = 0;
    while let Some(insn) = insns.get(at) {
        if refers_to_func(*insn) {
            let to = at as i64 + 1 + i64::from(insn.imm);
            let inside = usize::try_from(to).ok().filter(|to| *to < insns.len());
            starts.push(inside.ok_or_else(|| Reason::CallDestination.at(at))?);
        }
        at += if insn.is_lddw() { 2 } else { 1 };
    }
    starts.sort_unstable();
    starts.dedup();
    Ok(starts)
}

fn refers_to_func(insn: Insn) -> bool {
    (insn.code == code::CALL && insn.src() == code::PSEUDO_CALL)
        || (insn.is_lddw() && insn.src() == code::PSEUDO_FUNC)
}

/// The functions that begin at `starts`, with every jump and every end checked.
pub(super) fn cut(ops: &[Op], starts: &[usize]) -> Result<Vec<Func>, LoadError> {
    let ends = starts.iter().skip(1).copied().chain([ops.len()]);
    starts.iter().zip(ends).map(|(start, end)| check(ops, *start, end)).collect()
}

fn check(ops: &[Op], start: usize, end: usize) -> Result<Func, LoadError> {
    if ops[start] == Op::Second {
        return Err(Reason::CallDestination.at(start));
    }
    for at in start..end {
        check_target(ops, at, start..end)?;
    }
    let last = end - 1;
    if !matches!(ops[last], Op::Exit | Op::Jump { .. }) {
        return Err(Reason::FallsOff.at(last));
    }
    Ok(Func { start, end, stack: StackUse::default() })
}

fn check_target(ops: &[Op], at: usize, func: std::ops::Range<usize>) -> Result<(), LoadError> {
    let Some(target) = ops[at].target() else { return Ok(()) };
    if !func.contains(&target) {
        return Err(Reason::JumpRange { from: at, to: target as i64 }.at(at));
    }
    if ops[target] == Op::Second {
        return Err(Reason::JumpIntoLdImm64(target - 1).at(at));
    }
    Ok(())
}

/// Which slots some jump goes to.
pub(super) fn targets(ops: &[Op]) -> Vec<bool> {
    let mut targets = vec![false; ops.len()];
    for target in ops.iter().filter_map(Op::target) {
        targets[target] = true;
    }
    targets
}
