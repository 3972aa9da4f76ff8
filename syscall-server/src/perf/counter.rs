//! Events that the kernel counts: software events other than the clocks, hardware events where there are any, watchpoints.
//! The targets' threads have them from the kernel, so it is the kernel that says whether a user may.

use super::apply_probe;
use crate::object::{PerfKind, PerfObject};
use bpftime_abi::perf::{self, PerfEventAttr};
use bpftime_shm::session::wire::Counter;
use rustix::io::Errno;
use std::sync::{Arc, PoisonError};

/// What a tool may choose beside event and period.
const CHOICES: u64 = perf::ATTR_FREQ
    | perf::ATTR_EXCLUDE_USER
    | perf::ATTR_EXCLUDE_KERNEL
    | perf::ATTR_EXCLUDE_HV
    | perf::ATTR_PRECISE_IP;

/// Whether events of the type are counted by the kernel.
pub fn is(type_: u32) -> bool {
    use perf::{
        PERF_TYPE_BREAKPOINT, PERF_TYPE_HARDWARE, PERF_TYPE_HW_CACHE, PERF_TYPE_RAW, PERF_TYPE_SOFTWARE,
    };
    [PERF_TYPE_HARDWARE, PERF_TYPE_SOFTWARE, PERF_TYPE_HW_CACHE, PERF_TYPE_RAW, PERF_TYPE_BREAKPOINT]
        .contains(&type_)
}

/// The event that `a` asks for, on one CPU or any; the kernel's errno where it has no such event or this user may not
/// have it.
pub fn event(a: &PerfEventAttr, cpu: i32) -> Result<PerfKind, Errno> {
    let counter = Counter {
        type_: a.type_,
        bp_type: if a.type_ == perf::PERF_TYPE_BREAKPOINT { a.bp_type } else { 0 },
        config: a.config,
        config1: a.config1,
        config2: a.config2,
        period: a.sample_period,
        flags: a.flags & CHOICES,
    };
    bpftime_agent::sample::may_open(&counter)?;
    Ok(PerfKind::Counter { counter, cpu: u32::try_from(cpu).ok() })
}

/// Makes what runs be what the event's state says. An event without a period counts, and runs nothing.
pub fn apply(event: &Arc<PerfObject>) -> Result<(), Errno> {
    let samples = event.state.lock().unwrap_or_else(PoisonError::into_inner).period != 0;
    if samples { apply_probe(event) } else { Ok(()) }
}
