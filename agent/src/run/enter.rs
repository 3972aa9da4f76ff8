//! From a probe hit to its programs: the callbacks that the hook engine's thunks call.

use super::held::{self, Held};
use super::helpers::signal;
use super::image::{Func, Program};
use super::{Bound, FUEL, Hit, Override, Reads, Run, TailCalls, clock, process, session};
use crate::arch::PtRegs;
use crate::arch::guarded::Recover;
use crate::arch::runner;
use crate::hook::{Carried, Site, ThreadBlock, vfork_child};
use bpftime_shm::session::page::{OwnerWord, Page};
use bpftime_shm::session::stats;
use bpftime_shm::session::wire::NO_STATS;
use bpftime_vm::RunHeader;
use std::mem::offset_of;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// What a session's programs need at run time.
pub struct Session {
    /// CPU slots and wakeups.
    pub page: Page,
    /// This process's index in the session; changes when a forked child connects by itself.
    pub owner: AtomicU32,
}

/// One program on one probe. The assembly that runs it knows this layout.
#[repr(C)]
#[derive(Clone)]
pub struct Entry {
    bound: Bound,
    /// Into `switch`.
    enabled: *const AtomicBool,
    /// The words of the session's CPU slots, [`SLOT_STRIDE`](bpftime_shm::session::page::SLOT_STRIDE) bytes apart.
    slots: *const AtomicU64,
    slot_count: u32,
    /// Only in this process, or 0. A forked child carries the probe but is not traced.
    only_pid: u32,
    /// [`SLOTLESS`], [`VECTOR`], [`ONE_PROCESS`].
    traits: u32,
    /// The link's id in its session.
    link: u32,
    /// The program's row of run statistics.
    stats: u32,
    /// Whose program it is. `bound` points to it, and to the program.
    pub session: Arc<Session>,
    program: Arc<Program>,
    /// Cleared first at detach, so that no hit counts after the tool was told.
    switch: Arc<AtomicBool>,
    /// See [`Entry::of_session`].
    who: u64,
}

/// The program looks at nothing that belongs to a CPU: its runs need no CPU slot.
pub(crate) const SLOTLESS: u32 = 1;
/// The program writes vector registers.
pub(crate) const VECTOR: u32 = 2;
/// `only_pid` is not 0.
pub(crate) const ONE_PROCESS: u32 = 4;
/// Runs are counted and timed (BPF_ENABLE_STATS). The assembly does neither.
const COUNTED: u32 = 8;

pub(crate) const FUNC: usize = offset_of!(Entry, bound) + offset_of!(Bound, func);
pub(crate) const OWNER: usize = offset_of!(Entry, bound) + offset_of!(Bound, owner);
pub(crate) const COOKIE: usize = offset_of!(Entry, bound) + offset_of!(Bound, cookie);
pub(crate) const ENABLED: usize = offset_of!(Entry, enabled);
pub(crate) const SLOTS: usize = offset_of!(Entry, slots);
pub(crate) const SLOT_COUNT: usize = offset_of!(Entry, slot_count);
pub(crate) const ONLY_PID: usize = offset_of!(Entry, only_pid);
pub(crate) const TRAITS: usize = offset_of!(Entry, traits);
// A run's `bound` is the address of its entry.
const _: () = assert!(offset_of!(Entry, bound) == 0);

impl Entry {
    /// Keeps code and maps alive while it is published.
    pub fn new(
        program: Arc<Program>,
        session: Arc<Session>,
        cookie: u64,
        enabled: Arc<AtomicBool>,
        only_pid: u32,
        link: u32,
    ) -> Self {
        let bit = |is: bool, bit: u32| if is { bit } else { 0 };
        Self {
            bound: Bound::new(&program, &session, cookie),
            enabled: &*enabled,
            slots: session.page.slot_words(),
            slot_count: session.page.slots(),
            only_pid,
            link,
            stats: NO_STATS,
            traits: bit(program.is_local(), SLOTLESS)
                | bit(program.needs().vector, VECTOR)
                | bit(only_pid != 0, ONE_PROCESS),
            session,
            program,
            switch: enabled,
            who: 0,
        }
    }

