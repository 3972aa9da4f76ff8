//! Dynptrs: two slots of the stack that only helpers may look into. One is made once, of a map value or of a ring buffer
//! record; memory that it gives out ends with it. What is written over one ends it, unless it must be given up.

use super::args::Call;
use super::error::{Check, access, invalid};
use super::explore::Verifier;
use super::memory::Span;
use super::state::{Byte, SLOT, Slot, State, place};
use super::value::{Dynptr, Kind, Val};
use crate::isa::{MAX_STACK, Reg};
use std::rc::Rc;

/// Bytes of a dynptr.
const SIZE: i64 = 2 * SLOT as i64;

/// Where a dynptr is: the frame, and the slot of its first half. The second half is in the slot before that.
struct Place {
    frame: usize,
    first: usize,
}

impl Verifier<'_> {
    /// A dynptr that a helper makes.
    pub fn dynptr_made(&mut self, state: &mut State, reg: Reg, val: Val, record: bool, call: &Call) -> Check {
        let made = "Dynptr has to be an uninitialized dynptr";
        if val.kind == Kind::DynptrAddr {
            return invalid(made.into());
        }
        let at = self.dynptr_place(state, reg, &val, made)?;
        for slot in [at.first, at.first - 1] {
            end_at(state, at.frame, slot)?;
        }
        // As many numbers as the kernel gives.
        let mut reference = self.fresh_id();
        if record {
            reference = self.fresh_id();
            state.references.push(super::state::Reference { id: reference, insn: call.at });
        }
        for (slot, first) in [(at.first, true), (at.first - 1, false)] {
            let half = Val { reference, ..Val::pointer(Kind::Dynptr(Dynptr { record, first })) };
            let slot = state.frame_at_mut(at.frame).slot_mut(slot);
            *slot = Slot { bytes: [Byte::Spill; SLOT], spill: Some(Rc::new(half)) };
        }
        Ok(())
    }

    /// A dynptr that a helper uses; its reference.
    pub fn dynptr_used(&mut self, state: &State, reg: Reg, val: Val) -> Check<u32> {
        if val.kind == Kind::DynptrAddr {
            return Ok(val.reference);
        }
        let uninit = format!("Expected an initialized dynptr as arg #{}", reg.index() - 1);
        let at = self.dynptr_place(state, reg, &val, &uninit)?;
        match whole(state, &at) {
            Some((_, reference)) => Ok(reference),
            None => invalid(uninit),
        }
    }

    /// A dynptr of a record that a helper gives up.
    pub fn dynptr_given_up(&mut self, state: &State, reg: Reg, val: Val, call: &mut Call) -> Check {
        if val.kind == Kind::DynptrAddr {
            return invalid("cannot release unowned const bpf_dynptr".into());
        }
        let unacquired = format!("arg {} is an unacquired reference", reg.index());
        let at = self.dynptr_place(state, reg, &val, &unacquired)?;
        match whole(state, &at) {
            Some((Dynptr { record: true, .. }, reference)) if self.is_own(state, reference) => {
                call.released = reference;
                Ok(())
            }
            _ => invalid(unacquired),
        }
    }

    /// Where a register says that a dynptr is.
    fn dynptr_place(&mut self, state: &State, reg: Reg, val: &Val, otherwise: &str) -> Check<Place> {
        let n = reg.index();
        let Kind::Stack(frame) = val.kind else {
            return access(format!("R{n} type={} expected=fp, dynptr_ptr", val.type_name()));
        };
        let Some(off) = val.fixed_off() else {
            return invalid(format!("dynptr has to be at a constant offset\n{otherwise}"));
        };
        if off % SLOT as i64 != 0 || off > -SIZE || off < -i64::from(MAX_STACK) {
            return invalid(format!("cannot pass in dynptr at an offset={off}\n{otherwise}"));
        }
        self.stack_place(state, &Span { reg: n, ptr: *val, off: 0, size: SIZE }, "write to")?;
        Ok(Place { frame: usize::from(frame), first: place(off).0 })
    }

    /// What is written from `from` to `to` ends the dynptrs there.
    pub fn end_dynptrs(&self, state: &mut State, frame: usize, from: i64, to: i64) -> Check {
        (place(to - 1).0..=place(from).0).try_for_each(|slot| end_at(state, frame, slot))
    }
}

/// The dynptr of which both halves are at a place.
fn whole(state: &State, at: &Place) -> Option<(Dynptr, u32)> {
    let frame = &state.frames[at.frame];
    let (first, second) = (frame.slot(at.first).dynptr()?, frame.slot(at.first - 1).dynptr()?);
    (first.0.first && !second.0.first && first.1 == second.1).then_some(first)
}

/// Ends the dynptr that has a half in this slot.
fn end_at(state: &mut State, frame: usize, slot: usize) -> Check {
    let Some((half, reference)) = state.frames[frame].slot(slot).dynptr() else { return Ok(()) };
    if half.record {
        return invalid("cannot overwrite referenced dynptr".into());
    }
    end(state, reference);
    Ok(())
}

/// Ends a dynptr, wherever it is, and what it gave out.
pub(super) fn end(state: &mut State, reference: u32) {
    let of_it = |slot: &Slot| slot.dynptr().is_some_and(|(_, r)| r == reference);
    for frame in &mut state.frames {
        if frame.stack.iter().any(of_it) {
            let slots = Rc::make_mut(frame).stack.iter_mut();
            // Something is there still.
            slots.filter(|s| of_it(s)).for_each(|s| *s = Slot { bytes: [Byte::Misc; SLOT], spill: None });
        }
    }
    state.update(|v| v.reference == reference, |v| *v = Val::UNKNOWN);
}

/// A load, or a read by the helper that gets the register `by`, from bytes `min` to `max + size` of a frame.
pub(super) fn not_read(
    state: &State,
    span: &Span,
    frame: usize,
    (min, max): (i64, i64),
    by_helper: bool,
) -> Check {
    let frame = &state.frames[frame];
    let (reg, size) = (span.reg, span.size);
    let found = (min..max + size).find(|off| frame.slot(place(*off).0).dynptr().is_some());
    let Some(byte) = found else { return Ok(()) };
    if min != max {
        let bits = span.ptr.num.bits;
        let var = format!("({:#x}; {:#x})", bits.value, bits.mask);
        return access(format!("invalid read from stack R{reg} var_off {var}+{} size {size}", byte - min));
    }
    let by = if by_helper { format!(" R{reg}") } else { String::new() };
    access(format!("invalid read from stack{by} off {min}+{} size {size}", byte - min))
}

/// What a helper writes may not end dynptrs.
pub(super) fn not_written(state: &State, span: &Span, frame: usize, (min, max): (i64, i64)) -> Check {
    let frame = &state.frames[frame];
    let found = (min..max + span.size).find(|off| frame.slot(place(*off).0).dynptr().is_some());
    match found {
        Some(_) => access(format!("potential write to dynptr at off={min} disallowed")),
        None => Ok(()),
    }
}
