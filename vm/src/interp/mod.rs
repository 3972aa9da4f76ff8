//! The interpreter: the semantic reference that the compiler is compared with, and `--no-jit`.
//!
//! Simple rather than fast. It works on the host's memory like compiled code and counts fuel at the same
//! places, so r0, memory and the moment a run is cut short are the same on both.

mod memory;

use crate::alu;
use crate::contract::TAIL_CALL_FAILED;
use crate::isa::{AtomicOp, Callee, Const, MAX_FRAMES, MAX_STACK, MapIdx, Op, Operand, Reg, TAIL_CALL};
use crate::program::Program;
use std::cell::Cell;
use thiserror::Error;

/// Why a run ended without a result. Compiled code returns 0 instead.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Trap {
    /// Too many back-edges and local calls.
    #[error("out of fuel")]
    OutOfFuel,
    /// A call was reached that the loader had poisoned.
    #[error("reached the poisoned call of helper {0}")]
    Poisoned(u32),
    /// More nested functions than a checked program can have: the host calls back in circles.
    #[error("more than {0} nested functions")]
    TooDeep(usize),
    /// A callback address that is no function of the program.
    #[error("{0:#x} is no function of this program")]
    NotAFunction(u64),
    /// The host has no such helper.
    #[error("the host has no helper {0}")]
    NoHelper(u32),
}

/// Calls a function of the running program: what helpers do with callbacks. Takes the address that the
/// program passed and r1-r5.
pub type Callback<'a> = dyn FnMut(u64, [u64; 5]) -> Result<u64, Trap> + 'a;

/// What the outside provides to an interpreted program. Methods take `&self` because a helper may call
/// back into the program, which then calls helpers again.
pub trait Host {
    /// Calls a helper. [`TAIL_CALL`] returns a target for [`Host::tail_call`], or 0 to fall through.
    fn helper(&self, id: u32, args: [u64; 5], call: &mut Callback<'_>) -> Result<u64, Trap>;

    /// The handle of a map, as helpers take it.
    fn map(&self, _map: MapIdx) -> u64 {
        0
    }

    /// The address of a map's directly accessible value.
    fn map_value(&self, _map: MapIdx) -> u64 {
        0
    }

    /// Runs the program that the tail call helper returned; its result is the result of the run.
    fn tail_call(&self, _target: u64, _ctx: u64) -> Result<u64, Trap> {
        Err(Trap::NoHelper(TAIL_CALL))
    }
}

/// Function addresses are this plus the function's index: no canonical x86-64 address.
const FUNC_TOKEN: u64 = 0xb9f0_0000_0000_0000;

/// Callbacks may nest on top of local calls; beyond this the host itself recurses.
const MAX_DEPTH: usize = 2 * MAX_FRAMES;

/// Runs a program from its first slot with r1-r5. `fuel` bounds back-edges and local calls.
///
/// # Safety
/// Every address that the program computes from `args`, the maps and the helpers' results must be valid
/// for the access it makes: the program was verified for this context, or is trusted.
pub unsafe fn run(program: &Program, args: [u64; 5], host: &dyn Host, fuel: u64) -> Result<u64, Trap> {
    Machine { program, host, fuel: Cell::new(fuel), depth: Cell::new(0) }.call(0, args)
}

struct Machine<'a> {
    program: &'a Program,
    host: &'a dyn Host,
    fuel: Cell<u64>,
    depth: Cell<usize>,
}

impl Machine<'_> {
    fn call(&self, func: u32, args: [u64; 5]) -> Result<u64, Trap> {
        if self.depth.get() == MAX_DEPTH {
            return Err(Trap::TooDeep(MAX_DEPTH));
        }
        self.depth.set(self.depth.get() + 1);
        let mut stack = Stack([0; MAX_STACK as usize]);
        let mut regs = [0; Reg::COUNT];
        regs[1..=5].copy_from_slice(&args);
        regs[Reg::FP.index()] = stack.top();
        let result = Frame { machine: self, regs }.run(self.program.funcs()[func as usize].start);
        self.depth.set(self.depth.get() - 1);
        result
    }

    fn call_token(&self, token: u64, args: [u64; 5]) -> Result<u64, Trap> {
        let func = token.wrapping_sub(FUNC_TOKEN);
        if func >= self.program.funcs().len() as u64 {
            return Err(Trap::NotAFunction(token));
        }
        // Compiled helpers burn for each call back; here the machine does it for them.
        self.burn()?;
        self.call(func as u32, args)
    }

    fn burn(&self) -> Result<(), Trap> {
        let left = self.fuel.get().checked_sub(1).ok_or(Trap::OutOfFuel)?;
        self.fuel.set(left);
        Ok(())
    }
}

#[repr(C, align(16))]
struct Stack([u8; MAX_STACK as usize]);

impl Stack {
    /// r10. The frame is only accessed through this address from now on.
    fn top(&mut self) -> u64 {
        self.0.as_mut_ptr_range().end.expose_provenance() as u64
    }
}

struct Frame<'a> {
    machine: &'a Machine<'a>,
    regs: [u64; Reg::COUNT],
}

