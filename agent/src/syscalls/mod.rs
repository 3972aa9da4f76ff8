//! System calls as events: which programs want them, and which instructions make them.
//!
//! # Rules
//! - [`enter`] and [`exit`] run in the program, under the rules of `run`; everything else is the control thread's.
//! - What is published is never changed, only replaced; the old goes when no thread can be reading it.
//! - Instructions that a jump cannot replace without an int3 in a thread's way, functions without unwind information,
//!   code that no file maps, and code where a probe stands, are left alone: their calls are not seen.
//! - A call that the kernel restarts after a signal is one call here, and ends with what the program sees. The kernel
//!   reports each attempt, the first ones ending with -ERESTARTSYS and its like.

mod code;
mod exec;
mod find;

pub use code::Calls;
pub use exec::report_exec;

use crate::arch::PtRegs;
use crate::arch::syscall::set_gate;
use crate::hook::{ThreadBlock, vfork_child};
use crate::run::enter::{Entry, Who, run_event, send_signals};
use crate::run::{Hit, process};
use bpftime_abi::task::{Object, Place};
use bpftime_shm::session::wire::{CallContext, Side, SyscallEvent};
use std::sync::atomic::{AtomicPtr, Ordering};

/// Numbers beyond this are reported to programs for all numbers only: no event of its own exists for them.
const NUMBERS: usize = 512;

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

    /// Whether any program wants this number.
    pub fn wants(&self, nr: i32) -> bool {
        self.enter.wanted(nr) || self.exit.wanted(nr)
    }

    /// Whether there is no program at all.
    pub fn is_empty(&self) -> bool {
        let none = |s: &SideList| s.any.is_empty() && s.by_nr.iter().all(Vec::is_empty);
        none(&self.enter) && none(&self.exit)
    }
}

static PUBLISHED: AtomicPtr<Listeners> = AtomicPtr::new(std::ptr::null_mut());

/// What threads find from now on. The caller keeps `listeners`, and what was there before, until no thread in a
/// callback can see it.
fn publish(listeners: Option<&Listeners>) {
    let wants = |nr: usize| listeners.is_some_and(|l| l.wants(nr as i32));
    let all = listeners.is_some_and(|l| !l.enter.any.is_empty() || !l.exit.any.is_empty());
    let list = listeners.map_or(std::ptr::null_mut(), |l| std::ptr::from_ref(l).cast_mut());
    // Release: pairs with the Acquire in `published`; the list is complete.
    PUBLISHED.store(list, Ordering::Release);
    for low in 0..256 {
        set_gate(low, all || (low..NUMBERS).step_by(256).any(wants));
    }
}

#[inline]
fn published() -> Option<&'static Listeners> {
    // SAFETY: null, or a list that lives until no thread in a callback reads it.
    unsafe { PUBLISHED.load(Ordering::Acquire).as_ref() }
}

fn who(block: &ThreadBlock) -> Who<'_> {
    let own = process::pid();
    let thread = process::tid(block, own);
    let (pid, tid) = vfork_child(block).unwrap_or((own, thread));
    Who { block, pid, tid, thread }
}

/// Runs the programs of a side that `which` picks.
#[inline]
fn run(
    list: &SideList,
    block: &ThreadBlock,
    nr: i32,
    regs: &PtRegs,
    values: &[u64],
    which: impl Fn(&&Listener) -> bool,
) {
    if !list.wanted(nr) {
        return;
    }
    let who = who(block);
    // The common header: type, flags and preempt count are nobody's business; then the thread.
    let mut record = [0u64; 8];
    record[0] = (who.tid as u64) << 32;
    record[1] = nr as i64 as u64;
    record[2..2 + values.len()].copy_from_slice(values);
    for listener in list.of(nr).filter(which) {
        // sys_enter(regs, id), sys_exit(regs, ret)
        let second = if values.len() == 1 { values[0] } else { record[1] };
        let args = [std::ptr::from_ref(regs) as u64, second];
        let function = in_function(regs, values.len(), who.tid);
        let ctx = match listener.context {
            CallContext::Record => record.as_ptr(),
            CallContext::Arguments => args.as_ptr(),
            CallContext::Function => std::ptr::from_ref(&function).cast(),
        };
        run_event(&listener.entry, &who, &Hit::event(ctx as u64, regs));
    }
}

/// The registers in the kernel's function for a call made with `regs`: at its entry, where the call has several values,
/// it gets the call's registers, by an address of the kernel's; at its end it has the result where they have it.
fn in_function(regs: &PtRegs, values: usize, thread: u32) -> PtRegs {
    if values == 1 { *regs } else { PtRegs { di: Place::of(Object::Registers, thread).address(), ..*regs } }
}

/// Before system call `nr`; tells whether its end is wanted too.
pub(crate) fn enter(block: &ThreadBlock, nr: i32, regs: &PtRegs) -> bool {
    let Some(listeners) = published() else { return false };
    let args = [regs.di, regs.si, regs.dx, regs.r10, regs.r8, regs.r9];
    run(&listeners.enter, block, nr, regs, &args, |_| true);
    if exec::is_exec(nr) {
        exec::note(&listeners.enter, nr, who(block).pid);
    }
    let exit_wanted = listeners.exit.wanted(nr);
    send_signals(block);
    exit_wanted
}

/// After it.
pub(crate) fn exit(block: &ThreadBlock, nr: i32, regs: &PtRegs) {
    if let Some(listeners) = published() {
        run(&listeners.exit, block, nr, regs, &[regs.ax], |_| true);
        send_signals(block);
    }
}
