//! Choosing a form for a site and building its thunk. Nothing of the program is touched here.

use super::{CannotHook, Engine, Entry, Form, INT3, Look, Pad};
use crate::arch::{Landing, flow, sys};
use crate::hook::made::Made;
use crate::hook::near::Fixed;
use crate::hook::plan::{self, JUMP, SHORT, Window};
use crate::hook::{Site, Want, tasks, thunk};
use iced_x86::Instruction;
use std::ops::Range;
use std::time::{Duration, Instant};

impl Engine {
    /// Code at `addr` as the program was built, whatever we wrote over it.
    pub(super) fn original(&mut self, addr: usize, len: usize) -> Vec<u8> {
        let mut code = vec![0; len];
        let got = self.text.read(addr, &mut code);
        if got < len {
            // The read may have stopped at the mapping's end, or refused a page: take what the first page has.
            let first = (addr | 4095) + 1 - addr;
            let retry = if got == 0 { self.text.read(addr, &mut code[..first.min(len)]) } else { got };
            code.truncate(retry);
        }
        let end = addr + code.len();
        let mut put = |at: usize, bytes: &[u8]| {
            for (i, b) in bytes.iter().enumerate().filter(|(i, _)| (addr..end).contains(&(at + i))) {
                code[at + i - addr] = *b;
            }
        };
        for e in self.entries.range(addr.saturating_sub(256)..end).filter(|e| e.form != Form::Bare) {
            put(e.addr(), e.covered());
        }
        for (at, pad) in self.pads.range(addr.saturating_sub(JUMP)..end) {
            put(*at, &pad.original);
        }
        code
    }

    /// Narrows the site whose window covers `addr`, if there is one.
    pub(super) fn make_room(&mut self, addr: usize) -> Result<(), CannotHook> {
        let earlier: Vec<_> = self
            .entries
            .range(addr.saturating_sub(16)..addr)
            .filter(|e| e.form != Form::Bare)
            .map(|e| (e.addr(), e.first_len as usize, e.covers().contains(&addr), e.thunk))
            .collect();
        for (site, first_len, covered, thunk) in earlier {
            let boundary = thunk.copies().any(|(off, _)| site + off == addr);
            if addr < site + first_len || (covered && !boundary) {
                return Err(CannotHook::InsideInstruction { addr, site });
            }
            // Its thunk runs a copy of our instruction, even where the window ends before it.
            if boundary {
                self.install_pending();
                self.narrow(site)?;
            }
        }
        Ok(())
    }

    /// True when no other site's patch or padding, and no other site's address, lies in `range`.
    pub(super) fn unclaimed(&self, range: &Range<usize>, but: usize) -> bool {
        let apart = |r: Range<usize>| r.end <= range.start || range.end <= r.start;
        let sites = self.entries.range(range.start.saturating_sub(16)..range.end);
        let pads = self.pads.range(range.start.saturating_sub(JUMP)..range.end);
        sites
            .filter(|e| e.addr() != but && e.form != Form::Bare)
            .all(|e| apart(e.addr()..e.addr() + (e.first_len as usize).max(1)) && apart(e.covers()))
            && pads
                .filter(|(_, p)| p.owner != but || p.leaving.is_none())
                .all(|(at, _)| apart(*at..*at + JUMP))
    }

    /// Chooses a form and builds the thunk for it. Nothing of the program is touched yet.
    pub(super) fn prepare(
        &mut self,
        site: &'static Site,
        want: Want,
        code: &[u8],
    ) -> Result<Entry, CannotHook> {
        let addr = site.addr;
        let flags = flow::status_flags_live(code, addr as u64);
        self.landing = Landing { flags, only_return: want == Want::RETURN };
        let first = flow::decode(code, addr as u64).next().ok_or(CannotHook::NotCode(addr))?;
        if code[0] == INT3 {
            return Err(CannotHook::Breakpoint(addr));
        }
        let entry = |form, thunk, pad| {
            let entry = Entry {
                form,
                thunk,
                first_len: first.len() as u8,
                pad: None,
                since: 0,
                hopeless: false,
                leaving: false,
                out: false,
            };
            entry.with_pad(pad)
        };
        let blocker = self.trap_blocker();
        if first.len() >= JUMP
            && let Some(t) = self.build_near(site, &[first], code, addr + JUMP, [false; 4])?
        {
            return Ok(entry(Form::Jump, t, None));
        }
        if blocker.is_none()
            && let Some(w) = Window::at(code, addr as u64)
            && w.insns.len() > 1
            && self.unclaimed(&(addr..w.insns.last().map_or(addr, |i| i.next_ip() as usize)), addr)
            && let Ok(Some(t)) = self.build_near(site, &w.insns, code, addr + JUMP, w.fixed())
        {
            return Ok(entry(Form::Jump, t, None));
        }
        if let Some((pad, t)) = self.build_short(site, &first, code)? {
            return Ok(entry(Form::Short, t, Some(pad)));
        }
        if let Some(tid) = blocker {
            return Err(CannotHook::TrapBlocked { addr, tid });
        }
        let t = self.build_anywhere(site, &[first], code)?;
        Ok(entry(Form::Trap, t, None))
    }