    /// Whether a helper of the program reads the registers where the context is something else.
    pub(crate) fn reads_registers(&self) -> bool {
        self.program.reads_registers()
    }

    /// Whether nothing of a run has to be there, because no run can use it, and none can end early.
    fn is_bare(&self) -> bool {
        self.traits == SLOTLESS && self.program.needs().runs_through
    }

    /// The program runs at both ends of a call. At its address no other is called `who`, ever.
    pub fn of_session(self, who: u64) -> Self {
        Self { who, ..self }
    }

    /// See [`Entry::of_session`]; 0 for all others.
    pub fn session(&self) -> u64 {
        self.who
    }

    /// With a row of run statistics, and whether to count in it.
    pub fn with_stats(mut self, row: u32, counting: bool) -> Self {
        self.stats = row;
        self.traits |= if counting && self.row().is_some() { COUNTED } else { 0 };
        self
    }

    /// Whether somebody has to count the runs, which the assembly does not.
    pub(crate) fn is_counted(&self) -> bool {
        self.traits & COUNTED != 0
    }

    fn row(&self) -> Option<stats::Row<'_>> {
        self.session.page.stats(self.stats)
    }

    #[inline]
    fn runs_in(&self, pid: u32) -> bool {
        self.switch.load(Ordering::Relaxed)
            && (self.only_pid == 0 || self.only_pid == pid)
            && !(process::is_orphan() && self.session.page.link_closed(self.link))
    }
}

// SAFETY: the pointers lead into the last three fields, which may be shared between threads.
unsafe impl Send for Entry {}
// SAFETY: as above.
unsafe impl Sync for Entry {}

impl Bound {
    /// Points into all it is given.
    fn new(program: &Program, session: &Session, cookie: u64) -> Self {
        Self {
            func: program.entry(),
            page: &session.page,
            owner: &session.owner,
            program,
            cookie,
            at_entry: false,
        }
    }
}

/// What a site's `programs` word points to, alone or beside other sites: one list for all points of a link, mostly.
pub struct Programs {
    /// Entry programs, newest first as in the kernel.
    entry: Box<[Entry]>,
    /// Return programs.
    ret: Box<[Entry]>,
    /// Something of the agent's own, called instead of programs.
    internal: Option<fn()>,
    direct: Direct,
}

/// A [`Programs`] for the assembly in arch/x86_64. Part of it, and like it never changed while it is published.
#[repr(C)]
#[derive(Default)]
pub struct Direct {
    pub(crate) entry: List,
    pub(crate) ret: List,
}

/// Programs in a row.
#[repr(C)]
pub(crate) struct List {
    pub(crate) first: *const Entry,
    pub(crate) end: *const Entry,
    /// One of arch/x86_64/runner.rs.
    pub(crate) run: runner::Routine,
    /// [`List::REGISTERS`], [`List::LONG_WAY`].
    pub(crate) needs: u32,
}

impl List {
    /// Some program looks at the registers, so that all of them have to be there.
    pub(crate) const REGISTERS: u32 = 1;
    /// The assembly is not to run this, whatever it is: `on_entry` or `on_return` are.
    pub(crate) const LONG_WAY: u32 = 2;

    pub(crate) fn of(entries: &[Entry]) -> Self {
        const KNOWN: u32 = SLOTLESS | VECTOR | ONE_PROCESS;
        if entries.iter().any(|e| e.traits & !KNOWN != 0) {
            return Self::long_way();
        }
        let Range { start: first, end } = entries.as_ptr_range();
        let registers = entries.iter().any(|e| e.program.looks_at_context());
        let run = match entries {
            [] => runner::nothing(),
            [one] if one.is_bare() => runner::bare_one(),
            all if all.iter().all(Entry::is_bare) => runner::bare(),
            _ => runner::list(),
        };
        Self { first, end, run, needs: if registers { Self::REGISTERS } else { 0 } }
    }

