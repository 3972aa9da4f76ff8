//! Which functions of a program are translated into their callers.

use crate::isa::{Callee, Const, Op};
use crate::program::{Func, Program};

/// Ops that are worth less than a call, with what they call in turn.
const SMALL: usize = 16;
/// Ops that all the copies of one function may have.
const COPIES: usize = 200;
/// Ops that all the copies in a program may have.
const BUDGET: usize = 4000;

/// For each function whether every call of it is replaced by its body. Programs have no recursion.
pub(crate) fn decide(program: &Program) -> Vec<bool> {
    let funcs = program.funcs();
    let mut inlined = vec![false; funcs.len()];
    if program.has_callbacks() {
        return inlined;
    }
    let mut budget = BUDGET;
    let mut size = vec![None; funcs.len()];
    for index in 0..funcs.len() {
        visit(program, index, &mut size, &mut inlined, &mut budget);
    }
    inlined
}

/// Callees first: what is inlined into them counts for them.
fn visit(
    program: &Program,
    index: usize,
    size: &mut [Option<usize>],
    inlined: &mut [bool],
    budget: &mut usize,
) -> usize {
    if let Some(size) = size[index] {
        return size;
    }
    let func = program.funcs()[index];
    let callees: Vec<usize> = calls(program, func).collect();
    let inner: usize = callees
        .into_iter()
        .map(|callee| {
            let size = visit(program, callee, size, inlined, budget);
            if inlined[callee] { size } else { 0 }
        })
        .sum();
    let total = (func.start..func.end).filter(|at| program.is_reachable(*at)).count() + inner;
    size[index] = Some(total);
    let callers = program.funcs().iter().map(|func| calls(program, *func).filter(|c| *c == index).count());
    let callers: usize = callers.sum();
    let cost = total * callers;
    if index != 0 && callers > 0 && cost <= *budget && (total <= SMALL || cost <= COPIES) {
        inlined[index] = true;
        *budget -= cost;
    }
    total
}

fn calls(program: &Program, func: Func) -> impl Iterator<Item = usize> + '_ {
    (func.start..func.end).filter(|at| program.is_reachable(*at)).filter_map(|at| match program.ops()[at] {
        Op::Call(Callee::Func(callee)) => Some(callee as usize),
        Op::LoadConst { value: Const::Func(_), .. } => None,
        _ => None,
    })
}
