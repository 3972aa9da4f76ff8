//! Samples of processor time: the programs of `profile` and their like, run in the thread that used the time.
//!
//! # Rules
//! - [`on_timer`] runs in a signal handler, at any instruction of the program, under the rules of `run`; everything else
//!   is the control thread's.
//! - What is published is never changed, only replaced; the old goes when no thread can be reading it.
//!
//! # How
//! Every thread has a kernel timer on its own processor time (`timers`), whose signal is SIGTRAP: already ours, never
//! blocked, and passed on when it is not for us. Linux 5.11 and later send the signals of such timers when the thread
//! is about to return to the program, never in the middle of a system call, so no call is cut short (EINTR). Time spent in
//! the kernel counts too and is seen at the call's return, where the kernel's own user stacks begin as well.
//! A timer that came due several times before its thread returned says so; the program runs that often.

mod events;
mod timers;

pub(crate) use events::on_event;
pub use events::{Events, LOOK as EVENTS_LOOK, may_open};
pub use timers::Timers;

use crate::arch::PtRegs;
use crate::hook::{ThreadBlock, original_rip};
use crate::run::enter::{Entry, Who, run_event, send_signals};
use crate::run::{Hit, process};
use bpftime_shm::session::wire::SampleEvent;
use std::sync::atomic::{AtomicPtr, Ordering};

/// One program of an event.
struct Sampler {
    entry: Entry,
    cpu: Option<u32>,
}

/// The programs that want a sample at the same times.
struct Group {
    period: u64,
    samplers: Vec<Sampler>,
}

/// All programs. Immutable once published.
#[derive(Default)]
pub struct Samplers(Vec<Group>);

impl Samplers {
    /// Adds a program.
    pub fn add(&mut self, event: &SampleEvent, entry: Entry) {
        let sampler = Sampler { entry, cpu: event.cpu };
        match self.0.iter_mut().find(|g| g.period == event.period) {
            Some(group) => group.samplers.push(sampler),
            None => self.0.push(Group { period: event.period, samplers: vec![sampler] }),
        }
    }

    /// The distances of samples that are wanted, in nanoseconds.
    pub fn periods(&self) -> Vec<u64> {
        self.0.iter().map(|g| g.period).collect()
    }
}

static PUBLISHED: AtomicPtr<Samplers> = AtomicPtr::new(std::ptr::null_mut());

/// What threads find from now on. The caller keeps `samplers`, and what was there before, until no thread in a
/// callback can see it.
fn publish(samplers: Option<&Samplers>) {
    let list = samplers.map_or(std::ptr::null_mut(), |s| std::ptr::from_ref(s).cast_mut());
    // Release: pairs with the Acquire in `group`; the list is complete.
    PUBLISHED.store(list, Ordering::Release);
}

/// The programs of a timer, if they are still there.
fn group(period: u64) -> Option<&'static Group> {
    // SAFETY: null, or a list that lives until no thread in a callback reads it; the caller is in one.
    let samplers = unsafe { PUBLISHED.load(Ordering::Acquire).as_ref() }?;
    samplers.0.iter().find(|g| g.period == period)
}

/// Marks the values of our timers; periods are shorter than 2^48 ns, which is three days.
const MARK: u64 = 0xb9f7 << 48;
const PERIOD: u64 = (1 << 48) - 1;

/// Samples one signal may stand for. A thread that was in the kernel for seconds has missed hundreds.
const AT_ONCE: i32 = 1024;

/// `struct bpf_perf_event_data`.
#[repr(C)]
struct PerfData {
    regs: PtRegs,
    sample_period: u64,
    addr: u64,
}

/// The timer fields of `siginfo_t` (`asm-generic/siginfo.h`).
#[repr(C)]
struct TimerInfo {
    signo: i32,
    errno: i32,
    code: i32,
    pad: i32,
    timer: i32,
    overrun: i32,
    value: u64,
}

/// A SIGTRAP that a timer sent. False when the timer is not one of ours.
///
/// # Safety
/// The arguments are those the kernel passed to the calling signal handler, and `si_code` is `SI_TIMER`.
pub(crate) unsafe fn on_timer(info: *const libc::siginfo_t, uc: &libc::ucontext_t) -> bool {
    // SAFETY: the kernel's siginfo has these fields for SI_TIMER.
    let info = unsafe { &*info.cast::<TimerInfo>() };
    if info.value & !PERIOD != MARK {
        return false;
    }
    // In a run, of a probe or of an earlier sample, nothing is taken, as in the kernel: this one could wait for a CPU slot
    // that somebody gives back only when the interrupted one has gone on, and signals would nest without end.
    if let Some(block) = ThreadBlock::current()
        && block.mute.load(Ordering::Relaxed) == 0
        && block.depth() == 0
    {
        block.enter();
        sample(block, info.value & PERIOD, info.overrun.clamp(0, AT_ONCE) + 1, uc);
        send_signals(block);
        block.leave();
    }
    true
}

/// Runs the programs of the timer, `times` over.
fn sample(block: &ThreadBlock, period: u64, times: i32, uc: &libc::ucontext_t) {
    if let Some(group) = group(period) {
        run_samplers(block, &group.samplers, (period, 0), times, uc);
    }
}

/// Runs those programs of a sample that are for this CPU.
fn run_samplers(
    block: &ThreadBlock,
    samplers: &[Sampler],
    (period, addr): (u64, u64),
    times: i32,
    uc: &libc::ucontext_t,
) {
    let cpu = process::current_cpu();
    let who = Who::here(block);
    let data = PerfData { regs: registers(uc), sample_period: period, addr };
    let here = |s: &&Sampler| s.cpu.is_none_or(|c| c == cpu);
    for sampler in samplers.iter().filter(here) {
        for _ in 0..times {
            let hit = Hit::event(&raw const data as u64, &data.regs);
            run_event(&sampler.entry, &who, &hit);
        }
    }
}

/// The interrupted registers. In the copy of a displaced instruction, the program is at the original.
fn registers(uc: &libc::ucontext_t) -> PtRegs {
    let g = |i: i32| uc.uc_mcontext.gregs[i as usize] as u64;
    let ip = g(libc::REG_RIP);
    PtRegs {
        r15: g(libc::REG_R15),
        r14: g(libc::REG_R14),
        r13: g(libc::REG_R13),
        r12: g(libc::REG_R12),
        bp: g(libc::REG_RBP),
        bx: g(libc::REG_RBX),
        r11: g(libc::REG_R11),
        r10: g(libc::REG_R10),
        r9: g(libc::REG_R9),
        r8: g(libc::REG_R8),
        ax: g(libc::REG_RAX),
        cx: g(libc::REG_RCX),
        dx: g(libc::REG_RDX),
        si: g(libc::REG_RSI),
        di: g(libc::REG_RDI),
        orig_ax: u64::MAX,
        ip: original_rip(ip as usize).map_or(ip, |at| at as u64),
        cs: g(libc::REG_CSGSFS) & 0xffff,
        flags: g(libc::REG_EFL),
        sp: g(libc::REG_RSP),
        ss: g(libc::REG_CSGSFS) >> 48,
    }
}
