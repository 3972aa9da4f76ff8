//! System calls as events: which programs want them, and which instructions make them.
//!
//! # Rules
//! - [`enter`] and [`exit`] run in the program, under the rules of `run`; everything else is the control thread's.
//! - What is published is never changed, only replaced; the old goes when no thread can be reading it.
//! - Instructions that a jump cannot replace without an int3 in a thread's way, functions without unwind information,
//!   code that no file maps, and code where a probe stands, are left alone: the kernel hands us their calls
//!   ([`dispatch`]).
//! - Code of Go is left alone altogether, and nothing is dispatched in its processes: its stacks have no room for us.
//! - A call that a signal interrupts ends here when its handler is done, with what the program sees (-EINTR); one that
//!   the handler's return repeats is two calls, as in the kernel, and the first ends with -ERESTARTSYS. Where the
//!   kernel repeats a call by itself (no handler, a stop) we see one.

mod code;
pub(crate) mod direct;
pub(crate) mod dispatch;
pub(crate) mod effects;
mod exec;
mod find;
mod tasks;

pub(crate) use effects::Before;

pub use code::Calls;
pub use exec::report_exec;

use crate::arch::PtRegs;
use crate::arch::syscall::set_gate;
use crate::arch::{dispatch as gate, syscall};
use crate::hook::{ThreadBlock, vfork_child};
use crate::run::enter::{Entry, Who, run_event, send_signals};
use crate::run::{Hit, process};
use bpftime_abi::task::{Object, Place};
use bpftime_shm::session::wire::{CallContext, Side, SyscallEvent, TaskEvent};
use std::sync::atomic::{AtomicPtr, Ordering};

/// Numbers beyond this are reported to programs for all numbers only: no event of its own exists for them.
pub(crate) const NUMBERS: usize = 512;

/// One program of an event.
pub struct Listener {
    /// The program.
    pub entry: Entry,
    /// What it gets.
    pub context: CallContext,
}

/// The programs of one side.
#[derive(Default)]
struct SideList {
    any: Vec<Listener>,
    by_nr: Vec<Vec<Listener>>,
}

impl SideList {
    fn add(&mut self, nr: Option<u32>, listener: Listener) {
        let Some(nr) = nr.map(|nr| nr as usize).filter(|nr| *nr < NUMBERS) else {
            return self.any.push(listener);
        };
        if self.by_nr.len() <= nr {
            self.by_nr.resize_with(nr + 1, Vec::new);
        }
        self.by_nr[nr].push(listener);
    }

    fn of(&self, nr: i32) -> impl Iterator<Item = &Listener> {
        let own = usize::try_from(nr).ok().and_then(|nr| self.by_nr.get(nr));
        self.any.iter().chain(own.into_iter().flatten())
    }

    fn wanted(&self, nr: i32) -> bool {
        self.of(nr).next().is_some()
    }
}

/// All programs at system calls. Immutable once published.
#[derive(Default)]
pub struct Listeners {
    enter: SideList,
    exit: SideList,
    /// By `TaskKind`.
    tasks: [Vec<Listener>; 3],
    /// Made when all programs are there.
    direct: Option<direct::Direct>,
}

impl Listeners {
    /// Adds a program.
    pub fn add(&mut self, event: &SyscallEvent, entry: Entry) {
        let side = match event.side {
            Side::Enter => &mut self.enter,
            Side::Exit => &mut self.exit,
        };
        side.add(event.nr, Listener { entry, context: event.context });
    }

    /// Adds a program that waits for tasks to come and go.
    pub fn add_task(&mut self, event: &TaskEvent, entry: Entry) {
        self.tasks[event.kind as usize].push(Listener { entry, context: CallContext::Record });
    }

    /// Readies them for being published.
    fn complete(&mut self) {
        self.direct = process::is_known().then(|| direct::Direct::of(self));
    }

    /// Whether any program wants this number.
    pub fn wants(&self, nr: i32) -> bool {
        self.enter.wanted(nr) || self.exit.wanted(nr)
    }

