//! Clocks without the C library: the vDSO's clock_gettime, found in the auxiliary vector at start.

use crate::arch::sys;
use std::sync::atomic::{AtomicUsize, Ordering};

type ClockGettime = unsafe extern "C" fn(i32, *mut libc::timespec) -> i32;

static VDSO_CLOCK_GETTIME: AtomicUsize = AtomicUsize::new(0);

/// Looks the vDSO up. Without it (an odd kernel, a sandbox that unmaps it) clocks cost a system call.
pub fn init() {
    if let Some(addr) = find_vdso() {
        VDSO_CLOCK_GETTIME.store(addr, Ordering::Relaxed);
    }
}

fn find_vdso() -> Option<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|l| l.ends_with("[vdso]"))?;
    let (range, _) = line.split_once(' ')?;
    let (lo, hi) = range.split_once('-')?;
    let (lo, hi) = (usize::from_str_radix(lo, 16).ok()?, usize::from_str_radix(hi, 16).ok()?);
    // SAFETY: the kernel maps the whole range readable and never unmaps it behind our back.
    let image = unsafe { std::slice::from_raw_parts(lo as *const u8, hi - lo) };
    symbol(image, "__vdso_clock_gettime").map(|off| lo + off)
}

fn symbol(image: &[u8], name: &str) -> Option<usize> {
    use object::{Object, ObjectSymbol};
    let file = object::File::parse(image).ok()?;
    let base = file.relative_address_base();
    file.dynamic_symbols().find(|s| s.name() == Ok(name)).map(|s| (s.address() - base) as usize)
}

/// Nanoseconds of clock `id`.
#[inline]
fn now(id: i32) -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let vdso = VDSO_CLOCK_GETTIME.load(Ordering::Relaxed);
    if vdso != 0 {
        // SAFETY: the address is the vDSO's clock_gettime, which touches nothing but `ts` and its own data page.
        let f: ClockGettime = unsafe { std::mem::transmute(vdso) };
        // SAFETY: as above.
        unsafe { f(id, &mut ts) };
    } else {
        // SAFETY: `ts` is a valid timespec for the kernel to fill.
        unsafe { sys::syscall(libc::SYS_clock_gettime, [id as usize, &raw mut ts as usize, 0, 0, 0, 0]) };
    }
    ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
}

/// `bpf_ktime_get_ns`: CLOCK_MONOTONIC.
#[inline]
pub fn monotonic() -> u64 {
    now(libc::CLOCK_MONOTONIC)
}

/// `bpf_ktime_get_boot_ns`: CLOCK_BOOTTIME.
#[inline]
pub fn boottime() -> u64 {
    now(libc::CLOCK_BOOTTIME)
}

/// `bpf_ktime_get_coarse_ns`: CLOCK_MONOTONIC_COARSE.
#[inline]
pub fn coarse() -> u64 {
    now(libc::CLOCK_MONOTONIC_COARSE)
}

/// `bpf_ktime_get_tai_ns`: CLOCK_TAI.
#[inline]
pub fn tai() -> u64 {
    now(libc::CLOCK_TAI)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_vdso_clock_agrees_with_the_system_call() {
        let slow = super::monotonic();
        super::init();
        assert_ne!(super::VDSO_CLOCK_GETTIME.load(super::Ordering::Relaxed), 0);
        let fast = super::monotonic();
        assert!(fast >= slow && fast - slow < 5_000_000_000);
    }
}
