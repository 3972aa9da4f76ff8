//! Rewriting `syscall` instructions.
//!
//! Threads block signals around the very system calls that matter here (a thread that is born or dies, raise,
//! posix_spawn), and an int3 would kill them. So the jump is written, and taken back, by one store, and no int3 is
//! ever where a thread goes. Where it replaces several instructions the inner boundaries read int3, for a thread
//! that was suspended exactly there; nothing branches there. Where nothing fits, the `syscall` itself becomes a 2-byte
//! jump to a 5-byte one in padding. What cannot be taken back is left as a detour without effect.

use super::patch::{jump, short};
use super::{CannotHook, Engine, Entry, Form, INT3, Pad};
use crate::arch::syscall::{ROOM, Refs, assemble};
use crate::arch::{flow, relocate, syscall_common};
use crate::hook::made::Made;
use crate::hook::plan::{JUMP, SHORT};
use crate::hook::syscall::SyscallSite;
use crate::hook::{Mute, Site, thunk};
use iced_x86::Instruction;
use std::ops::Range;

/// A `syscall` instruction and where its jump goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Where the jump goes: an instruction from which execution gets to `at` and nowhere else, but by a branch out.
    pub from: usize,
    /// The `syscall`.
    pub at: usize,
    /// Padding for a 5-byte jump, to which a 2-byte one goes that replaces the `syscall`; `from` is `at` then.
    pub pad: Option<usize>,
}

/// Whether a jump at `from` lies in one cache line, so that one store can write it.
pub fn fits_a_line(from: usize) -> bool {
    from % 64 + JUMP <= 64
}

/// Whether a 2-byte jump at `at` can be written by one store, and reach padding at `pad`.
pub fn short_reaches(at: usize, pad: usize) -> bool {
    let distance = pad as i64 - (at + SHORT) as i64;
    at % 64 + SHORT <= 64 && i8::try_from(distance).is_ok()
}

impl Engine {
    /// Code at `addr` as the program was built.
    pub fn code(&mut self, addr: usize, len: usize) -> Vec<u8> {
        let _quiet = Mute::new();
        self.original(addr, len)
    }

    /// The parts of `range` that are not our own code.
    pub fn foreign(&self, range: Range<usize>) -> Vec<Range<usize>> {
        let mut left = vec![range];
        for ours in self.near.all() {
            left = left.into_iter().flat_map(|r| without(r, ours)).collect();
        }
        left
    }

    /// Rewrites the calls; returns those that are, or were already. They are written together, since making text
    /// writable is what takes time.
    pub fn attach_calls(&mut self, calls: &[Call]) -> Vec<Call> {
        let _quiet = Mute::new();
        let mut done = Vec::new();
        let mut at_once = Vec::new();
        for call in calls {
            if self.calls.contains(&call.from) {
                done.push(*call);
            } else if (call.pad.is_some() || fits_a_line(call.from))
                && let Ok(entry) = self.prepare_call(call)
            {
                at_once.push((*call, entry));
            }
        }
        let patch = |c: &Call, e: &Entry| match c.pad {
            Some(pad) => short(c.from, pad).to_vec(),
            None => jump(c.from, e.thunk.at).to_vec(),
        };
        let writes: Vec<_> = at_once.iter().map(|(c, e)| (c.from, patch(c, e))).collect();
        for (call, e) in &at_once {
            e.thunk.copies().for_each(|(off, copy)| self.traps.set(call.from + off, copy));
        }
        let written = self.text.write_each_at_once(&writes);
        for (call, mut entry) in at_once {
            if !written.contains(&call.from) {
                self.leave_pad(&mut entry);
            } else {
                self.entries.put(entry);
                self.calls.insert(call.from);
                done.push(call);
            }
        }
        done
    }

    /// Takes rewritten calls back; returns those that stay, without effect, because they cannot be restored safely.
    pub fn detach_calls(&mut self, from: &[usize]) -> Vec<usize> {
        let _quiet = Mute::new();
        let restore: Vec<_> = from
            .iter()
            .filter(|f| self.calls.contains(f))
            .filter_map(|f| {
                let e = self.entries.get(*f)?;
                let len = if e.pad.is_some() { SHORT } else { JUMP };
                Some((*f, e.thunk.original().get(..len)?.to_vec()))
            })
            .collect();
        let written = self.text.write_each_at_once(&restore);
        for addr in &written {
            self.calls.remove(addr);
            if let Some(mut e) = self.entries.take(*addr) {
                e.thunk.copies().for_each(|(off, _)| self.traps.retire(addr + off));
                self.leave_pad(&mut e);
            }
        }
        restore.into_iter().map(|(f, _)| f).filter(|f| !written.contains(f)).collect()
    }

    /// Forgets calls in memory that was unmapped, after [`Engine::forget_unmapped`] of the same.
    pub fn forget_calls(&mut self, from: &[usize]) {
        for addr in from.iter().filter(|a| self.calls.remove(a)) {
            self.entries.take(*addr);
        }
    }

    /// Takes back the rewritten call in whose way a probe at `addr` would be.
    pub(super) fn yield_calls(&mut self, addr: usize) {
        let near = self.calls.range(addr.saturating_sub(16)..addr + 16).copied().collect::<Vec<_>>();
        if !near.is_empty() {
            self.detach_calls(&near);
        }
    }

