//! The rewritten instructions of this process: the control thread's side.

use super::find::{self, Looked};
use super::{Listeners, dispatch, effects, publish};
use crate::hook::{Call, Engine};
use crate::program::{self, Unfit};
use crate::resolve::Mapping;
use crate::signals;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// An executable mapping that was looked through.
struct Module {
    range: Range<usize>,
    looked: Looked,
    /// Code of Go, which is left alone: a call's stack may have no room for us.
    go: bool,
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
    /// There is code whose calls have to be dispatched, and may not be.
    refused: bool,
}

impl Calls {
    /// Whether any program is there.
    pub fn active(&self) -> bool {
        self.listeners.is_some()
    }

    /// Makes the programs what `listeners` says, and the code of `maps` lead to them.
    pub fn set(&mut self, engine: &mut Engine, listeners: Listeners, maps: &[Mapping]) {
        let mut new = (!listeners.is_empty()).then(|| Box::new(listeners));
        new.iter_mut().for_each(|l| l.complete());
        publish(new.as_deref());
        self.retired.extend(std::mem::replace(&mut self.listeners, new));
        self.look(engine, maps);
    }

    /// Follows the code that came and went.
    pub fn look(&mut self, engine: &mut Engine, maps: &[Mapping]) {
        let others = Others::read();
        let maps = &whole(maps.iter().chain(&others.vdso));
        self.forget_unmapped(engine, maps);
        if self.active() {
            // A filter that came before the first program for system calls was not seen coming.
            signals::read_seccomp();
            note_linker(maps);
            self.read_modules(engine, maps);
        }
        self.rewrite(engine);
        if dispatch::wanted() {
            self.rewrite_seen(engine);
        }
        // Where Go runs nothing is dispatched: that too goes on on the stack of the call.
        let go = self.modules.values().any(|m| m.go);
        let unseen = self.active() && (go || self.leaves_calls() || others.generated(engine, maps));
        self.refused = dispatch::want(unseen && !go) != unseen;
        if dispatch::wanted() {
            // Whatever is left now costs a signal each time, wanted or not.
            self.rewrite(engine);
        }
    }

    /// Whether some of the program's calls are not seen, because dispatching them is not possible.
    pub fn refused(&self) -> bool {
        self.refused
    }

    /// Whether a call that is wanted, or may be, is not rewritten.
    fn leaves_calls(&self) -> bool {
        let Some(listeners) = self.listeners.as_deref() else { return false };
        let bare = |f: &find::Found| f.call.is_none_or(|c| !self.standing.contains_key(&c.from));
        let loose = |at: &usize| !self.standing.contains_key(at);
        self.modules.values().any(|m| {
            m.looked.found.iter().any(|f| worth(f, listeners) && bare(f)) || m.looked.loose.iter().any(loose)
        })
    }

    /// Rewrites instructions that were recognised by being executed.
    fn rewrite_seen(&mut self, engine: &mut Engine) {
        const REACH: usize = 160;
        for at in dispatch::seen() {
            let Some(module) = self.modules.values().find(|m| m.range.contains(&at)) else { continue };
            if !module.looked.loose.contains(&at) || self.standing.contains_key(&at) {
                continue;
            }
            let around = at.saturating_sub(REACH).max(module.range.start)..(at + REACH).min(module.range.end);
            let code = engine.code(around.start, around.len());
            let call = find::beside_int3(&code, around.start, at);
            self.standing.extend(engine.attach_calls(call.as_slice()).into_iter().map(|c| (c.from, c)));
        }
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
        for m in maps.iter().filter(|m| m.exec && !is_ours(m) && !is_generated(m)) {
            if let Entry::Vacant(place) = self.modules.entry(m.start) {
                let go = is_go(m);
                let looked = if go { Looked::default() } else { read_module(engine, m, maps) };
                place.insert(Module { range: m.start..m.end, looked, go });
            }
        }
    }

    /// Rewrites what is wanted and not rewritten, and takes back what is not wanted any more.
    fn rewrite(&mut self, engine: &mut Engine) {
        let listeners = self.listeners.as_deref();
        let all = dispatch::wanted();
        let wanted = |f: &find::Found| f.call.filter(|_| listeners.is_some_and(|l| all || worth(f, l)));
        for module in self.modules.values() {
            let attach: Vec<Call> = module.looked.found.iter().filter_map(wanted).collect();
            if !attach.is_empty() {
                self.standing.extend(engine.attach_calls(&attach).into_iter().map(|c| (c.from, c)));
            }
            let others = module.looked.found.iter().filter(|f| wanted(f).is_none()).filter_map(|f| f.call);
            let loose = module.looked.loose.iter().copied().filter(|_| listeners.is_none());
            let detach: Vec<usize> =
                others.map(|c| c.from).chain(loose).filter(|f| self.standing.contains_key(f)).collect();
            if !detach.is_empty() {
                let left = engine.detach_calls(&detach);
                self.standing.retain(|from, _| !detach.contains(from) || left.contains(from));
            }
        }
    }
}

