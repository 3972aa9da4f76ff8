//! Clocks: helpers 5, 118, 125, 160, 208.

use super::helper;
use crate::run::{Run, clock};

helper! {
    /// 5 `ktime_get_ns()`: nanoseconds of CLOCK_MONOTONIC.
    fn ktime_get_ns(run) { clock::monotonic() }
}
helper! {
    /// 118 `jiffies64()`: ticks of 4 ms (CONFIG_HZ=250, the distributions' value) since boot, from the kernel's start
    /// value of minus five minutes.
    fn jiffies64(run) { (clock::monotonic() / 4_000_000).wrapping_add((-300i64 * 250) as u32 as u64) }
}
helper! {
    /// 125 `ktime_get_boot_ns()`: nanoseconds of CLOCK_BOOTTIME.
    fn ktime_get_boot_ns(run) { clock::boottime() }
}
helper! {
    /// 160 `ktime_get_coarse_ns()`: nanoseconds of CLOCK_MONOTONIC_COARSE.
    fn ktime_get_coarse_ns(run) { clock::coarse() }
}
helper! {
    /// 208 `ktime_get_tai_ns()`: nanoseconds of CLOCK_TAI.
    fn ktime_get_tai_ns(run) { clock::tai() }
}
