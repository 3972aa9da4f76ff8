//! What registers hold before each op of a function: a forward analysis over constants and addresses.

use crate::alu;
use crate::isa::{AluOp, AtomicOp, Callee, Const, MapIdx, Op, Operand, Reg, Width};
use crate::program::{Func, Program};

/// What a register may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// Anything but an address of this frame or the context's.
    Any,
    /// This number.
    Number(u64),
    /// r10 plus a constant.
    Fp(i32),
    /// The function's r1 plus a constant: of the entry function, the context.
    Ctx(i32),
    /// The handle of a map.
    Map(MapIdx),
    /// Anything; perhaps made from an address of the frame, from the context's.
    Mixed {
        /// From an address of the frame.
        fp: bool,
        /// From the context's address.
        ctx: bool,
    },
}

use Value::{Any, Ctx, Fp, Map, Mixed, Number};

impl Value {
    /// What is known of either.
    fn join(self, other: Value) -> Value {
        if self == other { self } else { mixed(self, other) }
    }

    /// Whether it may be made from an address of the frame.
    pub(crate) fn is_fp(self) -> bool {
        matches!(self, Fp(_) | Mixed { fp: true, .. })
    }

    /// Whether it may be made from the context's address.
    pub(crate) fn is_ctx(self) -> bool {
        matches!(self, Ctx(_) | Mixed { ctx: true, .. })
    }
}

/// The result of an operation on both that is not followed.
fn mixed(a: Value, b: Value) -> Value {
    let (fp, ctx) = (a.is_fp() || b.is_fp(), a.is_ctx() || b.is_ctx());
    if fp || ctx { Mixed { fp, ctx } } else { Any }
}

/// Registers before an op.
pub(crate) type Regs = [Value; Reg::COUNT];

/// Registers before each op of a function; `None` before ops that no path reaches.
pub(crate) struct Values {
    start: usize,
    before: Vec<Option<Regs>>,
}

impl Values {
    /// Walks a function until nothing changes.
    pub(crate) fn of(program: &Program, func: Func) -> Values {
        let len = func.end - func.start;
        let mut values = Values { start: func.start, before: vec![None; len] };
        let mut pending = vec![func.start];
        values.before[0] = Some(on_entry());
        while let Some(at) = pending.pop() {
            values.walk(program, func, at, &mut pending);
        }
        values
    }

    /// Registers before the op at this slot.
    pub(crate) fn at(&self, slot: usize) -> Option<&Regs> {
        self.before.get(slot.checked_sub(self.start)?)?.as_ref()
    }

    /// From one op to where the path ends or brings nothing new.
    fn walk(&mut self, program: &Program, func: Func, start: usize, pending: &mut Vec<usize>) {
        let mut at = start;
        loop {
            let op = &program.ops()[at];
            let Some(mut regs) = self.before[at - self.start] else { return };
            step(op, &mut regs);
            if let Some(target) = op.target()
                && self.flow(target, &regs)
            {
                pending.push(target);
            }
            at += op.slots();
            if !op.falls_through() || at >= func.end || !program.is_reachable(at) || !self.flow(at, &regs) {
                return;
            }
        }
    }

    /// Merges registers into those before an op; whether that changed anything.
    fn flow(&mut self, to: usize, regs: &Regs) -> bool {
        let Some(place) = to.checked_sub(self.start).and_then(|at| self.before.get_mut(at)) else {
            return false;
        };
        let merged = place.map_or(*regs, |old| std::array::from_fn(|i| old[i].join(regs[i])));
        let changed = *place != Some(merged);
        *place = Some(merged);
        changed
    }
}

fn on_entry() -> Regs {
    let mut regs = [Any; Reg::COUNT];
    regs[1] = Ctx(0);
    regs[Reg::FP.index()] = Fp(0);
    regs
}

/// Registers behind an op, from those before it.
pub(crate) fn step(op: &Op, regs: &mut Regs) {
    if let Op::Call(callee) = op {
        // A call leaves zeros in r1-r5 on every engine.
        regs[1..=5].fill(if matches!(callee, Callee::Poisoned(..)) { Any } else { Number(0) });
        regs[0] = Any;
    }
    if let Some(dst) = op.written() {
        regs[dst.index()] = computed(op, regs);
    }
    if matches!(op, Op::Atomic { op: AtomicOp::Cmpxchg, .. }) {
        regs[0] = Any;
    }
}

