//! When a path need not be walked on: it reaches a state that is included in one whose continuations have
//! all been found safe.
//!
//! Every concrete state of the new one is then a concrete state of the old one, as far as anything that is
//! still read goes. Values that are read agree in kind, ranges of numbers are included, and equalities that
//! the old walk relied on (ids) hold in the new state too.

use super::error::{Check, invalid};
use super::explore::Verifier;
use super::live::Live;
use super::state::{Byte, Frame, SLOT, Slot, State};
use super::value::{Kind, Val};

/// States kept per slot; the oldest complete one goes first.
const MAX_KEPT: usize = 64;
/// States kept in all: a few kilobytes each.
const MAX_STATES: usize = 50_000;

/// A state that was reached at a slot.
pub(super) struct Checkpoint {
    pub state: State,
    pub number: u64,
    /// Whether all that follows from it has been walked, without objection.
    pub complete: bool,
}

impl Verifier<'_> {
    /// Whether the path must be walked on from here; remembers its state where paths meet.
    pub fn worth_walking(&mut self, state: &mut State, at: usize) -> Check<bool> {
        if !self.program.is_target(at) {
            return Ok(true);
        }
        let live = self.live_in(state, at);
        let need = self.need_in(state, at);
        let exact = vec![Live::ALL; need.len()];
        for seen in self.checkpoints[at].iter().rev() {
            let numbers = if seen.complete { &need } else { &exact };
            if !includes(&seen.state, state, &live, numbers) {
                continue;
            }
            if seen.complete {
                self.lenient = self.lenient || !includes(&seen.state, state, &live, &exact);
                self.proved.unwritten(&less_written(&seen.state, state, &live));
                return Ok(false);
            }
            // Once more round by a callback is no loop: its helper ends it, and `enters` the walk.
            if same_rounds(&seen.state, state) && includes(state, &seen.state, &live, &exact) {
                return invalid(format!("infinite loop detected at insn {at}"));
            }
        }
        self.remember(state.clone(), at);
        Ok(true)
    }

    fn remember(&mut self, state: State, at: usize) {
        self.stats.total_states += 1;
        let number = self.stats.total_states as u64;
        self.open.push((at, number, self.pending()));
        if self.checkpoints[at].len() < MAX_KEPT && !self.may_keep() {
            self.open.pop();
            return;
        }
        let kept = &mut self.checkpoints[at];
        if kept.len() >= MAX_KEPT {
            // Forgetting a state costs time, never soundness.
            let oldest = kept.iter().position(|c| c.complete).unwrap_or(0);
            kept.remove(oldest);
        }
        kept.push(Checkpoint { state, number, complete: false });
        self.stats.max_states_per_insn = self.stats.max_states_per_insn.max(kept.len());
    }

    /// Counts a state that is to be kept. Beyond the limit fewer paths are cut short, no more.
    pub fn may_keep(&mut self) -> bool {
        let room = self.stats.peak_states < MAX_STATES;
        self.stats.peak_states += usize::from(room);
        room
    }

    /// Numbers that matter later, per frame.
    fn need_in(&self, state: &State, at: usize) -> Vec<Live> {
        let callers = state.frames[1..].iter().map(|callee| self.need.during(callee.callsite));
        callers.chain([self.need.before(at)]).collect()
    }

    /// What is read later, per frame.
    pub fn live_in(&self, state: &State, at: usize) -> Vec<Live> {
        let callers = state.frames[1..].iter().map(|callee| self.live.during(callee.callsite));
        callers.chain([self.live.before(at)]).collect()
    }
}

/// Bytes, by function and offset, that `old` had written and `new` has not, and that may be read. Reading
/// them is allowed, and the walk from `old` did not see that they must be cleared.
pub(super) fn less_written(old: &State, new: &State, live: &[Live]) -> Vec<(usize, i64)> {
    let mut bytes = vec![];
    for ((old, new), live) in old.frames.iter().zip(&new.frames).zip(live) {
        for n in (0..old.stack.len()).filter(|n| live.slots & 1 << n != 0) {
            let (had, has) = (&old.slot(n).bytes, &new.slot(n).bytes);
            let lost = (0..SLOT).filter(|b| has[*b] == Byte::Invalid && had[*b] != Byte::Invalid);
            bytes.extend(lost.map(|byte| (new.func, byte as i64 - (n as i64 + 1) * SLOT as i64)));
        }
    }
    bytes
}

/// Which id of the new state stands for which of the old one.
#[derive(Default)]
struct Ids {
    numbers: Vec<(u32, u32)>,
    references: Vec<(u32, u32)>,
    unlinked: u32,
}

