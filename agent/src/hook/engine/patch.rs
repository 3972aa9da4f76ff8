//! Writing patches and taking them back, step by step as the rules in hook/mod.rs have it.

use super::{CannotHook, Detached, Engine, Entry, Form, INT3, NEARBY};
use crate::arch::flow;
use crate::hook::Want;
use crate::hook::plan::{JUMP, SHORT};
use std::time::Duration;

impl Engine {
    pub(super) fn put(&mut self, addr: usize, bytes: &[u8]) -> Result<(), CannotHook> {
        if !self.text.write(addr, bytes) {
            return Err(CannotHook::NotWritable(addr));
        }
        self.text.sync();
        Ok(())
    }

    /// Writes `bytes[i]` at `addr + i` for each `i` in `which`; no sync in between.
    pub(super) fn put_some(&mut self, addr: usize, bytes: &[u8], which: &[usize]) -> Result<(), CannotHook> {
        for &i in which {
            if !self.text.write(addr + i, &bytes[i..i + 1]) {
                return Err(CannotHook::NotWritable(addr + i));
            }
        }
        self.text.sync();
        Ok(())
    }

    pub(super) fn install(&mut self, e: &mut Entry) -> Result<(), CannotHook> {
        let addr = e.addr();
        e.site.set_thunk(e.thunk.at);
        if let Some(pad) = e.pad {
            self.put(pad, &jump(pad, e.thunk.at))?;
        }
        self.traps.set(addr, e.thunk.at);
        let at_once = e.thunk.copies.len() == 1 && e.form != Form::Trap && self.trap_blocker().is_some();
        if at_once {
            return self.install_at_once(e);
        }
        self.put(addr, &[INT3])?;
        match e.form {
            Form::Jump => {
                self.fence_boundaries(e)?;
                self.put_jump(e)
            }
            Form::Short => self.put_short(e),
            _ => Ok(()),
        }
    }

