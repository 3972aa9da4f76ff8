//! Attaching and detaching: the control thread's side.

mod batch;
mod entries;
mod grace;
mod patch;
mod prepare;
mod syscall;

pub use batch::BATCH;
use entries::Entries;
pub use syscall::{Call, fits_a_line, short_reaches};

use super::keep::Keep;
use super::made::{Made, Records};
use super::maps::Maps;
use super::near::Near;
use super::plan::{JUMP, SHORT};
use super::tasks::Suspects;
use super::text::Text;
use super::thread::{self, Mute};
use super::trap::Traps;
use super::{Callbacks, Site, Want};
use crate::arch::relocate::CannotMove;
use crate::arch::{Landing, sys};
use crate::signals;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroI16;
use std::ops::Range;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};

const INT3: u8 = 0xcc;
/// How much code is read to plan a patch.
const NEARBY: usize = 192;

/// Why an address cannot be probed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotHook {
    /// Not code.
    #[error("{0:#x} is not in an executable mapping")]
    NotExecutable(usize),
    /// Bytes that are no instruction.
    #[error("the bytes at {0:#x} are not an x86-64 instruction")]
    NotCode(usize),
    /// A debugger, or another tool, was here first.
    #[error("{0:#x} holds a breakpoint of somebody else")]
    Breakpoint(usize),
    /// Not an instruction boundary, as an existing probe shows.
    #[error("{addr:#x} is in the middle of an instruction: the probe at {site:#x} displaced it")]
    InsideInstruction {
        /// The address asked for.
        addr: usize,
        /// The probe that knows better.
        site: usize,
    },
    /// The instruction must stay where it is.
    #[error("{0}")]
    Unmovable(#[from] CannotMove),
    /// Only a breakpoint would do, which would kill that thread.
    #[error(
        "{addr:#x} can be probed by a breakpoint only, and thread {tid} blocks SIGTRAP: the kernel would kill it there"
    )]
    TrapBlocked {
        /// The address asked for.
        addr: usize,
        /// A thread that blocks SIGTRAP.
        tid: i32,
    },
    /// No address space or memory for the thunk.
    #[error("no memory for the thunk of {0:#x}")]
    NoMemory(usize),
    /// The kernel refuses to change text.
    #[error(
        "the kernel refuses to write to the code at {0:#x} (neither /proc/self/mem nor mprotect works: SELinux, MDWE?)"
    )]
    NotWritable(usize),
}

/// How a site is patched, for statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Not patched.
    Bare,
    /// An int3: right, and slow.
    Trap,
    /// int3 at every boundary, on the way to `Jump`: [`Engine::upgrade`].
    Fenced,
    /// A 5-byte jump.
    Jump,
    /// A 2-byte jump to a 5-byte one in padding.
    Short,
}

/// What became of a detach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// The text is as it was.
    Restored,
    /// The probe does nothing any more, but the text could not be restored safely yet; [`Engine::upgrade`] tries again.
    Later,
    /// There was no probe.
    Absent,
}

/// A site as the engine knows it. Small, as [`Made`].
#[derive(Clone, Copy)]
struct Entry {
    thunk: &'static Made,
    /// Distance of the padding in use, within reach of a short jump.
    pad: Option<NonZeroI16>,
    /// Waits for a grace period after this one.
    since: u32,
    form: Form,
    first_len: u8,
    /// Never try to upgrade again.
    hopeless: bool,
    leaving: bool,
    /// Somebody works on a copy: see entries.rs.
    out: bool,
}

impl Entry {
    fn addr(&self) -> usize {
        self.thunk.site.addr
    }
    fn site(&self) -> &'static Site {
        self.thunk.site
    }
    /// Address of the padding in use.
    fn pad(&self) -> Option<usize> {
        self.pad.map(|distance| self.addr().wrapping_add_signed(distance.get().into()))
    }
    fn with_pad(self, at: Option<usize>) -> Self {
        let distance = |at: usize| NonZeroI16::new(at.wrapping_sub(self.addr()) as i16);
        Self { pad: at.and_then(distance), ..self }
    }
    /// Bytes that differ from the original.
    fn covers(&self) -> Range<usize> {
        let len = match self.form {
            Form::Bare => 0,
            Form::Trap => 1,
            Form::Short => SHORT,
            Form::Fenced | Form::Jump => JUMP,
        };
        self.addr()..self.addr() + len
    }
    /// What the bytes that differ were.
    fn covered(&self) -> &'static [u8] {
        let original = self.thunk.original();
        &original[..self.covers().len().min(original.len())]
    }
    /// Whether [`Engine::upgrade`] has to do something about it yet.
    fn waits(&self) -> bool {
        self.form == Form::Fenced || self.leaving
    }
    fn boundaries(&self) -> impl Iterator<Item = usize> + '_ {
        self.thunk.copies().skip(1).map(|(off, _)| off).filter(|off| *off < JUMP)
    }
}

/// Padding that holds a site's 5-byte jump.
struct Pad {
    original: [u8; JUMP],
    owner: usize,
    target: usize,
    /// Nobody jumps here any more, but threads may be suspended on it until a grace period after this one.
    leaving: Option<u32>,
}

/// Grace periods, as in RCU: at the end of one, every thread was seen outside of all windows that wait, since its
/// beginning.
#[derive(Default)]
struct Grace {
    begun: u32,
    ended: u32,
    running: Option<Suspects>,
    looked: Option<Instant>,
}

