//! Writing patches and taking them back, step by step as the rules in hook/mod.rs have it.

use super::{CannotHook, Detached, Engine, Entry, Form, INT3, NEARBY};
use crate::arch::flow;
use crate::hook::Want;
use crate::hook::plan::{JUMP, SHORT};
use std::time::Duration;

/// Bytes to be written at an address by one write.
type Write = (usize, Vec<u8>);

/// The steps from one state of a site to another, as hook/mod.rs has them. Between two all cores are interrupted.
pub(super) type Way = Vec<Vec<Write>>;

/// Which step of [`Entry::way_in`] makes a site with a breakpoint a fenced one.
const FENCED: std::ops::Range<usize> = 1..2;

impl Entry {
    /// bare -> trap -> fenced -> `form`. Where the boundaries must keep their int3, the jump has it there.
    pub(super) fn way_in(&self, form: Form) -> Way {
        let inner = self.inner(form);
        let patch = match (form, self.pad()) {
            (Form::Fenced | Form::Jump, _) => jump(self.addr(), self.thunk.at).to_vec(),
            (Form::Short, Some(pad)) => short(self.addr(), pad).to_vec(),
            _ => return vec![self.each(&[0], &[INT3])],
        };
        let differing: Vec<_> = inner.iter().copied().filter(|i| patch[*i] != INT3).collect();
        vec![
            self.each(&[0], &[INT3]),
            self.each(&inner, &[INT3; JUMP]),
            self.between(&inner, &patch),
            self.each(&differing, &patch),
            self.each(&[0], &patch),
        ]
    }

    /// The form it has -> trap (all steps but the last) -> bare. A boundary that was overwritten by a jump (nobody is
    /// there) must not show an instruction before its tail.
    pub(super) fn way_back(&self) -> Way {
        if self.form == Form::Bare {
            return Vec::new();
        }
        let inner = self.inner(self.form);
        let original = self.covered();
        let (trap, jump) = (self.form == Form::Trap, self.form == Form::Jump);
        vec![
            self.each(if trap { &[] } else { &[0] }, &[INT3]),
            self.each(if jump { &inner } else { &[] }, &[INT3; JUMP]),
            self.between(&inner, original),
            self.each(&inner, original),
            self.each(&[0], original),
        ]
    }

    /// The jump in padding that it takes.
    pub(super) fn way_to_pad(&self) -> Way {
        self.pad().map(|pad| vec![(pad, jump(pad, self.thunk.at).to_vec())]).into_iter().collect()
    }

    /// The boundaries that are int3 on the way to and from `form`.
    fn inner(&self, form: Form) -> Vec<usize> {
        if matches!(form, Form::Jump | Form::Fenced) { self.boundaries().collect() } else { Vec::new() }
    }

    /// `bytes` at these offsets, each by itself: threads may be executing them.
    fn each(&self, offsets: &[usize], bytes: &[u8]) -> Vec<Write> {
        offsets.iter().map(|i| (self.addr() + i, vec![bytes[*i]])).collect()
    }

    /// What of `bytes` is neither first nor a boundary: nothing executes it.
    fn between(&self, inner: &[usize], bytes: &[u8]) -> Vec<Write> {
        let mut runs: Vec<Write> = Vec::new();
        for i in (1..bytes.len()).filter(|i| !inner.contains(i)) {
            match runs.last_mut() {
                Some((at, run)) if *at + run.len() == self.addr() + i => run.push(bytes[i]),
                _ => runs.push((self.addr() + i, vec![bytes[i]])),
            }
        }
        runs
    }
}

impl Engine {
    pub(super) fn put(&mut self, addr: usize, bytes: &[u8]) -> Result<(), CannotHook> {
        if !self.text.write(addr, bytes) {
            return Err(CannotHook::NotWritable(addr));
        }
        self.text.sync();
        Ok(())
    }

    /// Goes all ways side by side; what became of each. A way ends where the kernel refuses to write.
    pub(super) fn walk(&mut self, ways: &[Way]) -> Vec<Result<(), CannotHook>> {
        let mut results = vec![Ok(()); ways.len()];
        for step in 0..ways.iter().map(Vec::len).max().unwrap_or(0) {
            let mut wrote = false;
            for (way, result) in ways.iter().zip(&mut results) {
                for (at, bytes) in way.get(step).into_iter().flatten() {
                    if result.is_ok() && !self.text.write(*at, bytes) {
                        *result = Err(CannotHook::NotWritable(*at));
                    }
                    wrote = true;
                }
            }
            if wrote {
                self.text.sync();
            }
        }
        results
    }

    fn go(&mut self, way: Way) -> Result<(), CannotHook> {
        self.walk(&[way]).pop().unwrap_or(Ok(()))
    }

    /// For processes with threads that block SIGTRAP. Only single-instruction patches: no thread is ever inside.
    pub(super) fn install_at_once(&mut self, e: &mut Entry) -> Result<(), CannotHook> {
        let addr = e.addr();
        let bytes = match e.pad() {
            Some(pad) => short(addr, pad).to_vec(),
            None => jump(addr, e.thunk.at).to_vec(),
        };
        match self.text.write_at_once(addr, &bytes) {
            Some(true) => Ok(()),
            refused => {
                self.leave_pad(e);
                self.traps.forget(addr);
                match refused {
                    None => Err(CannotHook::TrapBlocked { addr, tid: self.trap_blocker().unwrap_or(0) }),
                    _ => Err(CannotHook::NotWritable(addr)),
                }
            }
        }
    }

