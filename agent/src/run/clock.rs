//! Clocks without the C library: the vDSO's clock_gettime, found in the auxiliary vector at start.

use crate::arch::sys;
use std::arch::naked_asm;
use std::mem::MaybeUninit;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The clock_gettime in use. Written by [`init`] only.
static CLOCK_GETTIME: AtomicPtr<()> = AtomicPtr::new(by_system_call as *const () as *mut ());

static INIT: Once = Once::new();

/// Looks the vDSO up. Without it (an odd kernel, a sandbox that unmaps it) clocks cost a system call.
pub fn init() {
    INIT.call_once(|| {
        if let Some(address) = find_vdso() {
            CLOCK_GETTIME.store(std::ptr::with_exposed_provenance_mut(address), Ordering::Relaxed);
        }
    });
}

/// Where the address is that clocks are read through; it does not change any more.
pub fn settled() -> &'static AtomicPtr<()> {
    init();
    &CLOCK_GETTIME
}

extern "C" fn by_system_call(id: i32, ts: *mut libc::timespec) -> i32 {
    // SAFETY: `ts` is a valid timespec for the kernel to fill.
    unsafe { sys::syscall(libc::SYS_clock_gettime, [id as usize, ts as usize, 0, 0, 0, 0]) as i32 }
}

/// Goes through the pointer and nowhere else, as the linker of programs can see: `arch::leaves_vectors_alone`.
///
/// # Safety
/// `ts` may be written.
#[unsafe(naked)]
unsafe extern "C" fn clock_gettime(id: i32, ts: *mut libc::timespec) -> i32 {
    naked_asm!("jmp qword ptr [rip + {pointer}]", pointer = sym CLOCK_GETTIME)
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
    let mut ts = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: either kind of clock_gettime fills `ts`, for the clocks that are asked for here.
    let ts = unsafe {
        clock_gettime(id, ts.as_mut_ptr());
        ts.assume_init()
    };
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
    use super::*;

    #[test]
    fn the_vdso_clock_agrees_with_the_system_call() {
        init();
        assert_ne!(CLOCK_GETTIME.load(Ordering::Relaxed).cast_const(), by_system_call as *const ());
        let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(by_system_call(libc::CLOCK_MONOTONIC, &mut ts), 0);
        let slow = ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64;
        let fast = monotonic();
        assert!(fast >= slow && fast - slow < 5_000_000_000);
    }
}
