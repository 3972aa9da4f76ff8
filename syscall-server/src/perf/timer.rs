//! Clock events with a fixed period: the program runs in the tool, on a thread of ours.

use crate::broker;
use crate::object::PerfObject;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Context of a `BPF_PROG_TYPE_PERF_EVENT` program (`struct bpf_perf_event_data`: registers, period, address).
const CTX_LEN: usize = bpftime_abi::regs::PT_REGS_SIZE + 16;

/// Starts the event's thread if it has a program, is enabled, and has none yet.
pub fn start(event: &Arc<PerfObject>, period: u64) {
    let mut state = event.state.lock().unwrap_or_else(PoisonError::into_inner);
    if state.ticking || !state.enabled || state.prog.is_none() {
        return;
    }
    let watch = event.liveness.lock().unwrap_or_else(PoisonError::into_inner).take();
    let weak = Arc::downgrade(event);
    let body = move || {
        std::mem::forget(bpftime_agent::hook::Mute::new());
        run(&weak, period, watch);
    };
    state.ticking = bpftime_agent::lifecycle::spawn_quiet("bpftime-timer", body).is_ok();
}

fn run(event: &Weak<PerfObject>, period: u64, watch: Option<OwnedFd>) {
    let period = Duration::from_nanos(period);
    let mut next = Instant::now() + period;
    loop {
        if closed_before(watch.as_ref(), next) {
            return;
        }
        let Some(event) = event.upgrade() else { return };
        tick(&event, period.as_nanos() as u64);
        // Ticks that were slept through are not made up for, as the kernel's hrtimer forwards over them.
        let now = Instant::now();
        while next <= now {
            next += period;
        }
    }
}

/// Sleeps until `next`; true when the tool closed the event meanwhile.
fn closed_before(watch: Option<&OwnedFd>, next: Instant) -> bool {
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let ts =
            rustix::time::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos() as i64 };
        let mut fds: Vec<PollFd> = watch.iter().map(|w| PollFd::new(*w, PollFlags::empty())).collect();
        match rustix::event::poll(&mut fds, Some(&ts)) {
            Ok(n) if n > 0 => return true,
            _ if left.is_zero() => return false,
            _ => {}
        }
    }
}

fn tick(event: &PerfObject, period: u64) {
    let prog = {
        let state = event.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.prog.clone().filter(|_| state.enabled)
    };
    let Some(prog) = prog else { return };
    let (Some(program), Ok(session)) = (prog.link_here(), broker::session()) else { return };
    let mut ctx = [0u64; CTX_LEN / 8];
    ctx[bpftime_abi::regs::PT_REGS_SIZE / 8] = period;
    bpftime_agent::run::enter::run_here(&program, &session, ctx.as_mut_ptr().cast(), 0);
}
