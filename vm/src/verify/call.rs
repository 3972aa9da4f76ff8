//! Calls between functions of the program, callbacks, and exits.

use super::args::Call;
use super::error::{Check, Errno, Fail, Refusal, access, invalid};
use super::explore::{Next, Verifier};
use super::helper::{clobber, not_here};
use super::live::Live;
use super::prune;
use super::state::{Byte, Callback, Frame, Round, SLOT, Slot, State};
use super::value::{Kind, Val};
use crate::isa::{Callee, Const, MAX_FRAMES, MAX_STACK, MapIdx, Op, Reg};
use crate::program::Func;
use bpftime_abi::helper::id;
use std::rc::Rc;

/// Rounds of a callback that are followed exactly; later ones are widened.
const EXACT_ROUNDS: usize = 2;

impl Verifier<'_> {
    pub fn call(&mut self, state: &mut State, at: usize, callee: Callee) -> Check<Next> {
        match callee {
            Callee::Helper(helper) => self.call_helper(state, at, helper),
            Callee::Poisoned(_, id) => not_here(id),
            Callee::Func(func) => self.call_func(state, at, func as usize),
        }
    }

    fn call_func(&mut self, state: &mut State, at: usize, func: usize) -> Check<Next> {
        let mut frame = self.new_frame(state, at, func)?;
        frame.regs[1..=5].copy_from_slice(&state.frame().regs[1..=5]);
        clobber(state);
        state.frames.push(Rc::new(frame));
        Ok(Next::At(self.program.funcs()[func].start))
    }

    fn new_frame(&self, state: &State, at: usize, func: usize) -> Check<Frame> {
        if state.frames.len() >= MAX_FRAMES {
            let reason = format!("the call stack of {} frames is too deep", state.frames.len());
            return Err(Fail { errno: Errno::TooBig, reason });
        }
        Ok(Frame::new(state.frames.len(), func, at))
    }

    pub fn exit(&mut self, state: &mut State, at: usize) -> Check<Next> {
        let depth = state.frames.len() - 1;
        if let Some(callback) = state.frame().callback {
            let result = *state.reg(Reg::R0);
            return self.leave_callback(state, result, callback);
        }
        // A function that returns nothing need not set r0; its caller may not read it then.
        let result = *state.reg(Reg::R0);
        if depth == 0 {
            self.read(state, Reg::R0)?;
            let at_exit = "BPF_EXIT instruction in main prog would lead to reference leak";
            return match state.references.first() {
                Some(r) => {
                    invalid(format!("Unreleased reference id={} alloc_insn={}\n{at_exit}", r.id, r.insn))
                }
                None => self.verdict(&result, at),
            };
        }
        if matches!(result.kind, Kind::Stack(_)) {
            return invalid("cannot return stack pointer to the caller".into());
        }
        let callsite = state.frame().callsite;
        self.leave(state);
        state.set(Reg::R0, result);
        Ok(Next::At(callsite + 1))
    }

    /// What a program may return: for a session's, whether the return is wanted.
    fn verdict(&mut self, result: &Val, at: usize) -> Check<Next> {
        if !self.is_session() {
            return Ok(Next::Done);
        }
        self.decides(at);
        if result.is_scalar() && result.num.wide.umax <= 1 {
            return Ok(Next::Done);
        }
        if !result.is_scalar() {
            return invalid(format!(
                "At program exit the register R0 is not a known value ({})",
                result.type_name()
            ));
        }
        let got = range(result);
        invalid(format!("At program exit the register R0 has {got} should have been in [0, 1]"))
    }

    /// Drops the innermost frame. Addresses of its stack may not survive it.
    fn leave(&mut self, state: &mut State) {
        state.frames.pop();
        let gone = Kind::Stack(state.frames.len() as u8);
        state.update(|v| v.kind == gone, |v| *v = Val::UNKNOWN);
    }

    /// A helper that calls a function any number of times: none now, or once more.
    pub fn enter_callback(&mut self, state: &mut State, call: &Call, func: u32) -> Check<Next> {
        let at = call.at;
        let mut frame = self.new_frame(state, at, func as usize)?;
        let args = self.callback_args(call);
        frame.regs[1..1 + args.len()].copy_from_slice(&args);
        frame.callback = Some(Callback { references: state.references.len() });
        let mut inside = state.clone();
        inside.frames.push(Rc::new(frame));
        clobber(state);
        state.set(Reg::R0, Val::UNKNOWN);
        state.frame_mut().round = None;
        if self.enters(&mut inside, at) {
            self.postpone(inside, self.program.funcs()[func as usize].start, at)?;
        }
        Ok(Next::At(at + 1))
    }

    /// What the callback finds in its registers.
    fn callback_args(&mut self, call: &Call) -> Vec<Val> {
        match call.id {
            id::for_each_map_elem => {
                let map = call.map.unwrap_or(MapIdx(0));
                vec![
                    Val::pointer(Kind::Map(map)),
                    Val::pointer(Kind::MapKey(map)),
                    Val::pointer(Kind::MapValue(map)),
                    call.callback_ctx,
                ]
            }
            id::user_ringbuf_drain => {
                let reference = self.fresh_id();
                vec![Val { reference, ..Val::pointer(Kind::DynptrAddr) }, call.callback_ctx]
            }
            _ => vec![Val::UNKNOWN, call.callback_ctx],
        }
    }

    fn leave_callback(&mut self, state: &mut State, result: Val, callback: Callback) -> Check<Next> {
        if !result.is_scalar() {
            return access("R0 not a scalar value".into());
        }
        if result.num.wide.umax > 1 {
            let got = range(&result);
            return invalid(format!(
                "At callback return the register R0 has {got} should have been in [0, 1]"
            ));
        }
        if state.references.len() != callback.references {
            let r = state.references.last().copied();
            let (id, insn) = r.map_or((0, 0), |r| (r.id, r.insn));
            return invalid(format!(
                "Unreleased reference id={id} alloc_insn={insn}\nBPF_EXIT instruction in main prog would lead to reference leak"
            ));
        }
        let callsite = state.frame().callsite;
        self.leave(state);
        // A key or dynptr may have lived on the stack of the helper.
        let gone = |v: &Val| matches!(v.kind, Kind::MapKey(_) | Kind::DynptrAddr);
        state.update(gone, |v| *v = Val::UNKNOWN);
        // The call is made again from what this run of the callback left.
        Ok(Next::At(callsite))
    }

    /// Whether all frames of every chain of calls fit, with what each was seen to use. decode saw to it
    /// that chains end.
    pub fn stack_fits(&self) -> Result<(), Refusal> {
        let mut deepest = vec![None; self.program.funcs().len()];
        let (bytes, calls) = self.chain(0, &mut deepest);
        if bytes <= MAX_STACK {
            return Ok(());
        }
        let reason = format!("combined stack size of {calls} calls is {bytes}. Too large");
        Err(Refusal::of_program(Errno::Access, 0, reason))
    }

    /// Bytes and frames of the deepest chain from a function.
    fn chain(&self, func: usize, deepest: &mut Vec<Option<(u32, u32)>>) -> (u32, u32) {
        if let Some(known) = deepest[func] {
            return known;
        }
        let Func { start, end, .. } = self.program.funcs()[func];
        let mut below = (0, 0);
        for at in (start..end).filter(|at| self.proved.live[*at]) {
            if let Op::Call(Callee::Func(f)) | Op::LoadConst { value: Const::Func(f), .. } =
                self.program.ops()[at]
            {
                below = below.max(self.chain(f as usize, deepest));
            }
        }
        let own = self.proved.stack[func].next_multiple_of(16);
        let result = (below.0 + own, below.1 + 1);
        deepest[func] = Some(result);
        result
    }

    /// Whether the callback must be walked from this state: not if it was already, from one that includes
    /// it. What changes from round to round is widened, so that this ends.
    ///
    /// The earlier walk may still be under way. Whatever can happen from here can happen from there, and an
    /// objection there refuses the program. How often it runs is up to the helper, which is bounded.
    fn enters(&mut self, inside: &mut State, at: usize) -> bool {
        let caller = inside.frames.len() - 2;
        let last = inside.frames[caller].round.clone().filter(|round| round.callsite == at);
        let number = last.as_ref().map_or(0, |round| round.number + 1);
        if let Some(last) = last.filter(|_| number >= EXACT_ROUNDS) {
            widen(&last.state, inside);
        }
        let entry = self.program.funcs()[inside.frame().func].start;
        let live = self.live_in(inside, entry);
        let exact = vec![Live::ALL; live.len()];
        let including = self.entries[at].iter().find(|old| prune::includes(old, inside, &live, &exact));
        if let Some(old) = including {
            self.proved.unwritten(&prune::less_written(old, inside, &live));
            return false;
        }
        // Not the rounds before: they would form a chain as long as the walk.
        inside.frame_at_mut(caller).round = None;
        if self.may_keep() {
            self.entries[at].push(inside.clone());
        }
        let round = Round { callsite: at, number, state: inside.clone() };
        inside.frame_at_mut(caller).round = Some(Rc::new(round));
        true
    }
}

