//! What a program needs of its caller: which words of its context it reads, and whether it may be ended early.

use super::intrinsic::{self, Environment, Intrinsic};
use super::values::{Regs, Value, Values, operand};
use crate::image::Needs;
use crate::isa::{Callee, MAX_STACK, Op, Operand, Reg, Size};
use crate::program::Program;

/// `vector` is the compiler's to say.
pub(crate) fn of(program: &Program, env: Environment<'_>) -> Needs {
    let mut needs = Needs { runs_through: true, ..Needs::default() };
    for (index, func) in program.funcs().iter().enumerate().filter(|(_, f)| program.is_reachable(f.start)) {
        let values = Values::of(program, *func);
        for at in func.start..func.end {
            let (op, regs) = (&program.ops()[at], values.at(at));
            needs.runs_through &=
                !program.is_reachable(at) || regs.is_some_and(|r| passes(op, at, index == 0, r));
            let intrinsic = regs.and_then(|regs| intrinsic::at(program, env, at, regs));
            if matches!(
                intrinsic,
                Some(Intrinsic::Field(..) | Intrinsic::Lookup(..) | Intrinsic::Overwrite(..))
            ) {
                continue;
            }
            needs.calls |= program.is_reachable(at) && matches!(op, Op::Call(Callee::Helper(_)));
            // r1 of the other functions is whatever they are given, and giving them the context is an escape.
            if let (0, Some(regs)) = (index, regs) {
                uses(op, regs, &mut needs);
            }
        }
    }
    needs
}

/// Whether nothing can end the run at this op: no fault, no want of fuel. Helpers may be abandoned, whatever becomes
/// of the call.
fn passes(op: &Op, at: usize, is_entry: bool, regs: &Regs) -> bool {
    let safe = |base: Reg, off: i16, size: Size| match regs[base.index()] {
        Value::Fp(start) => {
            let first = i64::from(start) + i64::from(off);
            (-i64::from(MAX_STACK)..=-i64::from(size.bytes())).contains(&first)
        }
        Value::Ctx(start) if is_entry => {
            let first = i64::from(start) + i64::from(off);
            u64::try_from(first).is_ok_and(|first| first + u64::from(size.bytes()) <= Needs::CTX_SAFE)
        }
        _ => false,
    };
    match *op {
        Op::Load { size, base, off, .. }
        | Op::Store { base, off, size, .. }
        | Op::Atomic { base, off, size, .. } => safe(base, off, size),
        Op::Call(_) => false,
        _ => op.target().is_none_or(|target| target > at),
    }
}

fn uses(op: &Op, regs: &Regs, needs: &mut Needs) {
    let is_ctx = |reg: Reg| regs[reg.index()].is_ctx();
    match *op {
        Op::Load { size, base, off, .. } => read(regs[base.index()], off, size, needs),
        Op::Store { base, off, size, src } => {
            read(regs[base.index()], off, size, needs);
            needs.ctx_escapes |= operand(src, regs).is_ctx();
        }
        Op::Atomic { base, off, size, src, .. } => {
            read(regs[base.index()], off, size, needs);
            needs.ctx_escapes |= is_ctx(src);
        }
        // Comparing addresses tells one context from another.
        Op::Branch { dst, src, .. } => {
            needs.ctx_escapes |= is_ctx(dst) || matches!(src, Operand::Reg(src) if is_ctx(src));
        }
        Op::Call(Callee::Poisoned(..)) => {}
        Op::Call(_) => needs.ctx_escapes |= (1..=5).filter_map(Reg::new).any(is_ctx),
        Op::Exit => needs.ctx_escapes |= is_ctx(Reg::R0),
        _ => {}
    }
}

fn read(base: Value, off: i16, size: Size, needs: &mut Needs) {
    match base {
        Value::Ctx(start) => match u64::try_from(i64::from(start) + i64::from(off)) {
            Ok(first) => mark(first, first + u64::from(size.bytes()) - 1, needs),
            Err(_) => needs.ctx_escapes = true,
        },
        base => needs.ctx_escapes |= base.is_ctx(),
    }
}

fn mark(first: u64, last: u64, needs: &mut Needs) {
    for word in first / 8..=last / 8 {
        needs.ctx_words |= 1 << word.min(63);
    }
}