    const fn long_way() -> Self {
        let run = runner::nothing();
        Self { first: std::ptr::null(), end: std::ptr::null(), run, needs: Self::LONG_WAY }
    }
}

impl Default for List {
    fn default() -> Self {
        Self::long_way()
    }
}

impl Direct {
    /// Whether the assembly has nothing to do with either.
    fn is_long_way(&self) -> bool {
        self.entry.needs & self.ret.needs & List::LONG_WAY != 0
    }

    /// What sites run that have nothing to be run directly.
    pub(crate) fn long_way() -> *mut Direct {
        static LONG_WAY: Direct = Direct { entry: List::long_way(), ret: List::long_way() };
        (&raw const LONG_WAY).cast_mut()
    }
}

// SAFETY: a Direct points into the lists of the Programs that it is part of.
unsafe impl Send for Direct {}
// SAFETY: as above.
unsafe impl Sync for Direct {}

impl Programs {
    /// Programs at entry and return. `at_entry`: the probed instruction is the first of a function that saves its frame
    /// pointer next (see `stack`).
    pub fn new(mut entry: Box<[Entry]>, ret: Box<[Entry]>, at_entry: bool) -> Self {
        entry.iter_mut().for_each(|e| e.bound.at_entry = at_entry);
        let unusual = entry.iter().any(|e| e.program.may_replace() || e.session() != 0);
        let counted = entry.iter().chain(&ret).any(Entry::is_counted);
        let direct = if unusual || counted {
            Direct::default()
        } else {
            Direct { entry: List::of(&entry), ret: List::of(&ret) }
        };
        Self { entry, ret, internal: None, direct }
    }

    /// Something of the agent's own, before the probed instruction.
    pub fn internal(call: fn()) -> Self {
        let (entry, ret) = (Box::default(), Box::default());
        Self { entry, ret, internal: Some(call), direct: Direct::default() }
    }

    /// Makes `list` what `site` runs; `None`: nothing. Gives what it ran before, of which this share may be dropped after
    /// [`crate::hook::Engine::quiesce`].
    pub fn publish(list: Option<Arc<Programs>>, site: &Site) -> Option<Arc<Programs>> {
        let programs = list.map_or(std::ptr::null(), Arc::into_raw);
        // SAFETY: null, or the list, which the site keeps from here on.
        let direct = unsafe { programs.as_ref() }
            .filter(|list| process::is_known() && !list.direct.is_long_way())
            .map_or(Direct::long_way(), |list| (&raw const list.direct).cast_mut());
        // Release: pairs with the Acquire in `published`, and with the loads of the assembly (x86 keeps their order);
        // the list is complete. A hit in between runs the old list or the new one.
        let before = site.programs.swap(programs.cast_mut().cast(), Ordering::AcqRel);
        site.direct.store(direct, Ordering::Release);
        // SAFETY: null, or what `into_raw` gave here an earlier time.
        (!before.is_null()).then(|| unsafe { Arc::from_raw(before.cast::<Programs>().cast_const()) })
    }
}

/// Program runs ended by a fault or by running out of fuel, for `bpftime ps`.
pub static ABANDONED: AtomicU64 = AtomicU64::new(0);