    /// For processes with threads that block SIGTRAP. Only single-instruction patches: no thread is ever inside.
    pub(super) fn install_at_once(&mut self, e: &mut Entry) -> Result<(), CannotHook> {
        let addr = e.addr();
        let bytes = match e.pad {
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

    pub(super) fn fence_boundaries(&mut self, e: &Entry) -> Result<(), CannotHook> {
        let inner: Vec<_> = e.boundaries().collect();
        if inner.is_empty() {
            return Ok(());
        }
        for (off, copy) in e.thunk.copies.iter().skip(1).filter(|(off, _)| *off < JUMP) {
            self.traps.set(e.addr() + off, *copy);
        }
        self.put_some(e.addr(), &[INT3; JUMP], &inner)
    }

    /// fenced -> jump. Where the boundaries must keep their int3, the displacement has it there.
    pub(super) fn put_jump(&mut self, e: &Entry) -> Result<(), CannotHook> {
        let bytes = jump(e.addr(), e.thunk.at);
        let inner: Vec<_> = e.boundaries().collect();
        let between: Vec<_> = (1..JUMP).filter(|i| !inner.contains(i)).collect();
        let differing: Vec<_> = inner.into_iter().filter(|&i| bytes[i] != INT3).collect();
        self.put_some(e.addr(), &bytes, &between)?;
        if !differing.is_empty() {
            self.put_some(e.addr(), &bytes, &differing)?;
        }
        self.put(e.addr(), &bytes[..1])
    }

    pub(super) fn put_short(&mut self, e: &Entry) -> Result<(), CannotHook> {
        let Some(pad) = e.pad else { return Ok(()) };
        let bytes = short(e.addr(), pad);
        self.put_some(e.addr(), &bytes, &[1])?;
        self.put(e.addr(), &bytes[..1])
    }

    /// Any form -> trap: first byte int3, the rest of the window as it was.
    pub(super) fn back_to_trap(&mut self, e: &mut Entry) -> Result<(), CannotHook> {
        if e.form == Form::Trap {
            return Ok(());
        }
        let addr = e.addr();
        self.put(addr, &[INT3])?;
        let inner: Vec<_> = e.boundaries().collect();
        let covered = e.covers().len().min(e.original.len());
        // A boundary that was overwritten by a jump (nobody is there) must not show an instruction before its tail.
        if e.form == Form::Jump && !inner.is_empty() {
            self.put_some(addr, &[INT3; JUMP], &inner)?;
        }
        let between: Vec<_> = (1..covered).filter(|i| !inner.contains(i)).collect();
        let original = e.original.clone();
        if !between.is_empty() {
            self.put_some(addr, &original, &between)?;
        }
        if !inner.is_empty() && matches!(e.form, Form::Jump | Form::Fenced) {
            self.put_some(addr, &original, &inner)?;
            inner.iter().for_each(|off| self.traps.retire(addr + off));
        }
        e.form = Form::Trap;
        Ok(())
    }

    pub(super) fn remove(&mut self, e: &mut Entry) -> Detached {
        e.site.set_want(Want::default());
        e.leaving = true;
        let addr = e.addr();
        let boundaries: Vec<_> = e.boundaries().collect();
        if self.trap_blocker().is_some() && e.form != Form::Trap && e.form != Form::Fenced {
            // In one store: no thread is inside the window, since its boundaries trapped or do not exist.
            let len = e.covers().len();
            let original = e.original[..len.min(e.original.len())].to_vec();
            if self.text.write_at_once(addr, &original) != Some(true) {
                return Detached::Later;
            }
            boundaries.iter().for_each(|off| self.traps.retire(addr + off));
        } else if self.back_to_trap(e).is_err() || self.put(addr, &e.original[..1]).is_err() {
            return Detached::Later;
        }
        self.traps.retire(addr);
        e.form = Form::Bare;
        e.leaving = false;
        if let Some(pad) = e.pad {
            self.leave_pad(e);
            // At once in a quiet program; else by `upgrade`, since looking at many threads takes time.
            if self.grace.looked.is_none_or(|t| t.elapsed() > Duration::from_millis(10)) {
                self.look_around();
                self.restore_pads();
            }
            if self.pads.contains_key(&pad) {
                return Detached::Later;
            }
        }
        Detached::Restored
    }

    /// Makes a site cover nothing but its first instruction, without a moment in which a hit is missed.
    pub(super) fn narrow(&mut self, addr: usize) -> Result<(), CannotHook> {
        let Some(mut e) = self.entries.remove(&addr) else { return Ok(()) };
        let result = self.narrow_entry(&mut e);
        self.entries.insert(addr, e);
        result
    }

    pub(super) fn narrow_entry(&mut self, e: &mut Entry) -> Result<(), CannotHook> {
        if e.thunk.copies.len() == 1 {
            return Ok(());
        }
        if let Some(tid) = self.trap_blocker() {
            return Err(CannotHook::TrapBlocked { addr: e.addr(), tid });
        }
        let code = self.original_of(e);
        let first = flow::decode(&code, e.addr() as u64).next().ok_or(CannotHook::NotCode(e.addr()))?;
        self.landing = e.thunk.landing;
        let short = self.build_short(e.site, &first, &code)?;
        let (pad, thunk) = match short {
            Some((pad, t)) => (Some(pad), t),
            None => (None, self.build_anywhere(e.site, &[first], &code)?),
        };
        self.back_to_trap(e)?;
        e.site.set_thunk(thunk.at);
        self.traps.set(e.addr(), thunk.at);
        e.thunk = thunk;
        e.original.truncate(e.first_len);
        e.hopeless = true;
        if let Some(at) = pad {
            self.put(at, &jump(at, e.thunk.at))?;
            e.pad = pad;
            self.put_short(e)?;
            e.form = Form::Short;
        }
        Ok(())
    }

    /// As `original`, for an entry that was taken out of the table.
    pub(super) fn original_of(&mut self, e: &Entry) -> Vec<u8> {
        let mut code = self.original(e.addr(), NEARBY);
        let n = e.covers().len().min(e.original.len()).min(code.len());
        code[..n].copy_from_slice(&e.original[..n]);
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