    /// Whether there is no program at all.
    pub fn is_empty(&self) -> bool {
        let none = |s: &SideList| s.any.is_empty() && s.by_nr.iter().all(Vec::is_empty);
        none(&self.enter) && none(&self.exit) && !self.wants_tasks()
    }

    fn wants_tasks(&self) -> bool {
        self.tasks.iter().any(|t| !t.is_empty())
    }
}

static PUBLISHED: AtomicPtr<Listeners> = AtomicPtr::new(std::ptr::null_mut());

/// What threads find from now on. The caller keeps `listeners`, and what was there before, until no thread in a
/// callback can see it.
fn publish(listeners: Option<&Listeners>) {
    let list = listeners.map_or(std::ptr::null_mut(), |l| std::ptr::from_ref(l).cast_mut());
    // Release: pairs with the Acquire in `published`; the list is complete.
    PUBLISHED.store(list, Ordering::Release);
    refresh_gates();
}

/// Opens the gates that the published list, or dispatching, needs, and tells the assembly what it may report. On the control thread, which keeps the list.
fn refresh_gates() {
    let listeners = published();
    let wants = |nr: usize| listeners.is_some_and(|l| l.wants(nr as i32));
    direct::publish(listeners.and_then(|l| l.direct.as_ref()).filter(|_| !dispatch::wanted()));
    // A thread that is to turn dispatching on does so at its next call, whichever that is.
    let all =
        dispatch::wanted() || listeners.is_some_and(|l| !l.enter.any.is_empty() || !l.exit.any.is_empty());
    for low in 0..256 {
        set_gate(low, all || (low..NUMBERS).step_by(256).any(wants));
    }
}

/// Whether any program waits for system calls or tasks.
fn active() -> bool {
    !PUBLISHED.load(Ordering::Relaxed).is_null()
}

#[inline]
fn published() -> Option<&'static Listeners> {
    // SAFETY: null, or a list that lives until no thread in a callback reads it.
    unsafe { PUBLISHED.load(Ordering::Acquire).as_ref() }
}

fn who(block: &ThreadBlock) -> Who<'_> {
    let own = Who::here(block);
    match vfork_child(block) {
        Some((pid, tid)) => Who { pid, tid, ..own },
        None => own,
    }
}

/// Runs the programs of a side that `which` picks.
///
/// What is built here is written and read in words: a wider read of words that were just written stalls.
#[inline]
fn run(
    list: &SideList,
    side: Side,
    block: &ThreadBlock,
    nr: i32,
    regs: &PtRegs,
    which: impl Fn(&&Listener) -> bool,
) {
    if !list.wanted(nr) {
        return;
    }
    let who = who(block);
    // The common header: type, flags and preempt count are nobody's business; then the thread.
    let head = (who.tid as u64) << 32;
    let number = nr as i64 as u64;
    let record = match side {
        Side::Enter => [head, number, regs.di, regs.si, regs.dx, regs.r10, regs.r8, regs.r9],
        Side::Exit => [head, number, regs.ax, 0, 0, 0, 0, 0],
    };
    // sys_enter(regs, id), sys_exit(regs, ret)
    let second = if side == Side::Enter { number } else { regs.ax };
    let args = [std::ptr::from_ref(regs) as u64, second];
    for listener in list.of(nr).filter(which) {
        match listener.context {
            CallContext::Record => {
                run_event(&listener.entry, &who, &Hit::event(record.as_ptr() as u64, regs));
            }
            CallContext::Arguments => {
                run_event(&listener.entry, &who, &Hit::event(args.as_ptr() as u64, regs));
            }
            CallContext::Function => in_function(&listener.entry, &who, regs, side),
        }
    }
}

/// A program in the kernel's function for a call made with `regs`: at its entry it gets the call's registers, by an
/// address of the kernel's; at its end it has the result where they have it.
#[inline(never)]
fn in_function(entry: &Entry, who: &Who, regs: &PtRegs, side: Side) {
    let function = match side {
        Side::Enter => PtRegs { di: Place::of(Object::Registers, who.tid).address(), ..*regs },
        Side::Exit => *regs,
    };
    run_event(entry, who, &Hit::event(&raw const function as u64, regs));
}

/// Whether the assembly reports calls by itself, where it can.
pub fn is_direct() -> bool {
    !direct::CALLS.load(Ordering::Relaxed).is_null()
}

