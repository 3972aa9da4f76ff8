//! ALU instructions: numbers go through [`num`], addresses are moved.

use super::error::{Check, access, invalid};
use super::explore::Verifier;
use super::num::{self, Scalar};
use super::state::State;
use super::value::{Kind, Val};
use crate::isa::{AluOp, Const, Op, Operand, Reg, Size, SwapOp, Width};

/// `BPF_MAX_VAR_OFF`: addresses stay within this distance of where they began, so that sums never wrap.
pub(super) const MAX_OFF: i64 = 1 << 29;

impl Verifier<'_> {
    /// A readable operand. Immediates are sign-extended.
    pub fn operand(&self, state: &State, src: Operand) -> Check<Val> {
        match src {
            Operand::Reg(reg) => self.read(state, reg),
            Operand::Imm(imm) => Ok(Val::constant(i64::from(imm) as u64)),
        }
    }

    pub fn load_const(&mut self, state: &mut State, dst: Reg, value: Const) {
        let val = match value {
            Const::Number(x) => Val::constant(x),
            Const::Map(map) => Val::pointer(Kind::Map(map)),
            Const::MapValue(map, off) => Val { off: off as i32, ..Val::pointer(Kind::MapValue(map)) },
            Const::Func(func) => Val::pointer(Kind::Func(func)),
        };
        state.set(dst, val);
    }

    pub fn alu(&mut self, state: &mut State, at: usize, op: Op) -> Check {
        let Op::Alu { op, width, dst, src } = op else { return Ok(()) };
        if op == AluOp::Mov {
            return self.mov(state, width, dst, src);
        }
        let right = self.operand(state, src)?;
        let left = self.read(state, dst)?;
        let result = if left.is_scalar() && right.is_scalar() {
            Val::scalar(num::alu(op, width, &left.num, &right.num))
        } else {
            self.decides(at);
            moved(op, width, dst, src, &left, &right)?
        };
        state.set(dst, result);
        Ok(())
    }

    fn mov(&mut self, state: &mut State, width: Width, dst: Reg, src: Operand) -> Check {
        let mut val = self.operand(state, src)?;
        if width == Width::W32 {
            // An address that is cut in half is a number, for who may see addresses.
            let num = if val.is_scalar() { val.num } else { Scalar::UNKNOWN };
            let half = num::alu(AluOp::Mov, Width::W32, &num, &num);
            if !val.is_scalar() || half != val.num {
                state.set(dst, Val::scalar(half));
                return Ok(());
            }
        }
        if let Operand::Reg(src) = src {
            val = self.linked(state, src, val);
        }
        state.set(dst, val);
        Ok(())
    }

    /// Gives a number an id before it is copied, so that its copies are refined with it.
    fn linked(&mut self, state: &mut State, src: Reg, mut val: Val) -> Val {
        if val.is_scalar() && val.id == 0 && val.num.constant().is_none() {
            val.id = self.fresh_id();
            state.set(src, val);
        }
        val
    }

    /// As [`Verifier::linked`], for a register that is spilled.
    pub fn linked_copy(&mut self, state: &mut State, src: Operand) -> Check<Val> {
        let val = self.operand(state, src)?;
        Ok(match src {
            Operand::Reg(reg) => self.linked(state, reg, val),
            Operand::Imm(_) => val,
        })
    }

    pub fn neg(&mut self, state: &mut State, width: Width, dst: Reg) -> Check {
        self.unary(state, dst, dst, |num| num::neg(width, num))
    }

    pub fn movsx(&mut self, state: &mut State, width: Width, from: Size, dst: Reg, src: Reg) -> Check {
        self.unary(state, dst, src, |num| num::movsx(width, from, num))
    }

    pub fn swap(&mut self, state: &mut State, op: SwapOp, size: Size, dst: Reg) -> Check {
        self.unary(state, dst, dst, |num| num::swap(op, size, num))
    }

    fn unary(&mut self, state: &mut State, dst: Reg, src: Reg, f: impl Fn(&Scalar) -> Scalar) -> Check {
        let val = self.read(state, src)?;
        let num = if val.is_scalar() { val.num } else { Scalar::UNKNOWN };
        state.set(dst, Val::scalar(f(&num)));
        Ok(())
    }
}