impl Ids {
    /// Values that the old walk knew to be equal must be equal now. Others may be equal, too.
    fn same(&mut self, old: u32, new: u32) -> bool {
        if old == 0 {
            return true;
        }
        let new = if new == 0 {
            self.unlinked += 1;
            u32::MAX - self.unlinked
        } else {
            new
        };
        match self.numbers.iter().find(|(o, _)| *o == old) {
            Some((_, n)) => *n == new,
            None => {
                self.numbers.push((old, new));
                true
            }
        }
    }

    /// References correspond one to one.
    fn same_reference(&mut self, old: u32, new: u32) -> bool {
        if old == 0 || new == 0 {
            return old == new;
        }
        match self.references.iter().find(|(o, n)| *o == old || *n == new) {
            Some(pair) => *pair == (old, new),
            None => {
                self.references.push((old, new));
                true
            }
        }
    }
}

/// Whether every concrete state of `new` is one of `old`, as far as live places and, of the numbers in
/// them, those that matter go.
pub(super) fn includes(old: &State, new: &State, live: &[Live], need: &[Live]) -> bool {
    if old.frames.len() != new.frames.len() || old.references.len() != new.references.len() {
        return false;
    }
    let mut ids = Ids::default();
    let references = old.references.iter().zip(&new.references);
    references.into_iter().all(|(o, n)| ids.same_reference(o.id, n.id))
        && (0..old.frames.len()).all(|n| frame(&old.frames[n], &new.frames[n], live[n], need[n], &mut ids))
}

/// Whether no helper called its callback again between two states of a path.
fn same_rounds(old: &State, new: &State) -> bool {
    let round = |frame: &Frame| frame.round.as_ref().map(|round| (round.callsite, round.number));
    old.frames.iter().map(|f| round(f)).eq(new.frames.iter().map(|f| round(f)))
}

fn frame(old: &Frame, new: &Frame, live: Live, need: Live, ids: &mut Ids) -> bool {
    let same_place = old.func == new.func && old.callsite == new.callsite && old.callback == new.callback;
    same_place
        && (0..old.regs.len())
            .filter(|n| live.regs & 1 << n != 0)
            .all(|n| value(&old.regs[n], &new.regs[n], need.regs & 1 << n != 0, ids))
        && (0..old.stack.len().max(new.stack.len()))
            .filter(|n| live.slots & 1 << n != 0)
            .all(|n| slot(old.slot(n), new.slot(n), need.slots & 1 << n != 0, ids))
}

/// Whether `new` is included in `old`, both live.
fn value(old: &Val, new: &Val, matters: bool, ids: &mut Ids) -> bool {
    match old.kind {
        // It was not read on any path that was accepted.
        Kind::NotInit => true,
        Kind::Scalar => {
            let included = !matters || old.num.includes(&new.num);
            new.kind == Kind::Scalar && included && ids.same(old.id, new.id)
        }
        _ => {
            let same = old.kind == new.kind && old.off == new.off && old.nullable == new.nullable;
            // Only an address that may be NULL is linked to others.
            let linked = !old.nullable || ids.same(old.id, new.id);
            same && linked && old.num.includes(&new.num) && ids.same_reference(old.reference, new.reference)
        }
    }
}

fn slot(old: &Slot, new: &Slot, matters: bool, ids: &mut Ids) -> bool {
    if let (Some(a), Some(b)) = (&old.spill, &new.spill)
        && old.spilled() == new.spilled()
        && bytes(old, new, old.spilled())
    {
        return value(a, b, matters, ids);
    }
    // Bytes of a number that does not matter, and that nothing is linked to.
    let linked = old.spill.as_deref().is_some_and(|spill| spill.id != 0);
    if !matters && !linked && !old.holds_pointer() && !new.holds_pointer() {
        return true;
    }
    // A spilled value was read as such; nothing else will do.
    old.spill.is_none() && bytes(old, new, 0)
}

/// Whether each byte from `from` on is included.
fn bytes(old: &Slot, new: &Slot, from: usize) -> bool {
    let zero = new.whole().is_some_and(Val::is_null);
    (from..SLOT).all(|n| match (old.bytes[n], new.bytes[n]) {
        // Read as any number, whatever is there.
        (Byte::Invalid | Byte::Misc, _) => true,
        (Byte::Zero, Byte::Zero) => true,
        (Byte::Zero, Byte::Spill) => zero,
        _ => false,
    })
}
