//! What must wait until every thread was seen elsewhere: breakpoints that become jumps, padding that is restored.

use super::{Detached, Engine, Entry, Form};
use crate::hook::plan::{JUMP, Window};
use crate::hook::tasks::Suspects;
use std::time::Instant;

/// How much of a function is read to look for branches into the window.
const FUNCTION: usize = 64 << 10;

impl Engine {
    /// No thread goes to the padding any more, but one may be suspended on its jump: restored, it would run into
    /// whatever follows. So the bytes come back when every thread was seen elsewhere.
    pub(super) fn leave_pad(&mut self, e: &mut Entry) {
        if let Some(pad) = e.pad.take().and_then(|at| self.pads.get_mut(&at)) {
            pad.leaving = Some(self.grace.begun);
        }
    }

    /// Restores padding that nobody can be on; how much remains.
    pub(super) fn restore_pads(&mut self) -> usize {
        let ended = self.grace.ended;
        let gone: Vec<_> = self
            .pads
            .iter()
            .filter(|(_, p)| p.leaving.is_some_and(|since| since < ended))
            .map(|(at, _)| *at)
            .collect();
        for at in gone {
            let original = self.pads[&at].original;
            if self.put(at, &original).is_ok() {
                self.pads.remove(&at);
            }
        }
        self.pads.values().filter(|p| p.leaving.is_some()).count()
    }

    /// Advances the grace period, if anything waits for one.
    pub(super) fn look_around(&mut self) {
        let fenced = self.entries.values().filter(|e| e.form == Form::Fenced).map(|e| (e.covers(), e.since));
        let pads = self.pads.iter().filter_map(|(at, p)| Some((*at..*at + JUMP, p.leaving?)));
        let ended = self.grace.ended;
        let windows: Vec<_> =
            fenced.chain(pads).filter(|(_, since)| *since >= ended).map(|(w, _)| w).collect();
        if windows.is_empty() {
            self.grace.running = None;
            return;
        }
        self.grace.looked = Some(Instant::now());
        let suspects = self.grace.running.get_or_insert_with(|| {
            self.grace.begun += 1;
            Suspects::all()
        });
        if suspects.clear(&windows) {
            self.grace.running = None;
            self.grace.ended = self.grace.begun;
        }
    }

    /// trap -> fenced, if the jump can follow once no thread is inside.
    pub(super) fn start_grace(&mut self, addr: usize) {
        let Some(mut e) = self.entries.remove(&addr) else { return };
        e.hopeless |= !self.try_fence(&mut e);
        self.entries.insert(addr, e);
    }

    pub(super) fn try_fence(&mut self, e: &mut Entry) -> bool {
        let addr = e.addr();
        let mut code = self.original(addr, FUNCTION);
        code[..e.original.len()].copy_from_slice(&e.original);
        let Some(w) = Window::at(&code, addr as u64) else { return false };
        let end = w.insns.last().map_or(addr, |i| i.next_ip() as usize);
        if !w.never_entered(&code) || !self.unclaimed(&(addr..end), addr) {
            return false;
        }
        self.landing = e.thunk.landing;
        let Ok(Some(thunk)) = self.build_near(e.site, &w.insns, &code, addr + JUMP, [false; 4]) else {
            return false;
        };
        e.site.set_thunk(thunk.at);
        self.traps.set(addr, thunk.at);
        e.thunk = thunk;
        e.original = code[..end - addr].to_vec();
        if self.fence_boundaries(e).is_err() {
            return false;
        }
        e.form = Form::Fenced;
        e.since = self.grace.begun;
        true
    }

    /// One step for a waiting site; true if it still waits.
    pub(super) fn advance(&mut self, addr: usize) -> bool {
        let Some(mut e) = self.entries.remove(&addr) else { return false };
        let waits = self.advance_entry(&mut e);
        self.entries.insert(addr, e);
        waits
    }

    pub(super) fn advance_entry(&mut self, e: &mut Entry) -> bool {
        if e.leaving {
            return self.remove(e) == Detached::Later && e.leaving;
        }
        if e.since >= self.grace.ended {
            return true;
        }
        if self.put_jump(e).is_ok() {
            e.form = Form::Jump;
        }
        false
    }
}
