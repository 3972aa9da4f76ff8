//! Stacks of the traced thread by frame pointers, as the kernel's `perf_callchain_user` walks them.

use super::helpers::probe;
use super::{Run, helpers};
use crate::hook;

/// `sysctl kernel.perf_event_max_stack`, the longest stack the kernel records.
pub const MAX_DEPTH: usize = 127;

/// Fills `ips` with return addresses, innermost first, and returns how many.
pub fn walk(run: &mut Run, ips: &mut [u64]) -> usize {
    let Some(regs) = run.regs().copied() else { return 0 };
    let mut n = 0;
    let mut push = |ip: u64| -> bool {
        if n < ips.len() {
            ips[n] = hook::real_return(ip as usize) as u64;
            n += 1;
        }
        n < ips.len()
    };
    if !push(regs.ip) {
        return n;
    }
    if run.at_entry() {
        // The frame is not set up yet: the caller is on top of the stack (kernel 6.9 and later do the same).
        let mut ra = [0u64; 1];
        if probe::read_words(run, regs.sp, &mut ra) && !push(ra[0]) {
            return n;
        }
    }
    let mut fp = regs.bp;
    loop {
        let mut frame = [0u64; 2];
        if fp < 4096 || fp & 7 != 0 || !probe::read_words(run, fp, &mut frame) {
            return n;
        }
        if !push(frame[1]) || frame[0] <= fp {
            return n;
        }
        fp = frame[0];
    }
}

/// `BPF_F_SKIP_FIELD_MASK`.
pub const SKIP_MASK: u64 = 0xff;
/// `BPF_F_USER_STACK`.
pub const USER_STACK: u64 = 1 << 8;
/// `BPF_F_FAST_STACK_CMP` and `BPF_F_REUSE_STACKID`.
pub const MAP_FLAGS: u64 = 1 << 9 | 1 << 10;

/// Checks flags of `bpf_get_stackid`; the number of frames to skip.
pub fn skip_of(flags: u64, allowed: u64) -> Result<usize, u64> {
    match flags & !(SKIP_MASK | USER_STACK | allowed) {
        0 => Ok((flags & SKIP_MASK) as usize),
        _ => Err(helpers::EINVAL),
    }
}
