//! Which thunks exist: for signal handlers that must say where their thread would be without us.

use std::ops::Range;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::*};

/// A thunk ever made.
struct Made {
    range: Range<usize>,
    addr: usize,
    copies: Vec<(usize, usize)>,
    older: *const Made,
}

static NEWEST: AtomicPtr<Made> = AtomicPtr::new(std::ptr::null_mut());
/// Bounds of all thunks, to say no quickly.
static LOWEST: AtomicUsize = AtomicUsize::new(usize::MAX);
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

/// Notes a thunk of `len` bytes at `at` for the site `addr`. Called by the control thread only.
pub(super) fn remember(at: usize, len: usize, addr: usize, copies: &[(usize, usize)]) {
    let older = NEWEST.load(Relaxed);
    let made = Box::new(Made { range: at..at + len, addr, copies: copies.to_vec(), older });
    LOWEST.fetch_min(at, Relaxed);
    HIGHEST.fetch_max(at + len, Relaxed);
    NEWEST.store(Box::into_raw(made), Release); // pairs with the Acquire below: the record is complete
}

/// The probed program's address for `rip`, if that is in the displaced instructions of a thunk.
pub(crate) fn original_rip(rip: usize) -> Option<usize> {
    if rip < LOWEST.load(Relaxed) || rip >= HIGHEST.load(Relaxed) {
        return None;
    }
    // SAFETY: records are leaked.
    let mut at = unsafe { NEWEST.load(Acquire).as_ref() };
    while let Some(made) = at {
        if made.range.contains(&rip) {
            let (off, _) = made.copies.iter().rev().find(|(_, copy)| *copy <= rip)?;
            return Some(made.addr + off);
        }
        // SAFETY: as above.
        at = unsafe { made.older.as_ref() };
    }
    None
}
