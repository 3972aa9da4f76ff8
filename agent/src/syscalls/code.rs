//! The rewritten instructions of this process: the control thread's side.

use super::find::{self, Found};
use super::{Listeners, publish};
use crate::hook::{Call, Engine};
use crate::resolve::Mapping;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

/// An executable mapping that was looked through.
struct Module {
    range: Range<usize>,
    found: Vec<Found>,
}

/// Programs at system calls, and the code that leads to them.
#[derive(Default)]
pub struct Calls {
    listeners: Option<Box<Listeners>>,
    /// Lists that a thread may still be reading.
    #[expect(clippy::vec_box, reason = "threads hold the address of the list, so it must not move")]
    retired: Vec<Box<Listeners>>,
    modules: BTreeMap<usize, Module>,
    /// What is rewritten, or left so without effect.
    standing: BTreeMap<usize, Call>,
}

impl Calls {
    /// Whether any program is there.
    pub fn active(&self) -> bool {
        self.listeners.is_some()
    }

    /// Makes the programs what `listeners` says, and the code of `maps` lead to them.
    pub fn set(&mut self, engine: &mut Engine, listeners: Listeners, maps: &[Mapping]) {
        let new = (!listeners.is_empty()).then(|| Box::new(listeners));
        publish(new.as_deref());
        self.retired.extend(std::mem::replace(&mut self.listeners, new));
        self.look(engine, maps);
    }

    /// Follows the code that came and went.
    pub fn look(&mut self, engine: &mut Engine, maps: &[Mapping]) {
        let maps = &whole(maps);
        self.forget_unmapped(engine, maps);
        if self.active() {
            self.read_modules(engine, maps);
        }
        self.rewrite(engine);
    }

    /// What may be freed once no thread is in a callback that began before now.
    pub fn collect_garbage(&mut self) {
        self.retired.clear();
    }

    /// Whether something waits for [`Calls::collect_garbage`].
    pub fn has_garbage(&self) -> bool {
        !self.retired.is_empty()
    }

    fn forget_unmapped(&mut self, engine: &mut Engine, maps: &[Mapping]) {
        let mapped =
            |m: &Module| maps.iter().any(|x| x.exec && x.start == m.range.start && x.end == m.range.end);
        let gone: Vec<_> = self.modules.values().filter(|m| !mapped(m)).map(|m| m.range.clone()).collect();
        for range in gone {
            self.modules.remove(&range.start);
            let lost: Vec<usize> = self.standing.range(range.clone()).map(|(from, _)| *from).collect();
            engine.forget_unmapped(std::slice::from_ref(&range));
            engine.forget_calls(&lost);
            self.standing.retain(|from, _| !range.contains(from));
        }
    }

    fn read_modules(&mut self, engine: &mut Engine, maps: &[Mapping]) {
        for m in maps.iter().filter(|m| m.exec && !is_ours(m)) {
            if let Entry::Vacant(place) = self.modules.entry(m.start) {
                let found = read_module(engine, m, maps);
                place.insert(Module { range: m.start..m.end, found });
            }
        }
    }

    /// Rewrites what is wanted and not rewritten, and takes back what is not wanted any more.
    fn rewrite(&mut self, engine: &mut Engine) {
        let listeners = self.listeners.as_deref();
        let wanted = |f: &Found| f.call.filter(|_| listeners.is_some_and(|l| worth(f, l)));
        for module in self.modules.values() {
            let attach: Vec<Call> = module.found.iter().filter_map(wanted).collect();
            if !attach.is_empty() {
                self.standing.extend(engine.attach_calls(&attach).into_iter().map(|c| (c.from, c)));
            }
            let others = module.found.iter().filter(|f| wanted(f).is_none()).filter_map(|f| f.call);
            let detach: Vec<usize> =
                others.map(|c| c.from).filter(|f| self.standing.contains_key(f)).collect();
            if !detach.is_empty() {
                let left = engine.detach_calls(&detach);
                self.standing.retain(|from, _| !detach.contains(from) || left.contains(from));
            }
        }
    }
}

/// The mappings with neighbours joined that are one piece of a file: patching splits them.
fn whole(maps: &[Mapping]) -> Vec<Mapping> {
    let mut out: Vec<Mapping> = Vec::new();
    for m in maps {
        match out.last_mut() {
            Some(l)
                if l.end == m.start
                    && (l.dev, l.ino, l.exec) == (m.dev, m.ino, m.exec)
                    && l.offset + (l.end - l.start) as u64 == m.offset =>
            {
                l.end = m.end;
            }
            _ => out.push(m.clone()),
        }
    }
    out
}

/// Whether the call can be an event: its number is wanted or not known, or it makes a child, of which we must know.
fn worth(f: &Found, listeners: &Listeners) -> bool {
    const CHILDREN: [i64; 3] = [libc::SYS_clone, libc::SYS_vfork, libc::SYS_clone3];
    match f.nr {
        // Unwinders know the signal frame by the bytes of the code that returns from it.
        Some(nr) if nr as i64 == libc::SYS_rt_sigreturn => false,
        Some(nr) => listeners.wants(nr as i32) || CHILDREN.contains(&(nr as i64)),
        None => true,
    }
}

/// Our own code makes its system calls as itself.
fn is_ours(m: &Mapping) -> bool {
    let us = is_ours as fn(&Mapping) -> bool as usize;
    (m.start..m.end).contains(&us) || m.path.rsplit('/').next().is_some_and(|n| n.starts_with("libbpftime-"))
}

fn read_module(engine: &mut Engine, m: &Mapping, maps: &[Mapping]) -> Vec<Found> {
    let base =
        maps.iter().filter(|b| b.offset == 0 && b.ino == m.ino && b.dev == m.dev && b.start <= m.start);
    let Some(base) = base.max_by_key(|b| b.start) else { return Vec::new() };
    let Some(table) = unwind_table(engine, base.start) else { return Vec::new() };
    let functions = find::functions(table, &mut |addr, len| engine.code(addr, len));
    let code = engine.code(m.start, m.end - m.start);
    find::find(&code, m.start, &functions)
}

/// Address of the `.eh_frame_hdr` of the ELF file mapped at `base`.
fn unwind_table(engine: &mut Engine, base: usize) -> Option<usize> {
    const PT_LOAD: u32 = 1;
    const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
    let head = engine.code(base, 64);
    if head.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let half = |b: &[u8], at: usize| Some(u16::from_le_bytes(b.get(at..at + 2)?.try_into().ok()?) as usize);
    let long = |b: &[u8], at: usize| Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?) as usize);
    let (phoff, phentsize, phnum) = (long(&head, 32)?, half(&head, 54)?, half(&head, 56)?);
    let table = engine.code(base.checked_add(phoff)?, phentsize * phnum);
    let rows: Vec<&[u8]> = table.chunks_exact(phentsize.max(56)).collect();
    let kind = |r: &&&[u8], k: u32| r.get(..4).is_some_and(|b| b == k.to_le_bytes());
    let load = rows.iter().find(|r| kind(r, PT_LOAD) && long(r, 8) == Some(0))?;
    let bias = base.wrapping_sub(long(load, 16)?);
    let hdr = rows.iter().find(|r| kind(r, PT_GNU_EH_FRAME))?;
    Some(bias.wrapping_add(long(hdr, 16)?))
}