/// The result of an operation with an address in it.
fn moved(op: AluOp, width: Width, dst: Reg, src: Operand, left: &Val, right: &Val) -> Check<Val> {
    if left.is_pointer() && right.is_pointer() {
        return if op == AluOp::Sub {
            Ok(Val::scalar(distance(width)))
        } else {
            access(format!("R{} pointer {} pointer prohibited", dst.index(), op.sign()))
        };
    }
    let reg = if left.is_pointer() { dst.index() } else { source(src, dst) };
    if width == Width::W32 && op == AluOp::Sub {
        return Ok(Val::scalar(distance(width)));
    }
    if width == Width::W32 {
        return access(format!("R{reg} 32-bit pointer arithmetic prohibited"));
    }
    match op {
        AluOp::Add if left.is_pointer() => shifted(reg, left, &right.num, AluOp::Add),
        AluOp::Add => shifted(reg, right, &left.num, AluOp::Add),
        AluOp::Sub if left.is_pointer() => shifted(reg, left, &right.num, AluOp::Sub),
        AluOp::Sub => access(format!("R{} tried to subtract pointer from scalar", dst.index())),
        AluOp::And | AluOp::Or | AluOp::Xor => {
            access(format!("R{reg} bitwise operator {} on pointer prohibited", op.sign()))
        }
        _ => access(format!("R{reg} pointer arithmetic with {} operator prohibited", op.sign())),
    }
}

/// A difference that is not followed.
fn distance(width: Width) -> Scalar {
    Scalar::of_width(width.bits())
}

fn source(src: Operand, dst: Reg) -> usize {
    match src {
        Operand::Reg(reg) => reg.index(),
        Operand::Imm(_) => dst.index(),
    }
}

/// An address, moved up or down by a number.
fn shifted(reg: usize, ptr: &Val, by: &Scalar, op: AluOp) -> Check<Val> {
    let name = ptr.type_name();
    if ptr.nullable {
        let reason = format!("R{reg} pointer arithmetic on {name} prohibited, null-check it first");
        return access(reason);
    }
    if matches!(ptr.kind, Kind::Map(_)) && by.constant() == Some(0) {
        return Ok(*ptr);
    }
    if matches!(ptr.kind, Kind::Map(_) | Kind::Func(_)) {
        return access(format!("R{reg} pointer arithmetic on {name} prohibited"));
    }
    check_step(name, by)?;
    if op == AluOp::Sub && matches!(ptr.kind, Kind::Stack(_)) {
        return access(format!("R{reg} subtraction from stack pointer prohibited"));
    }
    let mut result = *ptr;
    result.id = 0;
    let step = by.constant().map(|x| x as i64).map(|x| if op == AluOp::Sub { -x } else { x });
    match step {
        Some(step) => result.off = (i64::from(ptr.off) + step).clamp(-2 * MAX_OFF, 2 * MAX_OFF) as i32,
        None => result.num = num::alu(op, Width::W64, &ptr.num, by),
    }
    check_place(name, &result)?;
    Ok(result)
}

/// How far one step may go.
fn check_step(name: &str, by: &Scalar) -> Check {
    if let Some(x) = by.constant() {
        let x = x as i64;
        if x >= MAX_OFF || x <= -MAX_OFF {
            return invalid(format!("math between {name} pointer and {x} is not allowed"));
        }
        return Ok(());
    }
    let min = by.wide.smin;
    if min == i64::MIN {
        return invalid(format!(
            "math between {name} pointer and register with unbounded min value is not allowed"
        ));
    }
    if min >= MAX_OFF || min <= -MAX_OFF {
        return invalid(format!("value {min} makes {name} pointer be out of bounds"));
    }
    Ok(())
}

/// How far an address may be from where it began.
fn check_place(name: &str, ptr: &Val) -> Check {
    let off = i64::from(ptr.off);
    if off >= MAX_OFF || off <= -MAX_OFF {
        return invalid(format!("{name} pointer offset {off} is not allowed"));
    }
    // The upper end is checked where memory is accessed.
    let min = ptr.num.wide.smin;
    if min <= -MAX_OFF || min >= MAX_OFF {
        return invalid(format!("value {min} makes {name} pointer be out of bounds"));
    }
    Ok(())
}
