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
        let Some(at) = e.pad() else { return };
        e.pad = None;
        if let Some(pad) = self.pads.get_mut(&at) {
            pad.leaving = Some(self.grace.begun);
            self.left_pads.insert(at);
        }
    }

    /// Restores padding that nobody can be on; how much remains.
    pub(super) fn restore_pads(&mut self) -> usize {
        let ended = self.grace.ended;
        let mut left = std::mem::take(&mut self.left_pads);
        left.retain(|at| {
            // `None`: in use again, or unmapped.
            let Some((since, original)) = self.pads.get(at).and_then(|p| Some((p.leaving?, p.original)))
            else {
                return false;
            };
            let gone = since < ended && self.put(*at, &original).is_ok();
            if gone {
                self.pads.remove(at);
            }
            !gone
        });
        self.left_pads.append(&mut left);
        self.left_pads.len()
    }

    /// Advances the grace period, if anything waits for one.
    pub(super) fn look_around(&mut self) {
        let entries = self.unsettled.iter().filter_map(|at| self.entries.get(*at));
        let fenced = entries.filter(|e| e.form == Form::Fenced).map(|e| (e.covers(), e.since));
        let pads =
            self.left_pads.iter().filter_map(|at| Some((*at..*at + JUMP, self.pads.get(at)?.leaving?)));
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
        let Some(mut e) = self.entries.take(addr) else { return };
        e.hopeless |= !self.try_fence(&mut e);
        self.enter(e);
    }

    pub(super) fn try_fence(&mut self, e: &mut Entry) -> bool {
        let addr = e.addr();
        let mut code = self.original(addr, FUNCTION);
        let original = e.thunk.original();
        code[..original.len()].copy_from_slice(original);
        let Some(w) = Window::at(&code, addr as u64) else { return false };
        let end = w.insns.last().map_or(addr, |i| i.next_ip() as usize);
        if !w.never_entered(&code) || !self.unclaimed(&(addr..end), addr) {
            return false;
        }
        self.landing = e.thunk.landing.unwrap_or_default();
        let Ok(Some(thunk)) = self.build_near(e.site(), &w.insns, &code, addr + JUMP, [false; 4]) else {
            return false;
        };
        e.site().set_thunk(thunk.at);
        self.traps.set(addr, thunk.at);
        e.thunk = thunk;
        if self.fence_boundaries(e).is_err() {
            return false;
        }
        e.form = Form::Fenced;
        e.since = self.grace.begun;
        true
    }

    /// One step for a waiting site; true if it still waits.
    pub(super) fn advance(&mut self, addr: usize) -> bool {
        let Some(mut e) = self.entries.take(addr) else { return false };
        let waits = self.advance_entry(&mut e);
        self.entries.put(e);
        waits
    }

    pub(super) fn advance_entry(&mut self, e: &mut Entry) -> bool {
        if e.leaving {
            return self.remove_all(&mut [&mut *e]) == [Detached::Later] && e.leaving;
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
