//! Clock events that tick in the tool: the program runs on a thread of ours.

use crate::object::PerfObject;
use crate::{broker, fds};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Context of a `BPF_PROG_TYPE_PERF_EVENT` program (`struct bpf_perf_event_data`: registers, period, address).
const CTX_LEN: usize = bpftime_abi::regs::PT_REGS_SIZE + 16;

/// Starts the event's thread unless it has one.
pub fn start(event: &Arc<PerfObject>) -> Result<(), Errno> {
    let mut state = event.state.lock().unwrap_or_else(PoisonError::into_inner);
    if state.ticking {
        return Ok(());
    }
    let watch = event.liveness.lock().unwrap_or_else(PoisonError::into_inner);
    let watch = watch.as_ref().map(fds::hidden).transpose()?;
    let (weak, period) = (Arc::downgrade(event), state.period);
    let body = move || {
        std::mem::forget(bpftime_agent::hook::Mute::new());
        run(&weak, period, watch);
    };
    state.ticking = bpftime_agent::lifecycle::spawn_quiet("bpftime-timer", body).is_ok();
    Ok(())
}

fn run(event: &Weak<PerfObject>, first: u64, watch: Option<OwnedFd>) {
    let mut next = Instant::now() + Duration::from_nanos(first);
    loop {
        if closed_before(watch.as_ref(), next) {
            return;
        }
        let Some(period) = event.upgrade().and_then(|e| tick(&e)) else { return };
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

/// Runs the program; nanoseconds to the next time, `None` when the event became one that samples targets.
fn tick(event: &PerfObject) -> Option<Duration> {
    let (prog, period) = {
        let mut state = event.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.attached.is_some() {
            state.ticking = false;
            return None;
        }
        (state.prog.clone().filter(|_| state.enabled), state.period)
    };
    if let Some(prog) = prog
        && let Ok(session) = broker::session()
    {
        let mut ctx = [0u64; CTX_LEN / 8];
        ctx[bpftime_abi::regs::PT_REGS_SIZE / 8] = period;
        // A tick that could not run is counted there; there is nobody to tell.
        let _ = crate::cmd::prog::run_here(&prog, &session, ctx.as_mut_ptr().cast());
    }
    Some(Duration::from_nanos(period))
}
