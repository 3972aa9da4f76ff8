//! Rewriting `syscall` instructions.
//!
//! Threads block signals around the very system calls that matter here (a thread that is born or dies, raise,
//! posix_spawn), and an int3 would kill them. So the jump is written, and taken back, by one store, and no int3 is
//! ever where a thread goes. Where it replaces several instructions the inner boundaries read int3, for a thread
//! that was suspended exactly there; nothing branches there. What cannot be taken back is left as a detour without
//! effect.

use super::patch::jump;
use super::{Built, CannotHook, Engine, Entry, Form, INT3};
use crate::arch::syscall::{ROOM, Refs, assemble};
use crate::arch::{flow, relocate, syscall_common};
use crate::hook::plan::JUMP;
use crate::hook::syscall::SyscallSite;
use crate::hook::{Mute, Site, made, thunk};
use iced_x86::Instruction;

/// A `syscall` instruction and where its jump goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Where the jump goes: an instruction from which execution gets to `at` and nowhere else, but by a branch out.
    pub from: usize,
    /// The `syscall`.
    pub at: usize,
}

/// Whether a jump at `from` lies in one cache line, so that one store can write it.
pub fn fits_a_line(from: usize) -> bool {
    from % 64 + JUMP <= 64
}

impl Engine {
    /// Code at `addr` as the program was built.
    pub fn code(&mut self, addr: usize, len: usize) -> Vec<u8> {
        let _quiet = Mute::new();
        self.original(addr, len)
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
            } else if fits_a_line(call.from)
                && let Ok(entry) = self.prepare_call(call)
            {
                at_once.push((*call, entry));
            }
        }
        let writes: Vec<_> = at_once.iter().map(|(c, e)| (c.from, jump(c.from, e.thunk.at))).collect();
        for (call, e) in &at_once {
            e.thunk.copies.iter().for_each(|(off, copy)| self.traps.set(call.from + off, *copy));
        }
        let written = self.text.write_each_at_once(&writes);
        for (call, entry) in at_once {
            if written.contains(&call.from) {
                self.entries.insert(call.from, entry);
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
                Some((*f, <[u8; JUMP]>::try_from(self.entries.get(f)?.original.get(..JUMP)?).ok()?))
            })
            .collect();
        let written = self.text.write_each_at_once(&restore);
        for addr in &written {
            self.calls.remove(addr);
            if let Some(e) = self.entries.remove(addr) {
                e.thunk.copies.iter().for_each(|(off, _)| self.traps.retire(addr + off));
            }
        }
        restore.into_iter().map(|(f, _)| f).filter(|f| !written.contains(f)).collect()
    }

    /// Forgets calls in memory that was unmapped, after [`Engine::forget_unmapped`] of the same.
    pub fn forget_calls(&mut self, from: &[usize]) {
        for addr in from.iter().filter(|a| self.calls.remove(a)) {
            self.entries.remove(addr);
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
        let Some((last, before)) =
            insns.split_last().filter(|(l, b)| l.ip() == call.at as u64 && !b.is_empty())
        else {
            return Err(CannotHook::NotCode(from));
        };
        if code[0] == INT3 {
            return Err(CannotHook::Breakpoint(from));
        }
        let in_place = call.at - from >= JUMP;
        let displaced = if in_place { before } else { &insns[..] };
        let end = displaced.last().unwrap_or(last).next_ip() as usize;
        if !self.unclaimed(&(from..end), usize::MAX) || end - from < JUMP {
            return Err(CannotHook::InsideInstruction { addr: from, site: from });
        }
        let boundary = |off: usize| displaced.iter().any(|i| i.ip() as usize == from + off);
        let fixed = std::array::from_fn(|k| boundary(k + 1));
        let room = thunk::room(displaced.len()) + ROOM;
        let at =
            self.near.place(&mut self.maps, from + JUMP, fixed, room).ok_or(CannotHook::NoMemory(from))?;
        let thunk = self.build_call(call, at, before, displaced, &code)?;
        Ok(Entry {
            site: Site::new(from, self.callbacks),
            form: Form::Jump,
            thunk,
            original: code[..end - from].to_vec(),
            first_len: insns[0].len(),
            pad: None,
            since: 0,
            hopeless: true,
            leaving: false,
        })
    }

    fn build_call(
        &mut self,
        call: &Call,
        at: usize,
        before: &[Instruction],
        displaced: &[Instruction],
        code: &[u8],
    ) -> Result<Built, CannotHook> {
        let mut moved = relocate::relocate(before, code, at as u64)?;
        // Without the jump to the instruction behind: the system call's gate follows.
        let jump = |len: usize| {
            let mut back = Vec::new();
            relocate::jump(&mut back, (at + len) as u64, call.at as u64);
            back.len()
        };
        let whole = moved.code.len();
        let body = [5, 14].into_iter().map(|n| whole - n.min(whole)).find(|len| len + jump(*len) == whole);
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
        let copies: Vec<_> =
            displaced.iter().zip(starts).map(|(i, s)| (i.ip() as usize - call.from, at + s)).collect();
        made::remember(at, moved.code.len(), call.from, &copies);
        Ok(Built { at, landing: 0, copies })
    }
}
