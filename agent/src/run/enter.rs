//! From a probe hit to its programs: the callbacks that the hook engine's thunks call.

use super::image::Func;
use super::{FUEL, Reads, Run, process};
use crate::arch::PtRegs;
use crate::arch::guarded::Recover;
use crate::hook::{Site, ThreadBlock};
use bpftime_shm::session::page::{OwnerWord, Page};
use bpftime_vm::RunHeader;
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
    /// Compiled code.
    pub func: Func,
    /// Keeps code and maps alive while the entry is published.
    pub program: Arc<super::image::Program>,
    /// Whose program it is.
    pub session: Arc<Session>,
    /// Cleared first at detach, so that no hit counts after the tool was told.
    pub enabled: Arc<AtomicBool>,
    /// The link's cookie.
    pub cookie: u64,
    /// Only in this process, or 0. A forked child carries the probe but is not traced.
    pub only_pid: u32,
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

/// Entry callback of the hook engine. Always lets the function run.
///
/// # Safety
/// Called by a thunk with the site it was made for and the registers it saved.
pub unsafe extern "C" fn on_entry(site: *const Site, regs: *mut PtRegs) -> u64 {
    // SAFETY: the engine passes a live site and the registers its thunk saved.
    let (site, regs) = unsafe { (&*site, &*regs) };
    if let Some(programs) = published(site) {
        if let Some(internal) = programs.internal {
            internal();
        }
        hit(&programs.entry, regs, site.addr as u64, programs.at_entry);
    }
    0
}

/// Return callback of the hook engine.
///
/// # Safety
/// As [`on_entry`].
pub unsafe extern "C" fn on_return(site: *const Site, regs: *mut PtRegs) {
    // SAFETY: as in `on_entry`.
    let (site, regs) = unsafe { (&*site, &*regs) };
    if let Some(programs) = published(site) {
        hit(&programs.ret, regs, site.addr as u64, false);
    }
}

/// The list the site runs, if any.
#[inline]
fn published(site: &Site) -> Option<&Programs> {
    // Acquire: pairs with the Release in `Sites::install`.
    // SAFETY: a published list lives until `quiesce` says that no thread in a callback reads it.
    unsafe { site.programs.load(Ordering::Acquire).cast::<Programs>().as_ref() }
}

#[inline]
fn hit(entries: &[Entry], regs: &PtRegs, func_ip: u64, at_entry: bool) {
    if entries.is_empty() {
        return;
    }
    let Some(block) = ThreadBlock::current() else { return };
    let pid = process::pid();
    let tid = process::tid(block, pid);
    for entry in entries {
        if !entry.enabled.load(Ordering::Relaxed) || (entry.only_pid != 0 && entry.only_pid != pid) {
            continue;
        }
        let who = Who { block, pid, tid, thread: tid };
        let ctx = std::ptr::from_ref(regs) as u64;
        run_entry(entry, &who, ctx, regs, func_ip, at_entry);
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

/// Runs one program of an event that is not a probe, on a context of its own. `regs` are the thread's.
pub fn run_event(entry: &Entry, who: &Who, regs: &PtRegs, ctx: u64) {
    if entry.enabled.load(Ordering::Relaxed) && (entry.only_pid == 0 || entry.only_pid == who.pid) {
        run_entry(entry, who, ctx, regs, 0, false);
    }
}

#[inline]
fn run_entry(entry: &Entry, who: &Who, ctx: u64, regs: &PtRegs, func_ip: u64, at_entry: bool) {
    let session = &*entry.session;
    let owner = OwnerWord::new(session.owner.load(Ordering::Relaxed), who.thread);
    let Some(cpu) = session.page.acquire(process::current_cpu(), owner, process::thread_alive) else {
        return;
    };
    let mut run = Run {
        header: header(who.pid, who.tid, cpu, entry.cookie, func_ip),
        regs,
        page: &session.page,
        owner,
        reads: Reads::Unknown,
        program: &*entry.program,
        at_entry,
    };
    let faulted = call_guarded(who.block, entry.func, ctx, &mut run);
    session.page.release(cpu);
    if faulted || run.header.fuel < 0 {
        abandoned(entry);
    }
}

/// What compiled code reads by itself. `func_ip` is the probed instruction, or the function for a return probe.
#[inline]
fn header(pid: u32, tid: u32, cpu: u32, cookie: u64, func_ip: u64) -> RunHeader {
    let pid_tgid = u64::from(pid) << 32 | u64::from(tid);
    RunHeader { fuel: FUEL, pid_tgid, cookie, func_ip, cpu, reserved: 0 }
}

/// Calls the program; true when a fault in its code ended it.
#[inline]
fn call_guarded(block: &ThreadBlock, func: Func, ctx: u64, run: &mut Run) -> bool {
    let mut recover = Recover::new();
    let args = [func as usize as u64, ctx, run as *mut Run as u64, 0];
    // SAFETY: the thread's own block; a program may be abandoned anywhere, it holds nothing but its CPU slot, which
    // the caller gives back.
    unsafe { block.run_guarded(call, args, &mut recover).faulted != 0 }
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
    entry.enabled.store(false, Ordering::Relaxed);
}

/// Runs a program in the tool itself, on `ctx`: BPF_PROG_TEST_RUN (bpftrace's BEGIN and END) and interval timers.
pub fn run_here(
    program: &super::image::Program,
    session: &Session,
    ctx: *mut u8,
    cookie: u64,
) -> Option<u64> {
    let block = ThreadBlock::current()?;
    let pid = process::pid();
    let tid = process::tid(block, pid);
    let owner = OwnerWord::new(session.owner.load(Ordering::Relaxed), tid);
    let cpu = session.page.acquire(process::current_cpu(), owner, process::thread_alive)?;
    let mut run = Run {
        header: header(pid, tid, cpu, cookie, 0),
        regs: std::ptr::null(),
        page: &session.page,
        owner,
        reads: Reads::Unknown,
        program,
        at_entry: false,
    };
    let mut recover = Recover::new();
    let args = [program.entry() as usize as u64, ctx as u64, &raw mut run as u64, 0];
    // SAFETY: as in `call_guarded`; `ctx` is what the program's type expects.
    let outcome = unsafe { block.run_guarded(call, args, &mut recover) };
    session.page.release(cpu);
    Some(outcome.value)
}
