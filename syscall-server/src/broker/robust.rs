//! Has the kernel note the end of a thread in shared memory, by whatever way it ends (`set_robust_list(2)`).

use std::sync::atomic::{AtomicU32, Ordering};

/// `struct robust_list`.
#[repr(C)]
struct Entry {
    next: *const Entry,
}

/// `struct robust_list_head`.
#[repr(C)]
struct Head {
    list: Entry,
    futex_offset: isize,
    pending: *const Entry,
}

/// From now on `word` holds the calling thread's id, and `FUTEX_OWNER_DIED` once the thread is gone. The thread must not
/// use robust mutexes of the C library, whose list this replaces.
pub fn mark(word: &AtomicU32) {
    let head = Box::into_raw(Box::new(Head {
        list: Entry { next: std::ptr::null() },
        futex_offset: 0,
        pending: std::ptr::null(),
    }));
    let entry = Box::into_raw(Box::new(Entry { next: head.cast() }));
    // SAFETY: two fresh allocations that are never freed: the kernel reads them when the thread ends. The list is a
    // ring through the head; a futex lies `futex_offset` from its entry.
    unsafe {
        (*head).list.next = entry;
        (*head).futex_offset = std::ptr::from_ref(word) as isize - entry as isize;
        word.store(libc::syscall(libc::SYS_gettid) as u32, Ordering::Relaxed);
        libc::syscall(libc::SYS_set_robust_list, head, size_of::<Head>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_thread_is_noted() {
        const OWNER_DIED: u32 = 0x4000_0000;
        static WORD: AtomicU32 = AtomicU32::new(0);
        std::thread::spawn(|| mark(&WORD)).join().unwrap();
        // The kernel writes at the very end, which a join may precede.
        while WORD.load(Ordering::Relaxed) & OWNER_DIED == 0 {
            std::thread::yield_now();
        }
    }
}
