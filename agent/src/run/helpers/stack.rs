//! Stacks: helpers 27, 67 and 141. Kernel stacks do not exist here: asking for one gives `-EFAULT`, as the kernel gives for a
//! task that has none.

use super::map::map_of;
use super::{EFAULT, EINVAL, helper};
use crate::run::Run;
use crate::run::stack::{MAP_FLAGS, MAX_DEPTH, USER_STACK, skip_of, walk};

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
        let depth = (map.def().value_size as usize / 8).min(MAX_DEPTH);
        let mut ips = [0u64; MAX_DEPTH];
        let want = (skip + depth).min(MAX_DEPTH);
        let n = walk(run, &mut ips[..want]);
        if n <= skip {
            return EFAULT;
        }
        stacks.stack_insert(&ips[skip..n], flags) as u64
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
        let skip = match skip_of(flags, 1 << 11) { Ok(skip) => skip, Err(e) => return e };
        if flags & USER_STACK == 0 {
            return EFAULT;
        }
        if !size.is_multiple_of(8) || flags & 1 << 11 != 0 {
            return EINVAL;
        }
        let depth = (size as usize / 8).min(MAX_DEPTH);
        let mut ips = [0u64; MAX_DEPTH];
        let want = (skip + depth).min(MAX_DEPTH);
        let n = walk(run, &mut ips[..want]).saturating_sub(skip);
        // SAFETY: buf has room for size bytes by the helper's contract, and n * 8 <= size.
        unsafe {
            std::ptr::copy_nonoverlapping(ips.as_ptr().add(skip).cast::<u8>(), buf as *mut u8, n * 8);
            std::ptr::write_bytes((buf as *mut u8).add(n * 8), 0, size as usize - n * 8);
        }
        if n == 0 { EFAULT } else { n as u64 * 8 }
    }
}
