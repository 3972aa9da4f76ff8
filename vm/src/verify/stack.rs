//! The stack: spilled values survive, bytes are zero, something, or never written.

use super::dynptr;
use super::error::{Check, access, invalid};
use super::explore::{Verifier, loaded};
use super::memory::Span;
use super::num::Scalar;
use super::state::{Byte, SLOT, Slot, State, place};
use super::value::{Kind, Val};
use crate::isa::MAX_STACK;
use std::rc::Rc;

impl Verifier<'_> {
    /// Checks that a span lies in its frame, and notes how deep it goes. Returns the frame's index and the
    /// lowest and highest offset of the first byte.
    pub fn stack_place(&mut self, state: &State, span: &Span, what: &str) -> Check<(usize, i64, i64)> {
        let Kind::Stack(frame) = span.ptr.kind else { return access(String::new()) };
        let frame = usize::from(frame);
        let (min, max) = span.range();
        let (reg, size) = (span.reg, span.size);
        let fixed = span.start().is_some();
        let var = &span.ptr.num.wide;
        if !fixed && (var.smax >= super::alu::MAX_OFF || var.smin <= -super::alu::MAX_OFF) {
            return access(format!("invalid unbounded variable-offset {what} stack R{reg}"));
        }
        if min < -i64::from(MAX_STACK) || max.saturating_add(size) > 0 {
            let text = if fixed {
                format!("invalid {what} stack R{reg} off={min} size={size}")
            } else {
                let (value, mask) = (span.ptr.num.bits.value, span.ptr.num.bits.mask);
                format!(
                    "invalid variable-offset {what} stack R{reg} var_off=({value:#x}; {mask:#x}) off={} size={size}",
                    span.fixed()
                )
            };
            let across = min >= -i64::from(MAX_STACK) && min < 0;
            return if across { invalid(text) } else { access(text) };
        }
        let func = state.frames[frame].func;
        self.proved.stack[func] = self.proved.stack[func].max(min.unsigned_abs() as u32);
        Ok((frame, min, max))
    }

    pub fn stack_read(&mut self, state: &mut State, span: &Span, signed: bool) -> Check<Val> {
        self.aligned(span, "stack ")?;
        let (frame, min, max) = self.stack_place(state, span, "read from")?;
        dynptr::not_read(state, span, frame, (min, max), false)?;
        let frame = &state.frames[frame];
        let unwritten = &mut self.proved.unwritten[frame.func];
        let bits = span.size as u32 * 8;
        if min == max {
            let (slot, byte) = place(min);
            if let Some(val) = filled(frame.slot(slot), byte, span.size as usize, signed) {
                return val;
            }
        }
        let mut zero = true;
        for off in min..max + span.size {
            let (slot, byte) = place(off);
            let slot = frame.slot(slot);
            let kind = slot.bytes[byte];
            if kind == Byte::Invalid {
                unwritten.insert(off);
            }
            zero &=
                kind == Byte::Zero || kind == Byte::Spill && slot.spill.as_deref().is_some_and(Val::is_null);
        }
        Ok(if zero { Val::constant(0) } else { Val::scalar(loaded(bits, signed)) })
    }

    /// Writes a value, or something if there is none.
    pub fn stack_write(&mut self, state: &mut State, span: &Span, val: Option<&Val>) -> Check {
        self.aligned(span, "stack ")?;
        let (frame, min, max) = self.stack_place(state, span, "write to")?;
        let spills_stack = val.is_some_and(|v| matches!(v.kind, Kind::Stack(_)));
        if spills_stack && frame != state.frames.len() - 1 {
            return invalid("cannot spill pointers to stack into stack frame of the caller".into());
        }
        if let Some(v) = val
            && v.is_pointer()
            && span.size != SLOT as i64
        {
            return access("invalid size of register spill".into());
        }
        self.end_dynptrs(state, frame, min, max + span.size)?;
        let target = state.frame_at_mut(frame);
        let (first, byte) = place(min);
        if min == max {
            write(target.slot_mut(first), byte, span.size as usize, val);
            return Ok(());
        }
        // One of these is written, which one is not known.
        let zero = val.is_some_and(Val::is_null);
        for off in min..max + span.size {
            let (slot, byte) = place(off);
            let slot = target.slot_mut(slot);
            slot.scrub();
            if !(zero && slot.bytes[byte] == Byte::Zero) {
                slot.perhaps_written(byte);
            }
        }
        Ok(())
    }

    /// What a helper does to the stack that it is given: reads it, or writes it, surely at least the first
    /// `sure` bytes.
    pub fn stack_passed(&mut self, state: &mut State, span: &Span, written: Option<u32>) -> Check {
        if span.size == 0 {
            return Ok(());
        }
        let (frame, min, max) =
            self.stack_place(state, span, if written.is_some() { "write to" } else { "read from" })?;
        let Some(sure) = written else {
            dynptr::not_read(state, span, frame, (min, max), true)?;
            let frame = &state.frames[frame];
            for off in min..max + span.size {
                let (slot, byte) = place(off);
                if frame.slot(slot).bytes[byte] == Byte::Invalid {
                    self.proved.unwritten[frame.func].insert(off);
                }
            }
            return Ok(());
        };
        let sure = if min == max { min..min + i64::from(sure) } else { 0..0 };
        let frame = state.frame_at_mut(frame);
        for off in min..max + span.size {
            let (slot, byte) = place(off);
            let slot = frame.slot_mut(slot);
            slot.scrub();
            if sure.contains(&off) {
                slot.bytes[byte] = Byte::Misc;
            } else {
                slot.perhaps_written(byte);
            }
        }
        Ok(())
    }
}