impl Frame<'_> {
    fn run(mut self, start: usize) -> Result<u64, Trap> {
        let mut at = start;
        loop {
            let op = self.machine.program.ops()[at];
            let mut next = at + op.slots();
            match op {
                Op::Exit => return Ok(self.get(Reg::R0)),
                Op::Call(Callee::Helper(TAIL_CALL)) => {
                    if let Some(result) = self.tail_call()? {
                        return Ok(result);
                    }
                }
                Op::Jump { target } => next = self.jump(at, target)?,
                Op::Branch { cond, width, dst, src, target } => {
                    if alu::holds(cond, width, self.get(dst), self.operand(src)) {
                        next = self.jump(at, target)?;
                    }
                }
                Op::Call(callee) => self.call(callee)?,
                Op::Load { .. } | Op::Store { .. } | Op::Atomic { .. } => self.memory(op),
                _ => self.compute(op),
            }
            at = next;
        }
    }

    fn get(&self, reg: Reg) -> u64 {
        self.regs[reg.index()]
    }

    fn set(&mut self, reg: Reg, value: u64) {
        self.regs[reg.index()] = value;
    }

    fn operand(&self, operand: Operand) -> u64 {
        match operand {
            Operand::Reg(reg) => self.get(reg),
            Operand::Imm(imm) => i64::from(imm) as u64,
        }
    }

    fn args(&self) -> [u64; 5] {
        [1, 2, 3, 4, 5].map(|reg| self.regs[reg])
    }

    /// Any cycle contains a jump backwards, so burning there bounds every loop.
    fn jump(&self, from: usize, target: usize) -> Result<usize, Trap> {
        if target <= from {
            self.machine.burn()?;
        }
        Ok(target)
    }

    fn compute(&mut self, op: Op) {
        let (dst, value) = match op {
            Op::Alu { op, width, dst, src } => (dst, alu::alu(op, width, self.get(dst), self.operand(src))),
            Op::Neg { width, dst } => (dst, alu::neg(width, self.get(dst))),
            Op::MovSx { width, from, dst, src } => (dst, alu::movsx(width, from, self.get(src))),
            Op::Swap { op, size, dst } => (dst, alu::swap(op, size, self.get(dst))),
            Op::LoadConst { dst, value } => (dst, self.constant(value)),
            // Control flow, memory and `Second` do not get here.
            _ => return,
        };
        self.set(dst, value);
    }

    fn constant(&self, value: Const) -> u64 {
        match value {
            Const::Number(number) => number,
            Const::Map(map) => self.machine.host.map(map),
            Const::MapValue(map, off) => self.machine.host.map_value(map).wrapping_add(u64::from(off)),
            Const::Func(func) => FUNC_TOKEN + u64::from(func),
        }
    }

    fn call(&mut self, callee: Callee) -> Result<(), Trap> {
        let (machine, args) = (self.machine, self.args());
        let result = match callee {
            Callee::Helper(id) => {
                machine.host.helper(id, args, &mut |f, args| machine.call_token(f, args))?
            }
            Callee::Func(func) => {
                machine.burn()?;
                machine.call(func, args)?
            }
            Callee::Poisoned(_, id) => return Err(Trap::Poisoned(id)),
        };
        self.called(result);
        Ok(())
    }

    /// A call clobbers r1-r5. They become zero so that both engines agree and nothing leaks.
    fn called(&mut self, result: u64) {
        self.regs[..=5].fill(0);
        self.set(Reg::R0, result);
    }

    /// The result of the program that takes over; `None` when there is none and this one goes on.
    fn tail_call(&mut self) -> Result<Option<u64>, Trap> {
        let (machine, args) = (self.machine, self.args());
        let target = machine.host.helper(TAIL_CALL, args, &mut |f, args| machine.call_token(f, args))?;
        if target != 0 {
            return machine.host.tail_call(target, args[0]).map(Some);
        }
        self.called(TAIL_CALL_FAILED as u64);
        Ok(None)
    }

    fn address(&self, base: Reg, off: i16) -> u64 {
        self.get(base).wrapping_add_signed(i64::from(off))
    }

    fn memory(&mut self, op: Op) {
        match op {
            Op::Load { size, signed, dst, base, off } => {
                // SAFETY: `run`'s caller vouches for every address the program accesses.
                let value = unsafe { memory::read(size, self.address(base, off)) };
                self.set(dst, if signed { alu::sign_extend(size, value) } else { value });
            }
            Op::Store { size, base, off, src } => {
                // SAFETY: as above.
                unsafe { memory::write(size, self.address(base, off), self.operand(src)) };
            }
            Op::Atomic { op, fetch, size, base, off, src } => {
                let (addr, operand, expected) = (self.address(base, off), self.get(src), self.get(Reg::R0));
                // SAFETY: as above.
                let old = unsafe { memory::modify(op, size, addr, operand, expected) };
                if fetch {
                    self.set(if op == AtomicOp::Cmpxchg { Reg::R0 } else { src }, old);
                }
            }
            _ => {}
        }
    }
}
