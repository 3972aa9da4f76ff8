//! Clock events (CPU_CLOCK, TASK_CLOCK): which tick in the tool and which sample the targets.
//!
//! In the kernel such an event fires on its CPU, in whatever runs there: `interval` of bpftrace takes one CPU's for
//! a clock, `profile` takes every CPU's to see who is running. Here a clock ticks in the tool, and a profile takes the
//! threads of the targets by their processor time, each sample counting for the event of the CPU it was taken on.

use super::{apply_probe, timer};
use crate::object::{self, Object, PerfKind, PerfObject, ProgObject};
use bpftime_abi::map_type::BPF_MAP_TYPE_STACK_TRACE;
use bpftime_abi::perf::ATTR_FREQ;
use bpftime_shm::session::wire::{LinkKind, LinkSpec, SampleEvent};
use rustix::io::Errno;
use std::sync::{Arc, OnceLock, PoisonError};

/// The kernel's floor for software clocks.
const SHORTEST: u64 = 10_000;

/// Samples per second that the kernel allows (`sysctl kernel.perf_event_max_sample_rate`).
pub fn max_rate() -> u64 {
    static RATE: OnceLock<u64> = OnceLock::new();
    *RATE.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/perf_event_max_sample_rate").unwrap_or_default();
        text.trim().parse().unwrap_or(100_000)
    })
}

/// Nanoseconds between two events; 0 for an event that only counts.
pub fn period_of(freq: bool, value: u64) -> u64 {
    match value {
        0 => 0,
        hz if freq => (1_000_000_000 / hz).max(SHORTEST),
        period => period.max(SHORTEST),
    }
}

/// Makes what runs be what the event's state says.
pub fn apply(event: &Arc<PerfObject>) -> Result<(), Errno> {
    let (prog, attached) = {
        let state = event.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.prog.clone().filter(|_| state.enabled && state.period != 0), state.attached.is_some())
    };
    match prog {
        None if attached => apply_probe(event),
        None => Ok(()),
        Some(prog) => {
            let peers = peers(event, &prog);
            if peers.is_empty() && !samples_alone(event, &prog) {
                return timer::start(event);
            }
            apply_probe(event)?;
            peers.iter().try_for_each(apply_probe)
        }
    }
}

/// Whether the event asks for samples although its program has no other: one process's, a stack's, or the only CPU's.
fn samples_alone(event: &PerfObject, prog: &ProgObject) -> bool {
    let PerfKind::Clock { freq, .. } = event.kind else { return false };
    let walks = prog.maps.iter().any(|m| m.def().map_type == BPF_MAP_TYPE_STACK_TRACE);
    event.pid > 0 || walks || (freq && crate::cmd::map::online_cpus() == 1)
}

/// The program's clocks on other CPUs.
fn peers(event: &PerfObject, prog: &Arc<ProgObject>) -> Vec<Arc<PerfObject>> {
    let PerfKind::Clock { cpu: here, .. } = event.kind else { return Vec::new() };
    let clock = |o| match o {
        Object::Perf(p) if matches!(p.kind, PerfKind::Clock { cpu, .. } if cpu != here) => Some(p),
        _ => None,
    };
    let same = |p: &Arc<PerfObject>| {
        let state = p.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.enabled && state.prog.as_ref().is_some_and(|p| Arc::ptr_eq(p, prog))
    };
    object::all().into_iter().map(|(_, o)| o).filter_map(clock).filter(same).collect()
}

/// The link of an event that samples.
pub fn spec(sample: SampleEvent, pid: i32, link: u32, prog: &ProgObject) -> LinkSpec {
    LinkSpec { kind: LinkKind::Sample(sample), ..of_no_file(link, prog, pid) }
}

/// A link without file and points; of the kind that the caller says.
pub fn of_no_file(link: u32, prog: &ProgObject, pid: i32) -> LinkSpec {
    LinkSpec {
        kind: LinkKind::Uprobe,
        link,
        prog: prog.spec.prog,
        ret: false,
        pid,
        dev: 0,
        ino: 0,
        path: Vec::new(),
        points: Vec::new(),
    }
}

/// PERF_EVENT_IOC_PERIOD: `EINVAL` for an event that does not sample.
pub fn set_period(event: &Arc<PerfObject>, value: u64) -> Result<(), Errno> {
    let freq = match event.kind {
        PerfKind::Clock { freq, .. } => freq,
        PerfKind::Counter { counter, .. } => counter.flags & ATTR_FREQ != 0,
        _ => return check_period(value, false),
    };
    check_period(value, freq)?;
    let restart = {
        let mut state = event.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.period == 0 {
            return Err(Errno::INVAL);
        }
        let clock = matches!(event.kind, PerfKind::Clock { .. });
        state.period = if clock { period_of(freq, value) } else { value };
        state.attached
    };
    let Some(link) = restart else { return Ok(()) };
    crate::broker::detach(link)?;
    event.state.lock().unwrap_or_else(PoisonError::into_inner).attached = None;
    super::apply(event)
}

fn check_period(value: u64, freq: bool) -> Result<(), Errno> {
    let valid = value != 0 && value >> 63 == 0 && (!freq || value <= max_rate());
    if valid { Ok(()) } else { Err(Errno::INVAL) }
}

/// PERF_EVENT_IOC_REFRESH: as enabling, for an event that samples.
pub fn refresh(event: &Arc<PerfObject>) -> Result<(), Errno> {
    let counts_only = matches!(event.kind, PerfKind::Clock { .. } | PerfKind::Counter { .. })
        && event.state.lock().unwrap_or_else(PoisonError::into_inner).period == 0;
    if counts_only { Err(Errno::INVAL) } else { super::set_enabled(event, true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frequency_becomes_a_period_and_a_period_stays() {
        assert_eq!(period_of(true, 199), 5_025_125);
        assert_eq!(period_of(false, 20_000_000), 20_000_000);
        assert_eq!(period_of(false, 1), SHORTEST);
        assert_eq!(period_of(true, 0), 0);
    }

    #[test]
    fn periods_that_the_kernel_refuses_are_refused() {
        assert_eq!(check_period(0, false), Err(Errno::INVAL));
        assert_eq!(check_period(1 << 63, false), Err(Errno::INVAL));
        assert_eq!(check_period(max_rate() + 1, true), Err(Errno::INVAL));
        assert_eq!(check_period(1000, true), Ok(()));
    }
}
