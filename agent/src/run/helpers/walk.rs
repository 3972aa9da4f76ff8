//! Helpers that call back into the program or compare strings: 164, 181, 182.

use super::map::map_of;
use super::{EINVAL, errno, helper};
use crate::run::Run;
use crate::run::image::Func;
use rustix::io::Errno;
use std::ops::ControlFlow;

/// `BPF_MAX_LOOPS`.
const MAX_LOOPS: u64 = 1 << 23;

/// Calls a BPF function of the running program.
///
/// # Safety
/// `callback` is the address of a function in the program's own code.
pub(super) unsafe fn call(callback: u64, args: [u64; 4], run: *mut Run) -> u64 {
    // SAFETY: see above; the calling convention is the same for all BPF functions.
    unsafe {
        let f: Func = std::mem::transmute(callback as usize);
        f(args[0], args[1], args[2], args[3], 0, run)
    }
}

helper! {
    /// 181 `loop(nr_loops, callback, ctx, flags)`: how often the callback ran.
    fn bpf_loop(run, nr, callback, ctx, flags) {
        if flags != 0 {
            return EINVAL;
        }
        if nr as u32 as u64 > MAX_LOOPS {
            return errno(Errno::TOOBIG);
        }
        for i in 0..nr as u32 as u64 {
            run.header.fuel -= 1;
            // SAFETY: the verifier let a function of the program through as callback.
            let stop = unsafe { call(callback, [i, ctx, 0, 0], run) } != 0;
            if stop || run.header.fuel < 0 {
                return i + 1;
            }
        }
        nr as u32 as u64
    }
}

helper! {
    /// 164 `for_each_map_elem(map, callback, ctx, flags)`: how many elements were visited.
    fn for_each_map_elem(run, map, callback, ctx, flags) {
        if flags != 0 {
            return EINVAL;
        }
        let handle = map;
        // SAFETY: a linked constant of the program.
        let map = unsafe { &map_of(map).map };
        let run: *mut Run = run;
        let mut visit = |key: *const u8, value: *mut u8| {
            // SAFETY: as in `bpf_loop`; the run is not otherwise borrowed.
            let go_on = unsafe {
                (*run).header.fuel -= 1;
                let stop = call(callback, [handle, key as u64, value as u64, ctx], run) != 0;
                !stop && (*run).header.fuel >= 0
            };
            if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        // SAFETY: this run owns the CPU slot; the callback keeps no pointer beyond its call.
        unsafe { map.for_each((*run).cpu(), &mut visit) as u64 }
    }
}

helper! {
    /// 182 `strncmp(s1, s1_size, s2)`: as the C function on at most s1_size bytes.
    fn strncmp(run, s1, size, s2) {
        for i in 0..size as u32 as u64 {
            // SAFETY: s1 has size bytes and s2 is a terminated constant by the helper's contract.
            let (a, b) = unsafe { (*((s1 + i) as *const u8), *((s2 + i) as *const u8)) };
            if a != b {
                return (a as i64 - b as i64) as u64;
            }
            if a == 0 {
                return 0;
            }
        }
        0
    }
}
