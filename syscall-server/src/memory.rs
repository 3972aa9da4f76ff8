//! Our allocations in the tool, which leave nothing behind.
//!
//! Tools have variables that they forget to initialise. libbcc closes such a one as a descriptor, if it is positive, when
//! a process has no perf map (`ModulePath`, on the heap). On the kernel its own leavings make that the number of an open perf
//! event now and then, whose probe ends; ours are not to make it more often. What we free is zeros.

use bpftime_agent::memory::Reserve;
use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;

/// The allocator of this library.
pub struct Wiped;

// SAFETY: memory is the other allocator's, and goes back there. `realloc` is the trait's own, which calls `dealloc`.
unsafe impl GlobalAlloc for Wiped {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { Reserve.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { Reserve.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: it has this size and is nobody's any more.
        unsafe { p.write_bytes(0, layout.size()) };
        // Else the compiler leaves the writing out.
        // SAFETY: the caller's promise.
        unsafe { Reserve.dealloc(black_box(p), layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_freed_is_zeros() {
        let layout = Layout::from_size_align(200, 8).unwrap();
        // SAFETY: a chunk of the allocator's; glibc keeps the ends of its lists in the first two words of a free one.
        unsafe {
            let p = Wiped.alloc(layout);
            p.write_bytes(7, 200);
            Wiped.dealloc(p, layout);
            let again = Wiped.alloc(layout);
            assert!(p == again && (16..200).all(|i| again.add(i).read_volatile() == 0));
            Wiped.dealloc(again, layout);
        }
    }
}