/// The value that an op leaves in the register it writes.
fn computed(op: &Op, regs: &Regs) -> Value {
    match *op {
        Op::Alu { op, width, dst, src } => binary(op, width, regs[dst.index()], operand(src, regs)),
        Op::Neg { width, dst } => unary(regs[dst.index()], |n| alu::neg(width, n)),
        Op::MovSx { width, from, src, .. } => unary(regs[src.index()], |n| alu::movsx(width, from, n)),
        Op::Swap { op, size, dst } => unary(regs[dst.index()], |n| alu::swap(op, size, n)),
        Op::LoadConst { value: Const::Number(n), .. } => Number(n),
        Op::LoadConst { value: Const::Map(map), .. } => Map(map),
        _ => Any,
    }
}

/// The value of an operand.
pub(crate) fn operand(operand: Operand, regs: &Regs) -> Value {
    match operand {
        Operand::Reg(reg) => regs[reg.index()],
        Operand::Imm(imm) => Number(i64::from(imm) as u64),
    }
}

fn unary(value: Value, apply: impl Fn(u64) -> u64) -> Value {
    match value {
        Number(n) => Number(apply(n)),
        other => mixed(other, Any),
    }
}

fn binary(op: AluOp, width: Width, dst: Value, src: Value) -> Value {
    match (op, width, dst, src) {
        (AluOp::Mov, Width::W64, _, src) => src,
        (AluOp::Mov, Width::W32, _, Number(n)) => Number(n & 0xffff_ffff),
        (AluOp::Mov, Width::W32, _, src) => mixed(src, Any),
        (_, _, Number(a), Number(b)) => Number(alu::alu(op, width, a, b)),
        (AluOp::Add, Width::W64, Fp(_) | Ctx(_), Number(n)) => moved(dst, n as i64),
        (AluOp::Add, Width::W64, Number(n), Fp(_) | Ctx(_)) => moved(src, n as i64),
        (AluOp::Sub, Width::W64, Fp(_) | Ctx(_), Number(n)) => moved(dst, (n as i64).wrapping_neg()),
        _ => mixed(dst, src),
    }
}

fn moved(value: Value, by: i64) -> Value {
    let add = |off: i32| i32::try_from(by).ok().and_then(|by| off.checked_add(by));
    match value {
        Fp(off) => add(off).map_or(mixed(value, Any), Fp),
        Ctx(off) => add(off).map_or(mixed(value, Any), Ctx),
        other => mixed(other, Any),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{LoadEnv, decode};

    struct Nothing;

    impl LoadEnv for Nothing {
        fn helper_exists(&self, _: u32) -> bool {
            true
        }
    }

    fn at_end(source: &str) -> Regs {
        let insns = crate::asm::assemble(source).unwrap();
        let program = decode(&insns, &mut Nothing).unwrap();
        let end = program.ops().len() - 1;
        *Values::of(&program, program.funcs()[0]).at(end).unwrap()
    }

    #[test]
    fn constants_and_addresses_are_followed_through_arithmetic() {
        let regs =
            at_end("mov r2, 5; mul r2, 3; mov r3, r10; add r3, -16; mov r4, r1; add r4, r2; mov r0, 0; exit");
        assert_eq!(regs[2..=4], [Number(15), Fp(-16), Ctx(15)]);
    }

    #[test]
    fn a_merge_keeps_what_both_sides_agree_on() {
        let regs = at_end(
            "mov r0, 0; mov r2, 1; mov r3, r10; mov r4, r1; jeq r1, 7, skip; mov r2, 2; mov r4, 3; skip: exit",
        );
        assert_eq!(regs[2..=4], [Any, Fp(0), Mixed { fp: false, ctx: true }]);
    }

    #[test]
    fn what_a_loop_changes_is_not_constant() {
        let regs = at_end("mov r0, 0; mov r2, 9; mov r3, 1; l: add r3, 1; jne r3, 5, l; exit");
        assert_eq!(regs[2..=3], [Number(9), Any]);
    }
}
