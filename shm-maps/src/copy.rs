//! Copies between private and shared memory.
//!
//! Not `memcpy`: that is a C library symbol, which the user may be tracing, and a plain copy of bytes
//! that another process writes is a data race. Shared words are moved as relaxed atomics, which also
//! means an aligned eight-byte value is never seen half written, as on the kernel.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

/// From here on `rep movsb` beats a loop of words (Intel optimisation manual, fast-string operation).
pub const LONG: usize = 512;

#[inline]
fn words(len: usize) -> usize {
    len & !7
}

/// Copies `len` private bytes at `src` into shared memory at `dst`.
///
/// # Safety
/// Both ranges are valid for `len` bytes; `dst` is 8-aligned; they do not overlap.
#[inline]
pub unsafe fn to_shared(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { if len >= LONG { move_bytes(dst, src, len) } else { short_to_shared(dst, src, len) } }
}

/// As [`to_shared`], word by word whatever the length.
///
/// # Safety
/// As for that.
#[inline]
pub unsafe fn short_to_shared(dst: *mut u8, src: *const u8, len: usize) {
    let mut at = words(len);
    for at in (0..at).step_by(8) {
        // SAFETY: at + 8 <= len; dst is 8-aligned; the source is read unaligned.
        unsafe {
            (*dst.add(at).cast::<AtomicU64>()).store(src.add(at).cast::<u64>().read_unaligned(), Relaxed)
        };
    }
    if len & 4 != 0 {
        // SAFETY: as above; what is left of an 8-aligned word is 4-aligned.
        unsafe {
            (*dst.add(at).cast::<AtomicU32>()).store(src.add(at).cast::<u32>().read_unaligned(), Relaxed)
        };
        at += 4;
    }
    for at in at..len {
        // SAFETY: at < len.
        unsafe { (*dst.add(at).cast::<AtomicU8>()).store(*src.add(at), Relaxed) };
    }
}

/// Copies `len` shared bytes at `src` into private memory at `dst`.
///
/// # Safety
/// Both ranges are valid for `len` bytes; `src` is 8-aligned; they do not overlap.
#[inline]
pub unsafe fn from_shared(dst: *mut u8, src: *const u8, len: usize) {
    if len >= LONG {
        // SAFETY: the caller's promise.
        return unsafe { move_bytes(dst, src, len) };
    }
    let tail = words(len);
    for at in (0..tail).step_by(8) {
        // SAFETY: at + 8 <= len; src is 8-aligned; the destination is written unaligned.
        unsafe {
            dst.add(at).cast::<u64>().write_unaligned((*src.add(at).cast::<AtomicU64>()).load(Relaxed))
        };
    }
    for at in tail..len {
        // SAFETY: at < len.
        unsafe { *dst.add(at) = (*src.add(at).cast::<AtomicU8>()).load(Relaxed) };
    }
}

/// Zeroes `len` shared bytes, a multiple of eight.
///
/// # Safety
/// `dst` is 8-aligned and valid for `len` bytes.
#[inline]
pub unsafe fn zero_shared(dst: *mut u8, len: usize) {
    for at in (0..words(len)).step_by(8) {
        // SAFETY: at + 8 <= len, 8-aligned.
        unsafe { (*dst.add(at).cast::<AtomicU64>()).store(0, Relaxed) };
    }
}

/// Zeroes `len` private bytes.
///
/// # Safety
/// `dst` is valid for `len` bytes.
#[inline]
pub unsafe fn zero_private(dst: *mut u8, len: usize) {
    let tail = words(len);
    for at in (0..tail).step_by(8) {
        // SAFETY: at + 8 <= len. Volatile, so that the compiler makes no call of memset of the loop.
        unsafe { dst.add(at).cast::<[u8; 8]>().write_volatile([0; 8]) };
    }
    for at in tail..len {
        // SAFETY: at < len.
        unsafe { dst.add(at).write_volatile(0) };
    }
}

/// Whether `len` shared bytes equal the private ones.
///
/// # Safety
/// Both ranges are valid for `len` bytes; `shared` is 8-aligned.
#[inline]
pub unsafe fn equal(shared: *const u8, private: *const u8, len: usize) -> bool {
    let tail = words(len);
    for at in (0..tail).step_by(8) {
        // SAFETY: at + 8 <= len.
        let (a, b) = unsafe {
            (
                (*shared.add(at).cast::<AtomicU64>()).load(Relaxed),
                private.add(at).cast::<u64>().read_unaligned(),
            )
        };
        if a != b {
            return false;
        }
    }
    for at in tail..len {
        // SAFETY: at < len.
        let (a, b) = unsafe { ((*shared.add(at).cast::<AtomicU8>()).load(Relaxed), *private.add(at)) };
        if a != b {
            return false;
        }
    }
    true
}

/// # Safety
/// Both ranges are valid for `len` bytes and do not overlap.
#[cfg(target_arch = "x86_64")]
unsafe fn move_bytes(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller's promise. A probe may come where the host counts backwards: the flag is not the ABI's here.
    unsafe {
        core::arch::asm!("pushfq", "cld", "rep movsb", "popfq",
            inout("rcx") len => _, inout("rdi") dst => _, inout("rsi") src => _, options(preserves_flags));
    }
}

/// # Safety
/// Both ranges are valid for `len` bytes and do not overlap.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn move_bytes(dst: *mut u8, src: *const u8, len: usize) {
    for at in 0..len {
        // SAFETY: at < len.
        unsafe { (*dst.add(at).cast::<AtomicU8>()).store(*src.add(at), Relaxed) };
    }
}

/// As [`to_shared`] for any alignment; words may be seen half written.
///
/// # Safety
/// Both ranges are valid for `len` bytes and do not overlap.
#[inline]
pub unsafe fn to_shared_unaligned(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { move_bytes(dst, src, len) };
}