    pub(super) fn build_short(
        &mut self,
        site: &'static Site,
        first: &Instruction,
        code: &[u8],
    ) -> Result<Option<(usize, &'static Made)>, CannotHook> {
        if first.len() < SHORT {
            return Ok(None);
        }
        let free = |at: usize| self.unclaimed(&(at..at + JUMP), site.addr);
        let Some(pad) = plan::padding(code, site.addr as u64, free) else { return Ok(None) };
        let Some(thunk) = self.build_near(site, std::slice::from_ref(first), code, pad + JUMP, [false; 4])?
        else {
            return Ok(None);
        };
        // Our own from an earlier probe, not restored yet: usable if it says the same.
        if self.pads.get(&pad).is_some_and(|p| p.target != thunk.at) {
            return Ok(None);
        }
        let mut original = [0; JUMP];
        original.copy_from_slice(&code[pad - site.addr..][..JUMP]);
        self.pads.insert(pad, Pad { original, owner: site.addr, target: thunk.at, leaving: None });
        Ok(Some((pad, thunk)))
    }

    pub(super) fn build_near(
        &mut self,
        site: &'static Site,
        insns: &[Instruction],
        code: &[u8],
        from: usize,
        fixed: Fixed,
    ) -> Result<Option<&'static Made>, CannotHook> {
        if let Some(t) = self.reuse(site.addr, insns, code, from, fixed) {
            return Ok(Some(t));
        }
        let room = thunk::room(insns.len());
        let Some(at) = self.near.place(&mut self.maps, from, fixed, room) else { return Ok(None) };
        self.build(at, site, insns, code).map(Some)
    }

    pub(super) fn build_anywhere(
        &mut self,
        site: &'static Site,
        insns: &[Instruction],
        code: &[u8],
    ) -> Result<&'static Made, CannotHook> {
        if let Some(t) = self.build_near(site, insns, code, site.addr + JUMP, [false; 4])? {
            return Ok(t);
        }
        let at = self.near.anywhere(thunk::room(insns.len())).ok_or(CannotHook::NoMemory(site.addr))?;
        self.build(at, site, insns, code)
    }

    /// The thunk of an earlier probe at this address, if it does what is needed.
    pub(super) fn reuse(
        &mut self,
        addr: usize,
        insns: &[Instruction],
        code: &[u8],
        from: usize,
        fixed: Fixed,
    ) -> Option<&'static Made> {
        let e = self.entries.get(addr).filter(|e| e.form == Form::Bare)?;
        let len: usize = insns.iter().map(|i| i.len()).sum();
        let disp = i32::try_from(e.thunk.at as i64 - from as i64).ok()?.to_le_bytes();
        let fits = fixed.iter().zip(disp).all(|(f, b)| !f || b == INT3);
        // The landing for return probes passes on what is not for it.
        let lands = e.thunk.landing.is_some_and(|l| {
            l == self.landing || l.only_return && (l.flags || l.flags == self.landing.flags)
        });
        let same = lands
            && e.thunk.count as usize == insns.len()
            && e.thunk.original().len() == len
            && code.starts_with(e.thunk.original());
        (fits && same).then_some(e.thunk)
    }

    pub(super) fn build(
        &mut self,
        at: usize,
        site: &'static Site,
        insns: &[Instruction],
        code: &[u8],
    ) -> Result<&'static Made, CannotHook> {
        let landing = self.landing;
        let made = thunk::assemble(at, std::ptr::from_ref(site) as usize, landing.address(), insns, code)?;
        let written =
            if self.near.paged { write_paged(at, &made.bytes) } else { self.text.write(at, &made.bytes) };
        if !written {
            return Err(CannotHook::NoMemory(site.addr));
        }
        let moved = insns.iter().zip(&made.starts).map(|(i, start)| (i.ip() as usize - site.addr, *start));
        let len = insns.iter().map(|i| i.len()).sum();
        let made = (at, made.bytes.len());
        Ok(self.records.remember(made, site, Some(landing), moved, &code[..len]))
    }

    /// A thread that blocks SIGTRAP, if any. Looking takes 20 us per thread, and 20 ms if there is one: not repeated
    /// for every site when many are attached to a process of many threads.
    pub(super) fn trap_blocker(&mut self) -> Option<i32> {
        // A thread can always begin to block it a moment after the look, and is killed if it runs into an int3 then: what was
        // found is believed no longer than it takes to write a batch. A look per site would only cost; but of many threads it
        // takes a share of the processor that they leave us.
        const NONE: Duration = Duration::from_millis(1);
        const MOST: Duration = Duration::from_millis(2);
        const ONE: Duration = Duration::from_millis(200);
        if let Some(last) = &self.blocks_trap {
            let valid = if last.found.is_some() { ONE } else { last.took.clamp(NONE, MOST) };
            if last.at.elapsed() < valid {
                return last.found;
            }
        }
        let start = Instant::now();
        let found = tasks::blocks_trap();
        self.blocks_trap = Some(Look { at: Instant::now(), took: start.elapsed(), found });
        found
    }
}

/// Writes to a thunk's own pages, then makes them executable: where /proc/self/mem is closed.
pub(super) fn write_paged(at: usize, bytes: &[u8]) -> bool {
    let start = at & !4095;
    let len = (at + bytes.len()).next_multiple_of(4096) - start;
    // SAFETY: pages that hold this thunk only, which nobody runs yet.
    unsafe {
        let protect = |prot: i32| sys::syscall(libc::SYS_mprotect, [start, len, prot as usize, 0, 0, 0]) == 0;
        if !protect(libc::PROT_READ | libc::PROT_WRITE) {
            return false;
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len());
        protect(libc::PROT_READ | libc::PROT_EXEC)
    }
}