/// The spilled value that a load at this byte of a slot gives; `None` if it touches no value.
fn filled(slot: &Slot, byte: usize, size: usize, signed: bool) -> Option<Check<Val>> {
    let spill = slot.spill.as_deref()?;
    let spilled = slot.spilled();
    if byte == 0 && size == SLOT && spilled == SLOT {
        return Some(Ok(*spill));
    }
    if spill.is_pointer() {
        let touches = byte < spilled;
        return touches.then(|| access("invalid size of register fill".into()));
    }
    if byte != 0 || size > spilled {
        return None;
    }
    let bits = size as u32 * 8;
    let low = spill.num.truncated(bits);
    if signed {
        let from = crate::isa::Size::from_width(bits)?;
        return Some(Ok(Val::scalar(super::num::movsx(crate::isa::Width::W64, from, &low))));
    }
    // The same number as long as nothing was cut off.
    let id = if low == spill.num { spill.id } else { 0 };
    Some(Ok(Val { id, ..Val::scalar(low) }))
}

/// Writes to known bytes of a slot.
fn write(slot: &mut Slot, byte: usize, size: usize, val: Option<&Val>) {
    let whole = byte == 0 && size == SLOT;
    let spill = val.filter(|v| byte == 0 && (whole || v.is_scalar()));
    if let Some(val) = spill {
        if !whole {
            // Bytes of a value that was wider are something now.
            slot.scrub();
        }
        slot.bytes[..size].fill(Byte::Spill);
        slot.spill = Some(Rc::new(narrowed(val, size)));
        return;
    }
    if byte < slot.spilled() {
        slot.scrub();
    }
    let kind = if val.is_some_and(Val::is_null) { Byte::Zero } else { Byte::Misc };
    slot.bytes[byte..byte + size].fill(kind);
}

/// The lower bytes of a number.
fn narrowed(val: &Val, size: usize) -> Val {
    if size == SLOT {
        return *val;
    }
    let low: Scalar = val.num.truncated(size as u32 * 8);
    Val { id: if low == val.num { val.id } else { 0 }, ..Val::scalar(low) }
}
