//! Where BPF code and this library's code are.

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::*};

const PER_CHUNK: usize = 254;

/// Ranges, appended to and read without locks; a free one has end 0. Chunks are never freed.
struct Chunk {
    ranges: [(AtomicUsize, AtomicUsize); PER_CHUNK],
    next: AtomicPtr<Chunk>,
}

impl Chunk {
    const fn new() -> Self {
        let ranges = [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; PER_CHUNK];
        Self { ranges, next: AtomicPtr::new(std::ptr::null_mut()) }
    }
}

static FIRST: Chunk = Chunk::new();
/// A range being written: no address is below 1.
const CLAIMED: usize = 1;

/// Code in `start..end` runs under `run_guarded` only: a fault there ends the run. Control thread (allocates).
pub fn register_code_range(start: usize, end: usize) {
    let mut chunk = &FIRST;
    loop {
        for (s, e) in &chunk.ranges {
            if e.compare_exchange(0, CLAIMED, AcqRel, Relaxed).is_ok() {
                s.store(start, Relaxed);
                e.store(end, Release); // pairs with the Acquire in `contains`: start is there
                return;
            }
        }
        chunk = match next(chunk) {
            Some(c) => c,
            None => append(chunk),
        };
    }
}

/// The reverse. The code must not run any more.
pub fn unregister_code_range(start: usize, end: usize) {
    let mut at = Some(&FIRST);
    while let Some(chunk) = at {
        for (s, e) in &chunk.ranges {
            if s.load(Relaxed) == start && e.load(Relaxed) == end {
                e.store(0, Release);
            }
        }
        at = next(chunk);
    }
}

fn next(chunk: &Chunk) -> Option<&'static Chunk> {
    // SAFETY: null or a leaked chunk.
    unsafe { chunk.next.load(Acquire).as_ref() }
}

fn append(last: &Chunk) -> &'static Chunk {
    let new = Box::leak(Box::new(Chunk::new()));
    match last.next.compare_exchange(std::ptr::null_mut(), new, AcqRel, Acquire) {
        Ok(_) => new,
        // SAFETY: somebody appended a leaked chunk first; ours is left unused.
        Err(theirs) => unsafe { &*theirs },
    }
}

/// True when `rip` is in a registered range.
pub(super) fn contains(rip: usize) -> bool {
    let mut at = Some(&FIRST);
    while let Some(chunk) = at {
        for (s, e) in &chunk.ranges {
            if rip < e.load(Acquire) && rip >= s.load(Relaxed) {
                return true;
            }
        }
        at = next(chunk);
    }
    false
}

/// Whether all of `range` is registered code; neighbours may be one mapping.
pub(crate) fn is_program(mut range: std::ops::Range<usize>) -> bool {
    while range.start < range.end {
        let Some(end) = end_of(range.start) else { return false };
        range.start = end;
    }
    true
}

/// The end of the registered range that holds `addr`.
fn end_of(addr: usize) -> Option<usize> {
    let mut at = Some(&FIRST);
    while let Some(chunk) = at {
        for (s, e) in &chunk.ranges {
            let end = e.load(Acquire);
            if addr < end && addr >= s.load(Relaxed) {
                return Some(end);
            }
        }
        at = next(chunk);
    }
    None
}

static LIBRARY: (AtomicUsize, AtomicUsize) = (AtomicUsize::new(0), AtomicUsize::new(0));

/// Finds out where this library's text is. At installation: takes the loader's lock.
pub(super) fn find_library() {
    // SAFETY: the callback reads the loader's records only while it is called.
    unsafe { libc::dl_iterate_phdr(Some(visit), std::ptr::null_mut()) };
}

/// # Safety
/// Called by dl_iterate_phdr.
unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _: usize, _: *mut libc::c_void) -> i32 {
    let here = visit as *const () as usize;
    // SAFETY: valid for the duration of the call.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr as usize, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum as usize))
    };
    for h in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_X != 0) {
        let start = base + h.p_vaddr as usize;
        let end = start + h.p_memsz as usize;
        if (start..end).contains(&here) {
            LIBRARY.0.store(start, Relaxed);
            LIBRARY.1.store(end, Relaxed);
            return 1;
        }
    }
    0
}

/// The text of the object that this code is linked into.
pub(crate) fn own_text() -> std::ops::Range<usize> {
    LIBRARY.0.load(Relaxed)..LIBRARY.1.load(Relaxed)
}

/// True when `rip` is in the text of the object that this code is linked into.
pub(crate) fn in_library(rip: usize) -> bool {
    (LIBRARY.0.load(Relaxed)..LIBRARY.1.load(Relaxed)).contains(&rip)
}
