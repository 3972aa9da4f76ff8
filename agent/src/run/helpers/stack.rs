//! Stacks: helpers 27, 67 and 141. Kernel stacks do not exist here: asking for one gives `-EFAULT`, as the kernel gives for a
//! task that has none.

use super::map::map_of;
use super::{EFAULT, EINVAL, helper};
use crate::run::stack::{MAP_FLAGS, MAX_DEPTH, USER_STACK, skip_of, walk};
use crate::run::{Run, build_id};
use bpftime_shm::uapi::BPF_F_STACK_BUILD_ID;

/// `BPF_F_USER_BUILD_ID`.
const USER_BUILD_ID: u64 = 1 << 11;

helper! {
    /// 27 `get_stackid(ctx, map, flags)`: id of the stack in a STACK_TRACE map, or negative errno.
    fn get_stackid(run, ctx, map, flags) {
        let skip = match skip_of(flags, MAP_FLAGS) { Ok(skip) => skip, Err(e) => return e };
        if flags & USER_STACK == 0 {
            return EFAULT;
        }
        // SAFETY: a linked constant of the program.
        let map = unsafe { &map_of(map).map };
        let Some(stacks) = map.stack_trace() else { return EINVAL };
        let with_ids = map.def().map_flags & BPF_F_STACK_BUILD_ID != 0;
        let frame = if with_ids { build_id::FRAME_SIZE } else { 8 };
        let depth = (map.def().value_size as usize / frame).min(MAX_DEPTH);
        let mut ips = [0u64; MAX_DEPTH];
        let want = (skip + depth).min(MAX_DEPTH);
        let n = walk(run, &mut ips[..want]);
        if n <= skip {
            return EFAULT;
        }
        let ips = &ips[skip..n];
        if with_ids {
            return stacks.stack_insert_frames(ips.len(), |n| build_id::frame(ips[n]), flags) as u64;
        }
        stacks.stack_insert(ips, flags) as u64
    }
}

helper! {
    /// 141 `get_task_stack(task, buf, size, flags)`: of the only task there is, the current one.
    fn get_task_stack(run, task, buf, size, flags) {
        // SAFETY: the same contract for buf and size.
        unsafe { get_stack(0, buf, size, flags, 0, run) }
    }
}

helper! {
    /// 67 `get_stack(ctx, buf, size, flags)`: bytes written, or negative errno.
    fn get_stack(run, ctx, buf, size, flags) {
        let skip = match skip_of(flags, USER_BUILD_ID) { Ok(skip) => skip, Err(e) => return e };
        let with_ids = flags & USER_BUILD_ID != 0;
        if flags & USER_STACK == 0 {
            return if with_ids { EINVAL } else { EFAULT };
        }
        let frame = if with_ids { build_id::FRAME_SIZE } else { 8 };
        if !(size as usize).is_multiple_of(frame) {
            return EINVAL;
        }
        let depth = (size as usize / frame).min(MAX_DEPTH);
        if depth == 0 {
            return 0;
        }
        let mut ips = [0u64; MAX_DEPTH];
        let want = (skip + depth).min(MAX_DEPTH);
        let walked = walk(run, &mut ips[..want]);
        let ips = ips.get(skip..walked).unwrap_or_default();
        let n = ips.len();
        // SAFETY: buf has room for size bytes by the helper's contract, and n frames fit.
        unsafe {
            for (at, ip) in ips.iter().enumerate() {
                let to = (buf as *mut u8).add(at * frame);
                match with_ids {
                    true => to.cast::<build_id::Frame>().write_unaligned(build_id::frame(*ip)),
                    false => to.cast::<u64>().write_unaligned(*ip),
                }
            }
            std::ptr::write_bytes((buf as *mut u8).add(n * frame), 0, size as usize - n * frame);
        }
        if n == 0 { EFAULT } else { (n * frame) as u64 }
    }
}