/// The calling thread goes on with the program now.
pub fn arrive() {
    if let Some(block) = ThreadBlock::existing() {
        dispatch::follow(block);
    }
}

/// Before system call `nr`; tells whether its end is wanted too.
pub(crate) fn enter(block: &ThreadBlock, nr: i32, regs: &PtRegs) -> bool {
    let Some(listeners) = published() else { return false };
    run(&listeners.enter, Side::Enter, block, nr, regs, |_| true);
    match nr as i64 {
        libc::SYS_execve | libc::SYS_execveat => exec::note(&listeners.enter, nr, who(block).pid),
        libc::SYS_exit => tasks::ends(block, false, regs),
        libc::SYS_exit_group => tasks::ends(block, true, regs),
        _ => {}
    }
    let exit_wanted = listeners.exit.wanted(nr);
    send_signals(block);
    exit_wanted
}

/// After it.
pub(crate) fn exit(block: &ThreadBlock, nr: i32, regs: &PtRegs) {
    if let Some(listeners) = published() {
        if matches!(nr as i64, libc::SYS_clone | libc::SYS_vfork | libc::SYS_clone3 | libc::SYS_fork) {
            tasks::forked(block, regs.ax as i64, regs);
        }
        run(&listeners.exit, Side::Exit, block, nr, regs, |_| true);
        send_signals(block);
    }
}

/// A system call that the program made, as far as it knows, and that was answered in user space.
pub(crate) fn report(nr: i32, args: [u64; 4], result: i64) {
    let Some(block) = ThreadBlock::existing().filter(|b| active() && b.mute.load(Ordering::Relaxed) == 0)
    else {
        return;
    };
    let mut regs = PtRegs { orig_ax: nr as u64, ax: nr as u64, ..PtRegs::default() };
    [regs.di, regs.si, regs.dx, regs.r10] = args;
    block.enter();
    enter(block, nr, &regs);
    regs.ax = result as u64;
    exit(block, nr, &regs);
    block.leave();
}

/// The end of a handler that we called for the kernel.
pub(crate) fn report_sigreturn() {
    let Some(block) = ThreadBlock::existing().filter(|b| active() && b.mute.load(Ordering::Relaxed) == 0)
    else {
        return;
    };
    let regs = PtRegs { orig_ax: libc::SYS_rt_sigreturn as u64, ..PtRegs::default() };
    block.enter();
    enter(block, libc::SYS_rt_sigreturn as i32, &regs);
    exit(block, -1, &regs);
    block.leave();
}

/// rt_sigreturn to a frame with `gregs`: reports what the kernel does about a call that the signal interrupted and
/// that is now repeated, and the end of rt_sigreturn itself, which has no number any more.
fn restarted(block: &ThreadBlock, regs: &PtRegs, gregs: &[u64; 23]) {
    const ERESTARTSYS: i64 = 512;
    let greg = |i: i32| gregs[i as usize];
    let (rip, rcx) = (greg(libc::REG_RIP), greg(libc::REG_RCX));
    // rcx tells one that was made from one that was not made yet: the processor puts the next address there.
    let repeated = [syscall::instruction(), gate::instruction()].contains(&(rip as usize)) && rcx == rip + 2;
    block.enter();
    let call = PtRegs {
        di: greg(libc::REG_RDI),
        si: greg(libc::REG_RSI),
        dx: greg(libc::REG_RDX),
        r10: greg(libc::REG_R10),
        r8: greg(libc::REG_R8),
        r9: greg(libc::REG_R9),
        orig_ax: greg(libc::REG_RAX),
        bp: greg(libc::REG_RBP),
        sp: greg(libc::REG_RSP),
        ip: rip,
        ..*regs
    };
    let nr = call.orig_ax as i32;
    if repeated {
        exit(block, nr, &PtRegs { ax: -ERESTARTSYS as u64, ..call });
    }
    exit(block, -1, &PtRegs { ax: greg(libc::REG_RAX), orig_ax: -1i64 as u64, ..call });
    if repeated {
        enter(block, nr, &call);
    }
    block.leave();
}