    /// Sends threads that reach an inner boundary to the instruction's copy, once it reads int3.
    pub(super) fn announce_boundaries(&mut self, e: &Entry) {
        for (off, copy) in e.thunk.copies().skip(1).filter(|(off, _)| *off < JUMP) {
            self.traps.set(e.addr() + off, copy);
        }
    }

    /// trap -> fenced
    pub(super) fn fence_boundaries(&mut self, e: &Entry) -> Result<(), CannotHook> {
        self.announce_boundaries(e);
        self.go(e.way_in(Form::Fenced).drain(FENCED).collect())
    }

    /// fenced -> jump
    pub(super) fn put_jump(&mut self, e: &Entry) -> Result<(), CannotHook> {
        self.go(e.way_in(Form::Jump).split_off(FENCED.end))
    }

    /// trap -> short
    pub(super) fn put_short(&mut self, e: &Entry) -> Result<(), CannotHook> {
        self.go(e.way_in(Form::Short).split_off(FENCED.end))
    }

    /// Any form -> trap: first byte int3, the rest of the window as it was.
    pub(super) fn back_to_trap(&mut self, e: &mut Entry) -> Result<(), CannotHook> {
        let mut way = e.way_back();
        way.pop();
        self.go(way)?;
        if matches!(e.form, Form::Jump | Form::Fenced) {
            e.boundaries().for_each(|off| self.traps.retire(e.addr() + off));
        }
        e.form = Form::Trap;
        Ok(())
    }

    /// Takes the patches back; the entries are out of the table.
    pub(super) fn remove_all(&mut self, entries: &mut [&mut Entry]) -> Vec<Detached> {
        let blocked = !entries.is_empty() && self.trap_blocker().is_some();
        // In one store: no thread is inside the window, since its boundaries trapped or do not exist.
        let at_once = |e: &Entry| blocked && e.form != Form::Trap && e.form != Form::Fenced;
        for e in entries.iter_mut() {
            e.site().set_want(Want::default());
            e.leaving = true;
        }
        let ways: Vec<_> = entries.iter().map(|e| if at_once(e) { vec![] } else { e.way_back() }).collect();
        let walked = self.walk(&ways);
        let mut pads = Vec::with_capacity(entries.len());
        for (e, walked) in entries.iter_mut().zip(&walked) {
            let restored = if at_once(e) { self.restore_at_once(e) } else { walked.is_ok() };
            pads.push(restored.then_some(e.pad()));
            if restored {
                self.traps.retire(e.addr());
                e.boundaries().for_each(|off| self.traps.retire(e.addr() + off));
                e.form = Form::Bare;
                e.leaving = false;
                self.leave_pad(e);
            }
        }
        // At once in a quiet program; else by `upgrade`, since looking at many threads takes time.
        if pads.iter().flatten().flatten().next().is_some()
            && self.grace.looked.is_none_or(|t| t.elapsed() > Duration::from_millis(10))
        {
            self.look_around();
            self.restore_pads();
        }
        let left = |pad: &Option<usize>| pad.is_some_and(|pad| self.pads.contains_key(&pad));
        let result = |restored: &Option<Option<usize>>| match restored {
            Some(pad) if !left(pad) => Detached::Restored,
            _ => Detached::Later,
        };
        pads.iter().map(result).collect()
    }

    fn restore_at_once(&mut self, e: &Entry) -> bool {
        self.text.write_at_once(e.addr(), e.covered()) == Some(true)
    }

    /// Makes a site cover nothing but its first instruction, without a moment in which a hit is missed.
    pub(super) fn narrow(&mut self, addr: usize) -> Result<(), CannotHook> {
        let Some(mut e) = self.entries.take(addr) else { return Ok(()) };
        let result = self.narrow_entry(&mut e);
        self.entries.put(e);
        result
    }

    pub(super) fn narrow_entry(&mut self, e: &mut Entry) -> Result<(), CannotHook> {
        if e.form == Form::Bare || e.thunk.count == 1 {
            return Ok(());
        }
        if let Some(tid) = self.trap_blocker() {
            return Err(CannotHook::TrapBlocked { addr: e.addr(), tid });
        }
        let code = self.original_of(e);
        let first = flow::decode(&code, e.addr() as u64).next().ok_or(CannotHook::NotCode(e.addr()))?;
        self.landing = e.thunk.landing.unwrap_or_default();
        let short = self.build_short(e.site(), &first, &code)?;
        let (pad, thunk) = match short {
            Some((pad, t)) => (Some(pad), t),
            None => (None, self.build_anywhere(e.site(), &[first], &code)?),
        };
        self.back_to_trap(e)?;
        e.site().set_thunk(thunk.at);
        self.traps.set(e.addr(), thunk.at);
        e.thunk = thunk;
        e.hopeless = true;
        if let Some(at) = pad {
            self.put(at, &jump(at, e.thunk.at))?;
            *e = e.with_pad(pad);
            self.put_short(e)?;
            e.form = Form::Short;
        }
        Ok(())
    }

    /// As `original`, for an entry that was taken out of the table.
    pub(super) fn original_of(&mut self, e: &Entry) -> Vec<u8> {
        let mut code = self.original(e.addr(), NEARBY);
        code.iter_mut().zip(e.covered()).for_each(|(byte, was)| *byte = *was);
        code
    }
}

pub(super) fn jump(from: usize, to: usize) -> [u8; JUMP] {
    let rel = (to.wrapping_sub(from + JUMP) as i32).to_le_bytes();
    [0xe9, rel[0], rel[1], rel[2], rel[3]]
}

pub(super) fn short(from: usize, to: usize) -> [u8; SHORT] {
    [0xeb, to.wrapping_sub(from + SHORT) as u8]
}