/// Entry callback of the hook engine. 1: the function does not run, its caller gets `regs.ax`. 2: nobody wants its return.
///
/// # Safety
/// Called by a thunk with the site it was made for and the registers it saved.
pub unsafe extern "C" fn on_entry(site: *const Site, regs: *mut PtRegs, carried: &mut Carried) -> u64 {
    // SAFETY: the engine passes a live site.
    let site = unsafe { &*site };
    let Some(programs) = published(site) else { return 0 };
    if let Some(internal) = programs.internal {
        internal();
    }
    let this = Hit::probe(site, regs, Override::Allowed);
    each_and_send(&programs.entry, |entry, who| match entry.session() {
        0 => {
            run_event(entry, who, &this);
        }
        _ => session::at_entry(entry, who, &this, carried),
    });
    match this.replaced.get() {
        Override::Done => 1,
        _ if carried.is_empty() && programs.ret.iter().all(|e| e.session() != 0) => 2,
        _ => 0,
    }
}

/// Return callback of the hook engine.
///
/// # Safety
/// As [`on_entry`].
pub unsafe extern "C" fn on_return(site: *const Site, regs: *mut PtRegs, carried: &mut Carried) {
    // SAFETY: as in `on_entry`.
    let site = unsafe { &*site };
    if let Some(programs) = published(site) {
        let this = Hit::probe(site, regs, Override::Refused);
        each_and_send(&programs.ret, |entry, who| match entry.session() {
            0 => {
                run_event(entry, who, &this);
            }
            _ => session::at_return(entry, who, &this, carried),
        });
    }
}

/// The list the site runs, if any.
#[inline]
fn published(site: &Site) -> Option<&Programs> {
    // Acquire: pairs with the Release in `Programs::publish`.
    // SAFETY: a published list lives until `quiesce` says that no thread in a callback reads it.
    unsafe { site.programs.load(Ordering::Acquire).cast::<Programs>().as_ref() }
}

/// Each program of a list, with the thread that runs it.
#[inline]
fn each_and_send(entries: &[Entry], mut run: impl FnMut(&Entry, &Who)) {
    // The callback's caller has made it.
    let Some(block) = ThreadBlock::existing().filter(|_| !entries.is_empty()) else { return };
    let who = Who::here(block);
    entries.iter().for_each(|entry| run(entry, &who));
    send_signals(block);
}

/// Sends the signals that programs asked for, outside of the callback: their handlers may not come back. The lists of
/// programs may be gone afterwards.
#[inline]
pub extern "C" fn send_signals(block: &ThreadBlock) {
    if signal::waiting(block) {
        block.leave();
        signal::deliver(block);
        block.enter();
    }
}

/// Who runs a program.
pub struct Who<'a> {
    /// The calling thread's block.
    pub block: &'a ThreadBlock,
    /// Process and thread as programs see them.
    pub pid: u32,
    /// See `pid`.
    pub tid: u32,
    /// The thread whose block this is: another one in a vfork child, which borrows its parent's.
    pub thread: u32,
}

impl<'a> Who<'a> {
    /// The calling thread, whose block this is.
    pub(crate) fn here(block: &'a ThreadBlock) -> Self {
        let pid = process::pid();
        let tid = process::tid(block, pid);
        if vfork_child(block).is_none() {
            block.settle(pid, tid);
        }
        Who { block, pid, tid, thread: tid }
    }
}

/// Runs one program of an event, if it is enabled and for this process; its result, if it ended by itself.
#[inline]
pub fn run_event(entry: &Entry, who: &Who, hit: &Hit) -> Option<u64> {
    if !entry.runs_in(who.pid) {
        return None;
    }
    let counted = if entry.is_counted() { entry.row() } else { None };
    match run(&entry.bound, who, hit, counted) {
        Some(End::Returned(value)) => return Some(value),
        Some(End::Abandoned) => abandoned(entry),
        None => missed(entry),
    }
    None
}

#[cold]
fn missed(entry: &Entry) {
    entry.row().into_iter().for_each(stats::Row::miss);
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// By itself, with this result.
    Returned(u64),
    /// By a fault, or for want of fuel.
    Abandoned,
}

