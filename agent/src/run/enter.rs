//! From a probe hit to its programs: the callbacks that the hook engine's thunks call.

use super::helpers::signal;
use super::image::{Func, Program};
use super::{Bound, FUEL, Hit, Override, Reads, Run, TailCalls, process};
use crate::arch::PtRegs;
use crate::arch::guarded::Recover;
use crate::hook::{Site, ThreadBlock};
use bpftime_shm::session::page::{OwnerWord, Page};
use bpftime_vm::RunHeader;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// What a session's programs need at run time.
pub struct Session {
    /// CPU slots and wakeups.
    pub page: Page,
    /// This process's index in the session; changes when a forked child connects by itself.
    pub owner: AtomicU32,
}

/// One program on one probe.
pub struct Entry {
    bound: Bound,
    /// Cleared first at detach, so that no hit counts after the tool was told.
    enabled: Arc<AtomicBool>,
    /// Only in this process, or 0. A forked child carries the probe but is not traced.
    only_pid: u32,
    /// The link's id in its session.
    link: u32,
    /// Whose program it is. `bound` points to it, and to the program.
    pub session: Arc<Session>,
    _program: Arc<Program>,
}

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
        let bound = Bound::new(&program, &session, cookie);
        Self { bound, enabled, only_pid, link, session, _program: program }
    }

    #[inline]
    fn runs_in(&self, pid: u32) -> bool {
        self.enabled.load(Ordering::Relaxed)
            && (self.only_pid == 0 || self.only_pid == pid)
            && !(process::is_orphan() && self.session.page.link_closed(self.link))
    }
}

// SAFETY: the pointers of `bound` lead into the other fields, which may be shared between threads.
unsafe impl Send for Entry {}
// SAFETY: as above.
unsafe impl Sync for Entry {}

impl Bound {
    /// Points into all it is given.
    fn new(program: &Program, session: &Session, cookie: u64) -> Self {
        Self { func: program.entry(), page: &session.page, owner: &session.owner, program, cookie }
    }
}

/// What a site's `programs` word points to. Immutable once published.
#[derive(Default)]
pub struct Programs {
    /// Entry programs, newest first as in the kernel.
    pub entry: Vec<Entry>,
    /// Return programs.
    pub ret: Vec<Entry>,
    /// The probed instruction is the first of a function that saves its frame pointer next (see `stack`).
    pub at_entry: bool,
    /// Something of the agent's own, called instead of programs.
    pub internal: Option<fn()>,
}

/// Program runs ended by a fault or by running out of fuel, for `bpftime ps`.
pub static ABANDONED: AtomicU64 = AtomicU64::new(0);

/// Entry callback of the hook engine. 1: the function does not run, its caller gets `regs.ax`.
///
/// # Safety
/// Called by a thunk with the site it was made for and the registers it saved.
pub unsafe extern "C" fn on_entry(site: *const Site, regs: *mut PtRegs) -> u64 {
    // SAFETY: the engine passes a live site.
    let site = unsafe { &*site };
    let Some(programs) = published(site) else { return 0 };
    if let Some(internal) = programs.internal {
        internal();
    }
    let this = hit_of(site, regs, programs.at_entry, Override::Allowed);
    hit(&programs.entry, &this);
    (this.replaced.get() == Override::Done).into()
}

/// Return callback of the hook engine.
///
/// # Safety
/// As [`on_entry`].
pub unsafe extern "C" fn on_return(site: *const Site, regs: *mut PtRegs) {
    // SAFETY: as in `on_entry`.
    let site = unsafe { &*site };
    if let Some(programs) = published(site) {
        hit(&programs.ret, &hit_of(site, regs, false, Override::Refused));
    }
}

#[inline]
fn hit_of(site: &Site, regs: *mut PtRegs, at_entry: bool, replaced: Override) -> Hit {
    Hit { ctx: regs as u64, regs, func_ip: site.addr as u64, at_entry, replaced: Cell::new(replaced) }
}

/// The list the site runs, if any.
#[inline]
fn published(site: &Site) -> Option<&Programs> {
    // Acquire: pairs with the Release in `Sites::install`.
    // SAFETY: a published list lives until `quiesce` says that no thread in a callback reads it.
    unsafe { site.programs.load(Ordering::Acquire).cast::<Programs>().as_ref() }
}

#[inline]
fn hit(entries: &[Entry], hit: &Hit) {
    if entries.is_empty() {
        return;
    }
    let Some(block) = ThreadBlock::current() else { return };
    let pid = process::pid();
    let tid = process::tid(block, pid);
    let who = Who { block, pid, tid, thread: tid };
    entries.iter().for_each(|entry| run_event(entry, &who, hit));
    send_signals(block);
}

/// Sends the signals that programs asked for, outside of the callback: their handlers may not come back. The lists of
/// programs may be gone afterwards.
#[inline]
pub fn send_signals(block: &ThreadBlock) {
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

/// Runs one program of an event, if it is enabled and for this process.
#[inline]
pub fn run_event(entry: &Entry, who: &Who, hit: &Hit) {
    if entry.runs_in(who.pid) && run(&entry.bound, who, hit).is_some_and(|end| end == End::Abandoned) {
        abandoned(entry);
    }
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// By itself, with this result.
    Returned(u64),
    /// By a fault, or for want of fuel.
    Abandoned,
}

/// One run, on a CPU slot of its own; `None` when there was none to be had.
#[inline]
fn run(bound: &Bound, who: &Who, hit: &Hit) -> Option<End> {
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
    };
    let mut recover = Recover::new();
    let args = [bound.func as usize as u64, hit.ctx, &raw mut run as u64, 0];
    // SAFETY: the thread's own block; a program may be abandoned anywhere, it holds nothing but its CPU slot, which
    // is given back below.
    let outcome = unsafe { who.block.run_guarded(call, args, &mut recover) };
    page.release(cpu);
    let abandoned = outcome.faulted != 0 || run.header.fuel < 0;
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
    ABANDONED.fetch_add(1, Ordering::Relaxed);
    // The control thread takes the link off, and tells the tool.
    if entry.enabled.swap(false, Ordering::Relaxed) {
        crate::control::ask();
    }
}

/// Runs a program in the tool itself, on `ctx`: BPF_PROG_TEST_RUN (bpftrace's BEGIN and END) and interval timers. Its
/// result, 0 if it was abandoned; `None` when it could not start.
pub fn run_here(program: &Program, session: &Session, ctx: *mut u8, cookie: u64) -> Option<u64> {
    let block = ThreadBlock::current()?;
    let pid = process::pid();
    let tid = process::tid(block, pid);
    let who = Who { block, pid, tid, thread: tid };
    let hit = Hit::event(ctx as u64, std::ptr::null());
    let end = run(&Bound::new(program, session, cookie), &who, &hit)?;
    if signal::waiting(block) {
        signal::deliver(block);
    }
    match end {
        End::Returned(value) => Some(value),
        End::Abandoned => Some(0),
    }
}
