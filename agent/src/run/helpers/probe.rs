//! Reads of memory that may not be there: helpers 4, 45, 112-115. The only kernel memory to read in userspace is the
//! shadow of the task; any other kernel address faults, and the `_kernel` forms read what the program can point at, as
//! the kernel's do for its own.

use super::{EFAULT, helper};
use crate::arch::{copy, sys};
use crate::run::{Reads, Run, shadow};
use crate::signals;
use bpftime_abi::task::Place;

/// How this run reads; asks the kernel for the thread's signal mask the first time.
#[inline]
fn reads(run: &mut Run) -> Reads {
    if run.reads == Reads::Unknown {
        run.reads = if signals::faults_blocked() { Reads::Asked } else { Reads::Guarded };
    }
    run.reads
}

/// Copies `len` bytes; tells whether all were there.
fn copy_in(run: &mut Run, dst: *mut u8, src: u64, len: usize) -> bool {
    // SAFETY: dst has room for len bytes by the helper's contract; src may be anything, both copies survive a fault.
    unsafe {
        match reads(run) {
            Reads::Guarded => copy::probe_read(dst, src as *const u8, len) == 0,
            _ => pages_are_there(src, len) && copy::probe_read(dst, src as *const u8, len) == 0,
        }
    }
}

/// Copies `len` bytes to where nothing may be; tells whether all could be written.
pub(super) fn copy_out(run: &mut Run, dst: u64, src: *const u8, len: usize) -> bool {
    // SAFETY: src has len bytes by the helper's contract; dst may be anything, both copies survive a fault.
    unsafe {
        match reads(run) {
            Reads::Guarded => copy::probe_read(dst as *mut u8, src, len) == 0,
            // Whether a page may be written cannot be asked without writing.
            _ => !signals::seccomp_filtered() && write_by_kernel(dst, src, len),
        }
    }
}

/// # Safety
/// `src` has `len` bytes.
unsafe fn write_by_kernel(dst: u64, src: *const u8, len: usize) -> bool {
    let local = libc::iovec { iov_base: src.cast_mut().cast(), iov_len: len };
    let remote = libc::iovec { iov_base: dst as *mut _, iov_len: len };
    let me = sys::getpid() as usize;
    let args = [me, &raw const local as usize, 1, &raw const remote as usize, 1, 0];
    // SAFETY: the kernel checks both ranges.
    unsafe { sys::syscall(libc::SYS_process_vm_writev, args) == len as isize }
}

/// Reads 8-byte words at `addr`.
pub fn read_words(run: &mut Run, addr: u64, out: &mut [u64]) -> bool {
    copy_in(run, out.as_mut_ptr().cast(), addr, size_of_val(out))
}

/// On a fault the kernel zeroes the whole destination.
pub(super) fn read(run: &mut Run, dst: u64, len: u64, src: u64) -> u64 {
    let len = len as u32 as usize;
    if copy_in(run, dst as *mut u8, src, len) {
        return 0;
    }
    // SAFETY: dst has room for len bytes by the helper's contract.
    unsafe { std::ptr::write_bytes(dst as *mut u8, 0, len) };
    EFAULT
}

/// As [`read`], and through the task's shadow.
fn read_kernel(run: &mut Run, dst: u64, len: u64, src: u64) -> u64 {
    let Some(place) = Place::at(src) else { return read(run, dst, len, src) };
    // SAFETY: dst has room for len bytes by the helper's contract.
    let out = unsafe { std::slice::from_raw_parts_mut(dst as *mut u8, len as u32 as usize) };
    shadow::read(run, place, out);
    0
}

/// As [`read_str`], and through the task's shadow.
fn read_kernel_str(run: &mut Run, dst: u64, len: u64, src: u64) -> u64 {
    let (Some(place), Some(last)) = (Place::at(src), (len as u32 as usize).checked_sub(1)) else {
        return read_str(run, dst, len, src);
    };
    // SAFETY: dst has room for len bytes by the helper's contract.
    let out = unsafe { std::slice::from_raw_parts_mut(dst as *mut u8, last + 1) };
    shadow::read(run, place, out);
    let end = out.iter().position(|b| *b == 0).unwrap_or(last);
    out[end..].fill(0);
    end as u64 + 1
}

/// Length including the terminator, at most `len`; the string is always terminated.
pub(super) fn read_str(run: &mut Run, dst: u64, len: u64, src: u64) -> u64 {
    let len = len as u32 as usize;
    if len == 0 {
        return 0;
    }
    let dst = dst as *mut u8;
    // SAFETY: dst has room for len bytes by the helper's contract; the copies survive a fault.
    let got = unsafe {
        match reads(run) {
            Reads::Guarded => copy::probe_read_str(dst, src as *const u8, len),
            _ => read_str_by_page(dst, src, len),
        }
    };
    if got < 0 {
        // SAFETY: as above.
        unsafe { std::ptr::write_bytes(dst, 0, len) };
        return EFAULT;
    }
    got as u64
}

/// Whether all pages of a range may be read.
fn pages_are_there(src: u64, len: usize) -> bool {
    let Some(last) = (len as u64).checked_sub(1).map(|n| src.checked_add(n)) else { return true };
    last.is_some_and(|last| (src >> 12..=last >> 12).all(|page| copy::readable((page << 12) as usize)))
}

/// A string, page by page: it may end before a page that is not there.
///
/// # Safety
/// `dst` has room for `len` bytes, and `len` is not 0.
unsafe fn read_str_by_page(dst: *mut u8, src: u64, len: usize) -> isize {
    let mut done = 0;
    while done < len {
        let Some(at) = src.checked_add(done as u64) else { return -1 };
        let part = (4096 - (at as usize & 4095)).min(len - done);
        // SAFETY: part bytes from done on lie within len.
        let bytes = unsafe {
            if !copy::readable(at as usize) || copy::probe_read(dst.add(done), at as *const u8, part) != 0 {
                return -1;
            }
            std::slice::from_raw_parts(dst.add(done), part)
        };
        if let Some(nul) = bytes.iter().position(|b| *b == 0) {
            return (done + nul + 1) as isize;
        }
        done += part;
    }
    // SAFETY: the last of len bytes.
    unsafe { *dst.add(len - 1) = 0 };
    len as isize
}

helper! {
    /// 4 `probe_read(dst, size, src)`.
    fn probe_read(run, dst, size, src) { read_kernel(run, dst, size, src) }
}
helper! {
    /// 112 `probe_read_user(dst, size, src)`.
    fn probe_read_user(run, dst, size, src) { read(run, dst, size, src) }
}
helper! {
    /// 113 `probe_read_kernel(dst, size, src)`.
    fn probe_read_kernel(run, dst, size, src) { read_kernel(run, dst, size, src) }
}
helper! {
    /// 45 `probe_read_str(dst, size, src)`.
    fn probe_read_str(run, dst, size, src) { read_kernel_str(run, dst, size, src) }
}
helper! {
    /// 114 `probe_read_user_str(dst, size, src)`.
    fn probe_read_user_str(run, dst, size, src) { read_str(run, dst, size, src) }
}
helper! {
    /// 115 `probe_read_kernel_str(dst, size, src)`.
    fn probe_read_kernel_str(run, dst, size, src) { read_kernel_str(run, dst, size, src) }
}