    fn prepare_call(&mut self, call: &Call) -> Result<Entry, CannotHook> {
        let from = call.from;
        let code = self.original(from, call.at + 2 - from);
        let insns: Vec<Instruction> = flow::decode(&code, from as u64).collect();
        let Some((last, before)) = insns.split_last().filter(|(l, b)| {
            l.ip() == call.at as u64 && l.len() == SHORT && b.is_empty() == call.pad.is_some()
        }) else {
            return Err(CannotHook::NotCode(from));
        };
        if code[0] == INT3 {
            return Err(CannotHook::Breakpoint(from));
        }
        let in_place = call.pad.is_none() && call.at - from >= JUMP;
        let displaced = if in_place { before } else { &insns[..] };
        let end = displaced.last().unwrap_or(last).next_ip() as usize;
        let least = if call.pad.is_some() { SHORT } else { JUMP };
        if !self.unclaimed(&(from..end), usize::MAX) || end - from < least {
            return Err(CannotHook::InsideInstruction { addr: from, site: from });
        }
        let boundary = |off: usize| displaced.iter().any(|i| i.ip() as usize == from + off);
        let fixed = std::array::from_fn(|k| boundary(k + 1));
        let room = thunk::room(displaced.len()) + ROOM;
        let jump_at = call.pad.unwrap_or(from);
        let at =
            self.near.place(&mut self.maps, jump_at + JUMP, fixed, room).ok_or(CannotHook::NoMemory(from))?;
        let thunk = self.build_call(call, at, before, displaced, &code)?;
        if let Some(pad) = call.pad {
            self.take_pad(pad, from, thunk.at)?;
        }
        let entry = Entry {
            form: if call.pad.is_some() { Form::Short } else { Form::Jump },
            thunk,
            first_len: insns[0].len() as u8,
            pad: None,
            since: 0,
            hopeless: true,
            leaving: false,
            out: false,
        };
        Ok(entry.with_pad(call.pad))
    }

    /// Writes the jump into padding, where no thread is: not while one may be left over from an earlier jump there.
    fn take_pad(&mut self, pad: usize, owner: usize, target: usize) -> Result<(), CannotHook> {
        let free = self.unclaimed(&(pad..pad + JUMP), usize::MAX);
        let original = <[u8; JUMP]>::try_from(self.original(pad, JUMP));
        let (true, Ok(original)) = (free, original) else {
            return Err(CannotHook::InsideInstruction { addr: pad, site: owner });
        };
        self.put(pad, &jump(pad, target))?;
        self.pads.insert(pad, Pad { original, owner, target, leaving: None });
        Ok(())
    }

    fn build_call(
        &mut self,
        call: &Call,
        at: usize,
        before: &[Instruction],
        displaced: &[Instruction],
        code: &[u8],
    ) -> Result<&'static Made, CannotHook> {
        let mut moved = relocate::relocate(before, code, at as u64)?;
        // Without the jump to the instruction behind: the system call's gate follows.
        let jump = |len: usize| {
            let mut back = Vec::new();
            relocate::jump(&mut back, (at + len) as u64, call.at as u64);
            back.len()
        };
        let whole = moved.code.len();
        let body = [5, 14].into_iter().map(|n| whole - n.min(whole)).find(|len| len + jump(*len) == whole);
        // Nothing stands before a call that is replaced itself.
        let body = if before.is_empty() { Some(0) } else { body };
        moved.code.truncate(body.ok_or(CannotHook::NotCode(call.from))?);
        let mut starts = moved.starts;
        if displaced.len() > before.len() {
            starts.push(moved.code.len());
        }
        let site = SyscallSite::blank();
        let refs = Refs {
            site: site as usize,
            common: syscall_common(),
            after: call.at as u64 + 2,
            in_place: displaced.len() == before.len(),
        };
        let parts = assemble(&mut moved.code, at as u64, &refs);
        // SAFETY: a blank site whose thunk is not in the text yet.
        unsafe { SyscallSite::fill(site, call.at + 2, at, parts) };
        let written = if self.near.paged {
            super::prepare::write_paged(at, &moved.code)
        } else {
            self.text.write(at, &moved.code)
        };
        if !written {
            return Err(CannotHook::NoMemory(call.from));
        }
        let len = moved.code.len();
        let moved = displaced.iter().zip(starts).map(|(i, start)| (i.ip() as usize - call.from, start));
        let displaced: usize = displaced.iter().map(|i| i.len()).sum();
        let probe = self.sites.put(Site::new(call.from, self.callbacks));
        Ok(self.records.remember((at, len), probe, None, moved, &code[..displaced]))
    }
}

/// `range` without what it shares with `taken`.
fn without(range: Range<usize>, taken: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let below = range.start..range.end.min(taken.start);
    let above = range.start.max(taken.end)..range.end;
    let apart = taken.end <= range.start || range.end <= taken.start;
    let parts = if apart { [range, 0..0] } else { [below, above] };
    parts.into_iter().filter(|r| r.start < r.end)
}
