//! Writing to the program's memory, and the forms of reading that may sleep: helpers 36, 148 and 191.

use super::probe::{copy_out, read};
use super::{EFAULT, EINVAL, helper};
use crate::run::Run;

helper! {
    /// 36 `probe_write_user(dst, src, len)`: -EFAULT where nothing can be written, perhaps after a part was.
    fn probe_write_user(run, dst, src, len) {
        if copy_out(run, dst, src as *const u8, len as u32 as usize) { 0 } else { EFAULT }
    }
}

helper! {
    /// 148 `copy_from_user(dst, size, src)`.
    fn copy_from_user(run, dst, size, src) { read(run, dst, size, src) }
}

helper! {
    /// 191 `copy_from_user_task(dst, size, src, task, flags)`: the only task there is, is the current one.
    fn copy_from_user_task(run, dst, size, src, task, flags) {
        if flags != 0 { EINVAL } else { read(run, dst, size, src) }
    }
}