/// Code that /proc/self/maps shows without a file.
#[derive(Default)]
struct Others {
    vdso: Option<Mapping>,
    anonymous: Vec<Range<usize>>,
}

impl Others {
    fn read() -> Self {
        let mut out = Self::default();
        let text = std::fs::read_to_string("/proc/thread-self/maps").unwrap_or_default();
        text.lines().filter_map(Self::parse).for_each(|(range, name)| match name {
            "[vdso]" => out.vdso = Some(vdso(range)),
            // Calls into it are no system calls.
            "[vsyscall]" => {}
            _ => out.anonymous.push(range),
        });
        out
    }

    /// An executable mapping of no file, and its name.
    fn parse(line: &str) -> Option<(Range<usize>, &str)> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let executable = fields.next()?.as_bytes().get(2) == Some(&b'x');
        let inode = fields.nth(2)?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        (executable && inode == "0").then(|| (range, fields.next().unwrap_or("")))
    }

    /// Whether the program has code that it may change at any time: which we neither read nor rewrite.
    fn generated(&self, engine: &Engine, maps: &[Mapping]) -> bool {
        let foreign =
            |r: &Range<usize>| engine.foreign(r.clone()).into_iter().any(|r| !crate::signals::is_program(r));
        self.anonymous.iter().any(foreign) || maps.iter().any(|m| m.exec && is_generated(m) && !is_ours(m))
    }
}

/// The vDSO, as the mapping of a file of its own.
fn vdso(range: Range<usize>) -> Mapping {
    let path = "[vdso]".to_owned();
    Mapping {
        start: range.start,
        end: range.end,
        offset: 0,
        exec: true,
        writable: false,
        dev: 0,
        ino: 0,
        path,
    }
}

/// A file that is being written while it runs: memory that a compiler shares with itself under two addresses.
fn is_generated(m: &Mapping) -> bool {
    m.writable || m.path.starts_with("/memfd:") || m.path.starts_with("/dev/shm/")
}

/// Remembers where the dynamic linker is.
fn note_linker(maps: &[Mapping]) {
    let notify = crate::lifecycle::linker_notify_address().unwrap_or(0);
    if let Some(m) = maps.iter().find(|m| m.exec && (m.start..m.end).contains(&notify)) {
        effects::set_linker(m.start..m.end);
    }
}

/// The mappings with neighbours joined that are one piece of a file: patching splits them.
fn whole<'a>(maps: impl Iterator<Item = &'a Mapping>) -> Vec<Mapping> {
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

/// Whether the call can be an event: its number is wanted or not known, or it does something of which we must know.
fn worth(f: &find::Found, listeners: &Listeners) -> bool {
    const CHILDREN: [i64; 4] = [libc::SYS_clone, libc::SYS_fork, libc::SYS_vfork, libc::SYS_clone3];
    const CODE: [i64; 3] = [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect];
    const ENDS: [i64; 2] = [libc::SYS_exit, libc::SYS_exit_group];
    let Some(nr) = f.nr else { return true };
    let own = [&CHILDREN[..], &CODE, if listeners.wants_tasks() { &ENDS } else { &[] }];
    listeners.wants(nr as i32) || own.concat().contains(&(nr as i64))
}

/// Our own code makes its system calls as itself.
fn is_ours(m: &Mapping) -> bool {
    let us = is_ours as fn(&Mapping) -> bool as usize;
    (m.start..m.end).contains(&us) || m.path.rsplit('/').next().is_some_and(|n| n.starts_with("libbpftime-"))
}

/// A program may have been deleted since it was started; a library is still where it was found a moment ago.
fn is_go(m: &Mapping) -> bool {
    let own = Path::new("/proc/self/exe");
    let is_program = std::fs::metadata(own).is_ok_and(|st| st.ino() == m.ino);
    program::unfit(if is_program { own } else { Path::new(&m.path) }) == Some(Unfit::Go)
}

fn read_module(engine: &mut Engine, m: &Mapping, maps: &[Mapping]) -> Looked {
    let base =
        maps.iter().filter(|b| b.offset == 0 && b.ino == m.ino && b.dev == m.dev && b.start <= m.start);
    let table = base.max_by_key(|b| b.start).and_then(|base| unwind_table(engine, base.start));
    let functions =
        table.map_or(Vec::new(), |table| find::functions(table, &mut |addr, len| engine.code(addr, len)));
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
