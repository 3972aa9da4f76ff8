//! Probes by the hundred. What takes time at a site is interrupting all cores after each step, so a step is done at all
//! sites of a batch before the cores are interrupted once for it.

use super::NEARBY;
use super::{CannotHook, Detached, Engine, Entry, Form};
use crate::hook::maps::Maps;
use crate::hook::{Mute, Site, Want};

/// Sites that are written together. Few enough that threads which were asked whether they block SIGTRAP were asked a
/// moment ago.
pub const BATCH: usize = 128;

impl Engine {
    /// Probes `addr`, or changes what is wanted there. After an error nothing is changed.
    pub fn attach(&mut self, addr: usize, want: Want) -> Result<&'static Site, CannotHook> {
        let mut results = self.attach_all(&[(addr, want)]);
        results.pop().unwrap_or(Err(CannotHook::NotExecutable(addr)))
    }

    /// [`Engine::attach`] for many addresses: as if one after the other, and much faster.
    pub fn attach_all(&mut self, wanted: &[(usize, Want)]) -> Vec<Result<&'static Site, CannotHook>> {
        let _quiet = Mute::new();
        let mut results = Vec::with_capacity(wanted.len());
        for some in wanted.chunks(BATCH) {
            let first = results.len();
            results.extend(some.iter().map(|(addr, want)| self.prepare_probe(*addr, *want)));
            self.install_pending();
            let refused = std::mem::take(&mut self.refused);
            for (result, (addr, _)) in results[first..].iter_mut().zip(some) {
                if let Some(error) = refused.get(addr) {
                    *result = Err(error.clone());
                }
            }
        }
        results
    }

    /// Tells how many sites are coming: tables are made large enough at once.
    pub fn expect(&mut self, sites: usize) {
        // A first instruction and, mostly, two more boundaries.
        self.traps.expect(sites * 3);
        self.entries.expect(sites);
        self.sites.expect(sites);
        self.records.expect(sites);
    }

    /// Ends the probe and restores the text byte for byte.
    pub fn detach(&mut self, addr: usize) -> Detached {
        self.detach_all(&[addr]).pop().unwrap_or(Detached::Absent)
    }

    /// [`Engine::detach`] for many addresses.
    pub fn detach_all(&mut self, addrs: &[usize]) -> Vec<Detached> {
        let _quiet = Mute::new();
        addrs.chunks(BATCH).flat_map(|some| self.detach_some(some)).collect()
    }

    fn detach_some(&mut self, addrs: &[usize]) -> Vec<Detached> {
        let mut results = vec![Detached::Absent; addrs.len()];
        let (mut at, mut entries) = (Vec::new(), Vec::<Entry>::new());
        for (i, addr) in addrs.iter().enumerate() {
            if self.entries.get(*addr).is_some_and(|e| e.form != Form::Bare) {
                at.push(i);
                entries.extend(self.entries.take(*addr));
            }
        }
        let mut leaving: Vec<&mut Entry> = entries.iter_mut().collect();
        for (i, result) in at.into_iter().zip(self.remove_all(&mut leaving)) {
            results[i] = result;
        }
        entries.into_iter().for_each(|e| self.enter(e));
        results
    }

    /// Puts an entry (back) into the table.
    pub(super) fn enter(&mut self, e: Entry) {
        if e.waits() {
            self.unsettled.insert(e.addr());
        }
        self.entries.put(e);
    }

    /// Everything up to the first change of the program's text, for which [`Engine::install_pending`] is there.
    fn prepare_probe(&mut self, addr: usize, want: Want) -> Result<&'static Site, CannotHook> {
        self.yield_calls(addr);
        if let Some(e) = self.entries.get_mut(addr)
            && e.form != Form::Bare
        {
            e.leaving = false;
            e.site().set_want(want);
            return Ok(e.site());
        }
        if !self.maps.executable(addr) {
            self.maps = Maps::read();
            if !self.maps.executable(addr) {
                return Err(CannotHook::NotExecutable(addr));
            }
        }
        self.make_room(addr)?;
        let code = self.original(addr, NEARBY);
        let site = self.entries.get(addr).map(Entry::site);
        let site = site.unwrap_or_else(|| self.sites.put(Site::new(addr, self.callbacks)));
        let entry = self.prepare(site, want, &code)?;
        site.set_want(want);
        // Others see what it claims; its text is as before, which is what they take it to be.
        self.entries.put(entry);
        self.pending.push(addr);
        Ok(site)
    }

    /// Writes the patches of all sites that are prepared.
    pub(super) fn install_pending(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let mut batch: Vec<Entry> = pending.iter().filter_map(|addr| self.entries.take(*addr)).collect();
        let results = self.install_all(&mut batch);
        for (mut e, result) in batch.into_iter().zip(results) {
            let addr = e.addr();
            if let Err(error) = result {
                e.site().set_want(Want::default());
                self.leave_pad(&mut e);
                e.form = Form::Bare;
                self.refused.insert(addr, error);
            }
            let trap = e.form == Form::Trap;
            self.enter(e);
            if trap {
                self.start_grace(addr);
            }
        }
    }

    fn install_all(&mut self, batch: &mut [Entry]) -> Vec<Result<(), CannotHook>> {
        let blocked = !batch.is_empty() && self.trap_blocker().is_some();
        // No int3 while a thread blocks SIGTRAP: such patches have no inner boundary.
        let at_once = |e: &Entry| blocked && e.thunk.count == 1 && e.form != Form::Trap;
        batch.iter().for_each(|e| self.announce(e));
        let pads: Vec<_> = batch.iter().map(|e| e.way_to_pad()).collect();
        let mut results = self.walk(&pads);
        let ways: Vec<_> = batch
            .iter()
            .zip(&results)
            .map(|(e, padded)| if padded.is_err() || at_once(e) { vec![] } else { e.way_in(e.form) })
            .collect();
        for (result, walked) in results.iter_mut().zip(self.walk(&ways)) {
            *result = std::mem::replace(result, Ok(())).and(walked);
        }
        for (e, result) in batch.iter_mut().zip(&mut results) {
            if result.is_ok() && at_once(e) {
                *result = self.install_at_once(e);
            }
        }
        results
    }

    /// Tells the SIGTRAP handler of a site's breakpoints to come.
    fn announce(&mut self, e: &Entry) {
        e.site().set_thunk(e.thunk.at);
        self.traps.set(e.addr(), e.thunk.at);
        if e.form == Form::Jump {
            self.announce_boundaries(e);
        }
    }
}
