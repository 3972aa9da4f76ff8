//! The states of a walk, kept so that a test can ask whether those of a run are among them. That they are is what
//! soundness means here; everything else that is proved follows from it.

use super::live::{Live, Liveness};
use super::need::Needs;
use super::num::Scalar;
use super::state::{Byte, SLOT, Slot, State};
use super::value::{Kind, Val};
use crate::isa::{MapIdx, Reg};

/// What an address of a run points into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The stack of the frame with this index; offsets are from its r10.
    Stack(usize),
    /// The context.
    Ctx,
    /// A map itself.
    Map(MapIdx),
    /// A value of this map.
    MapValue(MapIdx),
    /// A ring buffer record.
    Record,
    /// A function.
    Func(u32),
}

/// A run, before an instruction.
pub trait Moment {
    /// Frames, callbacks included.
    fn frames(&self) -> usize;
    /// A register of the innermost one.
    fn reg(&self, reg: usize) -> u64;
    /// The byte of its stack at an offset from r10.
    fn stack(&self, off: i64) -> u8;
    /// What a number points into, and how far in; `None` if it is no address.
    fn address(&self, x: u64) -> Option<(Place, i64)>;
}

/// The states of one walk by slot.
pub struct Recorded {
    pub(super) states: Vec<Vec<State>>,
    pub(super) live: Liveness,
    pub(super) need: Needs,
}

/// States kept per slot. A walk with more of them proves nothing here.
const MOST: usize = 4096;

impl Recorded {
    pub(super) fn keep(states: &mut [Vec<State>], at: usize, state: &State) {
        if states[at].len() <= MOST {
            states[at].push(state.clone());
        }
    }

    /// Whether some state at this slot has the run's registers and stack as a member, as far as they are read later
    /// and, of numbers, may decide something.
    pub fn holds(&self, at: usize, moment: &dyn Moment) -> bool {
        let (live, need) = (self.live.before(at), self.need.before(at));
        let states = &self.states[at];
        states.len() > MOST || states.iter().any(|state| member(state, moment, live, need))
    }

    /// The states at a slot, in words.
    pub fn describe(&self, at: usize) -> String {
        let lines: Vec<_> = self.states[at].iter().take(8).map(|s| super::explore::show(s, None)).collect();
        lines.join("\n")
    }
}

fn member(state: &State, moment: &dyn Moment, live: Live, need: Live) -> bool {
    let frame = state.frame();
    state.frames.len() == moment.frames()
        && (0..Reg::COUNT)
            .filter(|n| live.regs & 1 << n != 0)
            .all(|n| value(&frame.regs[n], moment.reg(n), need.regs & 1 << n != 0, moment))
        && (0..frame.stack.len())
            .filter(|n| live.slots & 1 << n != 0)
            .all(|n| slot(&frame.stack[n], n, need.slots & 1 << n != 0, moment))
}

fn value(val: &Val, x: u64, matters: bool, moment: &dyn Moment) -> bool {
    let place = match val.kind {
        Kind::NotInit => return true,
        Kind::Scalar => return !matters || val.num.includes(&Scalar::of(x)),
        Kind::Ctx => Place::Ctx,
        Kind::Stack(frame) => Place::Stack(usize::from(frame)),
        Kind::Map(map) => Place::Map(map),
        Kind::MapValue(map) => Place::MapValue(map),
        Kind::Record(_) => Place::Record,
        Kind::Func(func) => Place::Func(func),
        // What the test machine has none of.
        _ => return true,
    };
    if val.nullable && x == 0 {
        return true;
    }
    let Some((found, off)) = moment.address(x) else { return false };
    found == place && val.num.includes(&Scalar::of(off.wrapping_sub(i64::from(val.off)) as u64))
}

fn slot(slot: &Slot, n: usize, matters: bool, moment: &dyn Moment) -> bool {
    let low = -((n as i64 + 1) * SLOT as i64);
    let byte = |b: usize| moment.stack(low + b as i64);
    let zeros = (0..SLOT).filter(|b| slot.bytes[*b] == Byte::Zero).all(|b| !matters || byte(b) == 0);
    let spilled = slot.spilled();
    let number = (0..spilled).rev().fold(0, |x, b| x << 8 | u64::from(byte(b)));
    zeros && slot.spill.as_deref().is_none_or(|spill| value(spill, number, matters, moment))
}
