//! Which numbers matter: those that may end in an address, a size, a decided comparison or a callback's
//! result. Of the others a path needs to know nothing but that they are numbers, and two states that differ
//! in them are the same to the verifier. Counters and histogram buckets are such numbers.
//!
//! A backward dataflow like [`live`](super::live). What makes a number matter is partly known from the
//! program alone, partly only when it is walked: at which slots a comparison was decided by its operands, and
//! where an address was moved by a number. Those slots are given as `decisive`; when a walk finds another
//! one after it relied on their absence, the program is walked again ([`Verifier::run`](super::explore)).
//!
//! Why that is sound: let a new state differ from an old one in numbers that do not matter. Every run from
//! the new state makes the same accesses, calls and exits as some run from the old one or takes sides of
//! comparisons that were both walked; comparisons of two registers count as mattering, since they refine
//! each other.

use super::live::{Effect, Live, Liveness, Value, bit, operand, rounds};
use super::state::SLOTS;
use crate::isa::{AluOp, Callee, Op, Operand, Reg, Width};
use crate::program::Program;
use bpftime_abi::helper::{self, Arg};

/// Numbers that matter, before each slot.
pub struct Needs {
    before: Vec<Live>,
}

const _: () = assert!(SLOTS == u64::BITS as usize);

impl Needs {
    /// Analyses a program. `decisive` has an entry per slot.
    pub fn of(program: &Program, live: &Liveness, decisive: &[bool]) -> Needs {
        let mut needs = Needs { before: vec![Live::default(); program.ops().len()] };
        if !(0..rounds(program)).any(|_| !needs.round(program, live, decisive)) {
            needs.before.fill(Live::ALL);
        }
        needs
    }

    /// Before the instruction at this slot.
    pub fn before(&self, at: usize) -> Live {
        self.before[at]
    }

    /// In the frame of a caller, while the call at this slot is under way. A callback is called again.
    pub fn during(&self, at: usize) -> Live {
        self.before[at].join(self.before.get(at + 1).copied().unwrap_or_default())
    }

    fn round(&mut self, program: &Program, live: &Liveness, decisive: &[bool]) -> bool {
        let mut changed = false;
        for (index, func) in program.funcs().iter().enumerate() {
            for at in (func.start..func.end).rev() {
                let place = Place { program, live, index, at, decisive: decisive[at] };
                let before = self.step(&place);
                changed |= before != self.before[at];
                self.before[at] = before;
            }
        }
        changed
    }

    fn step(&self, place: &Place<'_>) -> Live {
        let op = &place.program.ops()[place.at];
        let mut after = Live::default();
        if op.falls_through() {
            after = self.before.get(place.at + op.slots()).copied().unwrap_or_default();
        }
        if let Some(target) = op.target() {
            after = after.join(self.before[target]);
        }
        let mut need = after;
        if let Some(dst) = op.written() {
            need.regs &= !bit(dst);
        }
        let flows = |dst: Reg| after.regs & bit(dst) != 0;
        match *op {
            Op::Alu { op, width, dst, src } => {
                let moves = matches!(op, AluOp::Add | AluOp::Sub) && width == Width::W64 && place.decisive;
                if flows(dst) || moves {
                    need.regs |= operand(src) | if op == AluOp::Mov { 0 } else { bit(dst) };
                }
            }
            Op::Neg { dst, .. } | Op::Swap { dst, .. } if flows(dst) => need.regs |= bit(dst),
            Op::MovSx { dst, src, .. } if flows(dst) => need.regs |= bit(src),
            Op::Load { dst, .. } if flows(dst) => need.slots |= place.effect().slots_read,
            Op::Store { src, .. } => place.store(&after, &mut need, src),
            Op::Atomic { src, .. } => {
                place.store(&after, &mut need, Operand::Reg(src));
                need.slots |= place.effect().slots_read;
            }
            // Two numbers refine each other, and what they are linked to.
            Op::Branch { dst, src: Operand::Reg(src), .. } => need.regs |= bit(dst) | bit(src),
            Op::Branch { dst, .. } if place.decisive => need.regs |= bit(dst),
            Op::Call(callee) => self.call(place, &mut need, callee),
            // A program's own result matters where its type says which there are.
            Op::Exit if place.index != 0 || place.decisive => need.regs |= bit(Reg::R0),
            _ => {}
        }
        need
    }

    fn call(&self, place: &Place<'_>, need: &mut Live, callee: Callee) {
        need.regs &= !0x3f;
        match callee {
            Callee::Helper(id) => {
                let Some(proto) = helper::proto(id) else {
                    *need = Live::ALL;
                    return;
                };
                for (n, arg) in proto.args.iter().enumerate() {
                    // Addresses are always compared; these are numbers, or may be NULL.
                    if !matches!(arg, Arg::Any | Arg::Ctx | Arg::Map) {
                        need.regs |= 2 << n;
                    }
                    if *arg == Arg::CallbackCtx {
                        need.slots = u64::MAX;
                    }
                    // The index decided whether there is an element.
                    if *arg == Arg::MapKey && place.decisive {
                        need.slots |= place.effect().slots_read;
                    }
                }
            }
            Callee::Func(func) => {
                let start = place.program.funcs()[func as usize].start;
                need.regs |= self.before[start].regs & 0x3e;
                // The callee reads them as it likes.
                need.slots |= place.effect().slots_read;
            }
            Callee::Poisoned(..) => {}
        }
    }
}

/// One instruction.
struct Place<'a> {
    program: &'a Program,
    live: &'a Liveness,
    index: usize,
    at: usize,
    decisive: bool,
}

impl Place<'_> {
    fn effect(&self) -> &Effect {
        self.live.effect(self.at)
    }

    /// What is stored matters if the place does.
    fn store(&self, after: &Live, need: &mut Live, src: Operand) {
        let written = self.effect().slots_written;
        let known = match self.program.ops()[self.at] {
            Op::Store { base, .. } | Op::Atomic { base, .. } => self.live.value(self.at, base),
            _ => None,
        };
        need.slots &= !written;
        let matters = match known {
            // Only slots of this frame, not exactly known which bytes: any that matters will do.
            Some(Value::Fp(_) | Value::Lost) => after.slots != 0,
            // Perhaps the stack of a caller, or of this frame through memory.
            _ => self.index != 0 || self.live.escapes(self.index),
        };
        if matters {
            need.regs |= operand(src);
        }
    }
}
