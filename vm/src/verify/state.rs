//! The state of one path: frames with registers and stack, and the references it holds.

use super::value::{Dynptr, Kind, Val};
use crate::isa::{MAX_STACK, Reg};
use std::rc::Rc;

/// Bytes of a stack slot.
pub const SLOT: usize = 8;
/// Slots of a frame.
pub const SLOTS: usize = MAX_STACK as usize / SLOT;

/// What one byte of the stack holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Byte {
    /// Never written. Privileged programs may read it.
    Invalid,
    /// Any value.
    Misc,
    /// Zero.
    Zero,
    /// Part of the slot's spilled value.
    Spill,
}

impl Byte {
    /// As the kernel's log shows it.
    pub const fn letter(self) -> char {
        match self {
            Byte::Invalid => '?',
            Byte::Misc => 'm',
            Byte::Zero => '0',
            Byte::Spill => 'r',
        }
    }
}

/// Eight bytes of stack. Byte 0 is the one at the lowest address.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// What each byte holds.
    pub bytes: [Byte; SLOT],
    /// The value whose lowest bytes are the [`Byte::Spill`] ones, which begin at byte 0. A whole value
    /// covers eight; a number may be spilled narrower, and is then zero-extended here.
    pub spill: Option<Rc<Val>>,
}

impl Slot {
    /// Never written.
    pub const INVALID: Slot = Slot { bytes: [Byte::Invalid; SLOT], spill: None };

    /// The whole value that is spilled here.
    pub fn whole(&self) -> Option<&Val> {
        let whole = self.bytes[SLOT - 1] == Byte::Spill;
        self.spill.as_deref().filter(|_| whole)
    }

    /// Whether an address is spilled here.
    pub fn holds_pointer(&self) -> bool {
        self.whole().is_some_and(Val::is_pointer)
    }

    /// The half of a dynptr that is here.
    pub fn dynptr(&self) -> Option<(Dynptr, u32)> {
        match self.whole() {
            Some(Val { kind: Kind::Dynptr(half), reference, .. }) => Some((*half, *reference)),
            _ => None,
        }
    }

    /// Forgets the value but not that there is one.
    pub fn scrub(&mut self) {
        let Some(spill) = self.spill.take() else { return };
        let left = if spill.is_null() { Byte::Zero } else { Byte::Misc };
        self.bytes.iter_mut().filter(|b| **b == Byte::Spill).for_each(|b| *b = left);
    }

    /// Any value from now on; still never written, if it was not and this is not certain.
    pub fn perhaps_written(&mut self, byte: usize) {
        if self.bytes[byte] != Byte::Invalid {
            self.bytes[byte] = Byte::Misc;
        }
    }

    /// Spilled bytes.
    pub fn spilled(&self) -> usize {
        self.bytes.iter().filter(|b| **b == Byte::Spill).count()
    }
}

/// Why a frame was entered from a helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Callback {
    /// References held when it was entered; it must leave with the same.
    pub references: usize,
}

/// One function activation.
#[derive(Clone, Debug)]
pub struct Frame {
    /// r0 to r10.
    pub regs: [Val; Reg::COUNT],
    /// Slot `n` is the bytes from r10 - 8n - 8. Grows on demand.
    pub stack: Vec<Slot>,
    /// Index of the function.
    pub func: usize,
    /// Slot of the call.
    pub callsite: usize,
    /// Set when a helper calls this function.
    pub callback: Option<Callback>,
    /// Set while a helper that this frame called calls back.
    pub round: Option<Rc<Round>>,
}

/// One of the times that a helper calls back.
#[derive(Clone, Debug)]
pub struct Round {
    /// Slot of the helper's call.
    pub callsite: usize,
    /// Counted from 0.
    pub number: usize,
    /// On entry to the callback.
    pub state: State,
}

impl Frame {
    /// A frame with nothing but r10.
    pub fn new(index: usize, func: usize, callsite: usize) -> Frame {
        let mut regs = [Val::NOT_INIT; Reg::COUNT];
        regs[Reg::FP.index()] = Val::pointer(Kind::Stack(index as u8));
        Frame { regs, stack: Vec::new(), func, callsite, callback: None, round: None }
    }

    /// The slot, made if it is not there yet.
    pub fn slot_mut(&mut self, slot: usize) -> &mut Slot {
        if self.stack.len() <= slot {
            self.stack.resize(slot + 1, Slot::INVALID);
        }
        &mut self.stack[slot]
    }

    /// The slot; one never written reads as such.
    pub fn slot(&self, slot: usize) -> &Slot {
        self.stack.get(slot).unwrap_or(&Slot::INVALID)
    }
}

/// Slot and byte of an offset from r10, which is negative and at least -512.
pub fn place(off: i64) -> (usize, usize) {
    let below = (-off - 1) as usize;
    (below / SLOT, SLOT - 1 - below % SLOT)
}

/// A reference held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// As in [`Val::reference`].
    pub id: u32,
    /// Slot of the instruction that got it.
    pub insn: usize,
}

/// One path.
#[derive(Clone, Debug)]
pub struct State {
    /// Outermost first. Shared with the states this one was copied from, until changed.
    pub frames: Vec<Rc<Frame>>,
    /// In order of acquisition.
    pub references: Vec<Reference>,
}

impl State {
    /// The innermost frame.
    pub fn frame(&self) -> &Frame {
        &self.frames[self.frames.len() - 1]
    }

    /// The innermost frame, to change.
    pub fn frame_mut(&mut self) -> &mut Frame {
        let last = self.frames.len() - 1;
        self.frame_at_mut(last)
    }

    /// A frame by index, to change.
    pub fn frame_at_mut(&mut self, index: usize) -> &mut Frame {
        Rc::make_mut(&mut self.frames[index])
    }

    /// A register.
    pub fn reg(&self, reg: Reg) -> &Val {
        &self.frame().regs[reg.index()]
    }

    /// Sets a register.
    pub fn set(&mut self, reg: Reg, val: Val) {
        self.frame_mut().regs[reg.index()] = val;
    }

    /// Changes every value, in registers and whole slots of all frames, for which `applies` holds.
    pub fn update(&mut self, applies: impl Fn(&Val) -> bool, change: impl Fn(&mut Val)) {
        for frame in &mut self.frames {
            let spilled = |s: &Slot| s.spill.as_deref().is_some_and(&applies);
            if !frame.regs.iter().any(&applies) && !frame.stack.iter().any(spilled) {
                continue;
            }
            let frame = Rc::make_mut(frame);
            frame.regs.iter_mut().filter(|v| applies(v)).for_each(&change);
            for spill in frame.stack.iter_mut().filter_map(|s| s.spill.as_mut()).filter(|v| applies(v)) {
                change(Rc::make_mut(spill));
            }
        }
    }
}