/// When threads were last asked whether they block SIGTRAP.
struct Look {
    at: Instant,
    took: Duration,
    found: Option<i32>,
}

/// The one engine of a process.
pub struct Engine {
    callbacks: &'static Callbacks,
    /// Sites, and records of thunks, that are never freed.
    sites: Keep<Site>,
    records: Records,
    text: Text,
    near: Near,
    maps: Maps,
    traps: Traps,
    /// By address; also detached ones, whose thunks are used again.
    entries: Entries,
    pads: BTreeMap<usize, Pad>,
    grace: Grace,
    blocks_trap: Option<Look>,
    /// Where the thunk being built will call.
    landing: Landing,
    /// Which entries are system calls and not probes.
    calls: BTreeSet<usize>,
    /// Prepared and entered, not written yet: batch.rs.
    pending: Vec<usize>,
    /// What of the batch could not be written.
    refused: BTreeMap<usize, CannotHook>,
    /// All entries that are fenced or leaving, and some that were: what [`Engine::upgrade`] looks at, which is called
    /// often and must not cost as much as there are probes.
    unsettled: BTreeSet<usize>,
    /// As `unsettled`, of the padding that is left.
    left_pads: BTreeSet<usize>,
}

impl Engine {
    /// Installs the signal handlers and readies the process for patching. Call it on the control thread.
    pub fn new(callbacks: Callbacks) -> Self {
        signals::install();
        signals::read_seccomp();
        static ATFORK: std::sync::Once = std::sync::Once::new();
        // SAFETY: the child handler touches atomics only.
        ATFORK.call_once(|| unsafe {
            libc::pthread_atfork(None, None, Some(thread::forked));
        });
        let mut text = Text::open();
        let near = Near::new(!text.writes_through());
        let maps = Maps::read();
        Self {
            callbacks: Box::leak(Box::new(callbacks)),
            sites: Keep::default(),
            records: Records::default(),
            text,
            near,
            maps,
            traps: Traps::default(),
            entries: Entries::default(),
            pads: BTreeMap::new(),
            grace: Grace::default(),
            blocks_trap: None,
            landing: Landing::default(),
            calls: BTreeSet::new(),
            pending: Vec::new(),
            refused: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            left_pads: BTreeSet::new(),
        }
    }

    /// The probed addresses and how they are patched.
    pub fn sites(&self) -> impl Iterator<Item = (&'static Site, Form)> + '_ {
        let probes = self.entries.values().filter(|e| !self.calls.contains(&e.addr()));
        probes.filter(|e| e.form != Form::Bare && !e.leaving).map(|e| (e.site(), e.form))
    }

    /// The site of an address that is probed or was.
    pub fn site(&self, addr: usize) -> Option<&'static Site> {
        self.entries.get(addr).map(Entry::site)
    }

    /// The bytes that stood at a probed address before the patch.
    pub fn displaced(&self, addr: usize) -> Option<&[u8]> {
        self.entries.get(addr).map(|e| e.thunk.original())
    }

    /// Forgets sites in memory that was unmapped, without touching it.
    pub fn forget_unmapped(&mut self, ranges: &[Range<usize>]) {
        for e in self.entries.values_mut().filter(|e| ranges.iter().any(|r| r.contains(&e.addr()))) {
            e.site().set_want(Want::default());
            self.traps.forget(e.addr());
            for (off, _) in e.thunk.copies() {
                self.traps.forget(e.addr() + off);
            }
            e.form = Form::Bare;
            e.pad = None;
            e.leaving = false;
        }
        self.pads.retain(|at, _| !ranges.iter().any(|r| r.contains(at)));
        self.maps = Maps::read();
    }

    /// Turns breakpoints into jumps where that has become safe, and finishes delayed detaches. Call it now and then;
    /// returns how many sites still wait.
    pub fn upgrade(&mut self) -> usize {
        let _quiet = Mute::new();
        self.look_around();
        let mut waiting = std::mem::take(&mut self.unsettled);
        waiting.retain(|addr| self.entries.get(*addr).is_some_and(|e| e.waits()) && self.advance(*addr));
        self.unsettled.append(&mut waiting);
        self.unsettled.len() + self.restore_pads()
    }

    /// Waits until every thread that was in a callback when this was called has left it. After `true`, what the
    /// callbacks could see before may be freed; after `false` (`limit` passed) it may not.
    pub fn quiesce(&mut self, limit: Duration) -> bool {
        let exact = self.text.fence();
        if !exact {
            // No membarrier: a store buffer drains within far less.
            std::thread::sleep(Duration::from_millis(10));
        }
        let me = sys::gettid();
        let pid = sys::getpid();
        let start = Instant::now();
        for block in thread::all().filter(|b| b.tid.load(Relaxed) != me) {
            // Acquire pairs with the Release in `leave`.
            let before = block.active.load(Acquire);
            if before & 0xffff == 0 {
                continue;
            }
            let mut turns = 0u32;
            while block.active.load(Acquire) & 0xffff != 0 && block.active.load(Acquire) >> 16 == before >> 16
            {
                if turns % 64 == 63 && thread::orphaned(block, pid, me) {
                    break;
                }
                if start.elapsed() > limit {
                    return false;
                }
                turns += 1;
                if turns < 64 {
                    std::hint::spin_loop()
                } else {
                    std::thread::sleep(Duration::from_micros(50))
                }
            }
        }
        true
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let all: Vec<_> = self.sites().map(|(s, _)| s.addr).collect();
        self.detach_all(&all);
    }
}