/// A number as messages describe it.
fn range(number: &Val) -> String {
    let (min, max) = (number.num.wide.smin, number.num.wide.smax);
    if (min, max) == (i64::MIN, i64::MAX) {
        "unknown scalar value".to_string()
    } else {
        format!("smin={min} smax={max}")
    }
}

/// Numbers that changed become any number, bytes of the stack that changed become something.
fn widen(old: &State, new: &mut State) {
    if old.frames.len() != new.frames.len() {
        return;
    }
    for (old, new) in old.frames.iter().zip(&mut new.frames) {
        let new = Rc::make_mut(new);
        for (old, new) in old.regs.iter().zip(&mut new.regs) {
            widen_value(old, new);
        }
        for (at, new) in new.stack.iter_mut().enumerate() {
            widen_slot(old.slot(at), new);
        }
    }
}

fn widen_value(old: &Val, new: &mut Val) {
    if old.is_scalar() && new.is_scalar() && !old.num.includes(&new.num) {
        *new = Val::UNKNOWN;
    }
}

fn widen_slot(old: &Slot, new: &mut Slot) {
    if let (Some(a), Some(b)) = (&old.spill, &mut new.spill)
        && old.bytes == new.bytes
    {
        let mut wider = **b;
        widen_value(a, &mut wider);
        if wider != **b && new.bytes[SLOT - 1] != Byte::Spill {
            // Any number is wider than these bytes.
            new.scrub();
        } else {
            *b = Rc::new(wider);
        }
    } else if old != new && !new.holds_pointer() {
        new.scrub();
        (0..SLOT).for_each(|byte| new.perhaps_written(byte));
    }
}
