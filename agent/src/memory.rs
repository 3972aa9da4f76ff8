//! What our allocations do when the process may have no more memory (RLIMIT_AS, RLIMIT_DATA, strict overcommit).
//!
//! Rust ends the process when an allocation fails. A process that we were loaded into has not asked for that: so the
//! libraries allocate from the C library as long as it gives something and then from a reserve of their own, part of the
//! library's image and therefore always there. Who is about to need much asks first ([`has_room`]) and fails with ENOMEM;
//! the control thread looks before each message and each site, and once the reserve was needed takes its probes out and goes
//! quiet ([`Reserve::in_use`]). What the reserve covers is what is allocated between two such looks.

use crate::arch::sys;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes of the reserve. Its pages exist when they were touched.
const SIZE: usize = 4 << 20;

#[repr(C, align(4096))]
struct Bytes(UnsafeCell<[u8; SIZE]>);

// SAFETY: ranges of it are handed out once at a time; the array itself is never borrowed.
unsafe impl Sync for Bytes {}

static BYTES: Bytes = Bytes(UnsafeCell::new([0; SIZE]));

/// Allocations of the reserve that live, in the upper half, and the bytes that were handed out, in the lower. When none
/// lives everything is there again.
static STATE: AtomicU64 = AtomicU64::new(0);

/// See [`Reserve::spares`].
static SHORT: AtomicBool = AtomicBool::new(false);

/// The allocator of our libraries.
pub struct Reserve;

impl Reserve {
    /// Whether something was, and is still, taken from the reserve, or would have been.
    pub fn in_use() -> bool {
        STATE.load(Ordering::Relaxed) >> 32 != 0 || SHORT.load(Ordering::Relaxed)
    }

    /// Whether `len` more bytes are there for what cannot stop half-way. Where they are not it does not begin, and
    /// everything is as if it had come to need the reserve.
    pub fn spares(len: usize) -> bool {
        let room = len == 0 || has_room(len);
        SHORT.fetch_or(!room, Ordering::Relaxed);
        room
    }

    /// Where `layout` lies when `used` bytes are taken, and how many are taken then.
    fn place(used: usize, layout: Layout) -> Option<(usize, usize)> {
        let base = BYTES.0.get() as usize;
        let start = (base + used).checked_next_multiple_of(layout.align())? - base;
        let end = start.checked_add(layout.size())?;
        (end <= SIZE).then_some((start, end))
    }

    fn take(layout: Layout) -> *mut u8 {
        let mut at = 0;
        let taken = STATE.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            let (start, end) = Self::place(state as u32 as usize, layout)?;
            at = start;
            Some(((state >> 32) + 1) << 32 | end as u64)
        });
        match taken {
            // SAFETY: `place` keeps it inside the array.
            Ok(_) => unsafe { BYTES.0.get().cast::<u8>().add(at) },
            Err(_) => ptr::null_mut(),
        }
    }

    fn holds(p: *mut u8) -> bool {
        (p as usize).wrapping_sub(BYTES.0.get() as usize) < SIZE
    }

    fn give_back() {
        let _ = STATE.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            let live = (state >> 32).saturating_sub(1);
            Some(if live == 0 { 0 } else { live << 32 | (state & u64::from(u32::MAX)) })
        });
    }
}

// SAFETY: memory comes from the C library, or from a range of the reserve that nobody else has until it is given back.
unsafe impl GlobalAlloc for Reserve {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let p = unsafe { System.alloc(layout) };
        if p.is_null() { Self::take(layout) } else { p }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let p = unsafe { System.alloc_zeroed(layout) };
        if !p.is_null() {
            return p;
        }
        let p = Self::take(layout);
        if !p.is_null() {
            // SAFETY: what was just taken; an earlier owner may have written it.
            unsafe { p.write_bytes(0, layout.size()) };
        }
        p
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        if Self::holds(p) {
            return Self::give_back();
        }
        // SAFETY: it is the C library's, by the caller's promise.
        unsafe { System.dealloc(p, layout) };
    }

    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !Self::holds(p) {
            // SAFETY: the caller's promise.
            let new = unsafe { System.realloc(p, layout, size) };
            if !new.is_null() {
                return new;
            }
        }
        // SAFETY: a size that realloc may be asked for, with an alignment that was good before.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !new.is_null() {
            // SAFETY: both are at least this long, and the new one is nobody else's.
            unsafe { ptr::copy_nonoverlapping(p, new, layout.size().min(size)) };
            // SAFETY: the caller's promise.
            unsafe { self.dealloc(p, layout) };
        }
        new
    }
}

/// Whether the process may have `len` more bytes: maps them and lets them go.
pub fn has_room(len: usize) -> bool {
    const PROT: usize = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    const FLAGS: usize = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
    // SAFETY: a new mapping at an address of the kernel's choice, which nobody knows of.
    let at = unsafe { sys::syscall(libc::SYS_mmap, [0, len, PROT, FLAGS, usize::MAX, 0]) };
    if at < 0 {
        return false;
    }
    // SAFETY: the mapping just made.
    unsafe { sys::syscall(libc::SYS_munmap, [at as usize, len, 0, 0, 0, 0]) };
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    /// One test, since there is one reserve.
    #[test]
    fn the_reserve_is_whole_again_when_all_is_given_back() {
        for _ in 0..3 {
            assert!(!Reserve::in_use());
            let one = Reserve::take(layout(100, 8));
            let two = Reserve::take(layout(SIZE / 2, 4096));
            assert!(Reserve::holds(one) && Reserve::holds(two) && (two as usize).is_multiple_of(4096));
            assert!(two as usize - one as usize >= 100);
            assert!(Reserve::take(layout(SIZE / 2, 1)).is_null(), "more than there is");
            assert!(Reserve::in_use());
            // SAFETY: a string of the reserve's that grows and moves.
            unsafe {
                one.write_bytes(7, 100);
                let moved = Reserve.realloc(one, layout(100, 8), 200);
                assert!(!Reserve::holds(moved) && *moved.add(99) == 7, "the C library has memory");
                Reserve.dealloc(moved, layout(200, 8));
                Reserve.dealloc(two, layout(SIZE / 2, 4096));
            }
        }
    }

    #[test]
    fn a_process_has_no_room_for_more_than_there_are_addresses() {
        assert!(has_room(1 << 20) && !has_room(1 << 60));
    }
}