/// One run, on a CPU slot of its own, counted where that is asked for; `None` when there was no slot to be had.
#[inline]
fn run(bound: &Bound, who: &Who, hit: &Hit, counted: Option<stats::Row>) -> Option<End> {
    // SAFETY: the owner of `bound` keeps what it points to.
    let (page, owner) = unsafe { (&*bound.page, &*bound.owner) };
    let owner = OwnerWord::new(owner.load(Ordering::Relaxed), who.thread);
    let cpu = page.acquire(process::current_cpu(), owner, process::thread_alive, || who.block.depth() > 1)?;
    let mut run = Run {
        header: RunHeader {
            fuel: FUEL,
            pid_tgid: u64::from(who.pid) << 32 | u64::from(who.tid),
            cookie: bound.cookie,
            func_ip: hit.func_ip,
            cpu,
            reserved: 0,
        },
        bound,
        hit,
        owner,
        reads: Reads::Unknown,
        tail: TailCalls::none(),
        held: Held::none(),
    };
    let mut recover = Recover::new();
    let args = [bound.func as usize as u64, hit.ctx, &raw mut run as u64, 0];
    let start = counted.map(|row| (row, clock::monotonic()));
    // SAFETY: the thread's own block; a program may be abandoned anywhere, what it holds is given back below.
    let outcome = unsafe { who.block.run_guarded(call, args, &mut recover) };
    let abandoned = outcome.faulted != 0 || run.header.fuel < 0;
    if abandoned {
        held::let_go(&mut run);
    }
    if let Some((row, start)) = start {
        // While the slot is still ours: so is its column.
        row.count(cpu, clock::monotonic().wrapping_sub(start));
    }
    page.release(cpu);
    Some(if abandoned { End::Abandoned } else { End::Returned(outcome.value) })
}

/// The program's own convention behind the guard's.
unsafe extern "C" fn call(func: u64, ctx: u64, run: u64, _: u64) -> u64 {
    // SAFETY: `func` is a linked program, called by the BPF convention with its context and run.
    unsafe {
        let func: Func = std::mem::transmute(func as usize);
        func(ctx, 0, 0, 0, 0, run as *mut Run)
    }
}

/// A program that faulted, or ran out of fuel, does not run again in this process.
#[cold]
fn abandoned(entry: &Entry) {
    let first = entry.switch.swap(false, Ordering::Relaxed);
    // Release: pairs with the Acquire in `take_off_failed`, which looks for links that are off when this has changed.
    ABANDONED.fetch_add(1, Ordering::Release);
    // The control thread takes the link off, and tells the tool.
    if first {
        crate::control::ask();
    }
}

/// For runner.rs: as [`abandoned`], and what the run holds is given back.
#[cold]
pub(crate) unsafe extern "C" fn give_up(entry: &Entry, run: *mut Run) {
    // SAFETY: the run that has just ended, on the caller's frame.
    held::let_go(unsafe { &mut *run });
    abandoned(entry);
}

/// For runner.rs: a program, when the CPU slot was not to be had at once.
#[cold]
pub(crate) unsafe extern "C" fn run_one(entry: &Entry, event: &Hit) {
    if let Some(block) = ThreadBlock::existing() {
        run_event(entry, &Who::here(block), event);
    }
}

/// Runs a program in the tool itself, on `ctx`: BPF_PROG_TEST_RUN (bpftrace's BEGIN and END) and interval timers. Its
/// result, 0 if it was abandoned; `None` when it could not start.
pub fn run_here(program: &Program, session: &Session, ctx: *mut u8, cookie: u64) -> Option<u64> {
    let block = ThreadBlock::current()?;
    let who = Who::here(block);
    let hit = Hit::event(ctx as u64, std::ptr::null());
    // As in a callback: a probe that a signal handler hits in the middle finds a run in progress.
    block.enter();
    let end = run(&Bound::new(program, session, cookie), &who, &hit, None);
    block.leave();
    let end = end?;
    if signal::waiting(block) {
        signal::deliver(block);
    }
    match end {
        End::Returned(value) => Some(value),
        End::Abandoned => Some(0),
    }
}
