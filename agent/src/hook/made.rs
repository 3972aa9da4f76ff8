//! Which thunks exist: for signal handlers that must say where their thread would be without us.

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::*};

/// Where a displaced instruction went: its offset from the site, and its copy's from the thunk's start.
pub(super) type Moved = (u16, u16);

/// A thunk ever made. Small, as are the lists: a process may have tens of thousands.
struct Made {
    at: usize,
    addr: usize,
    moved: Box<[Moved]>,
    older: *const Made,
    len: u32,
}

static NEWEST: AtomicPtr<Made> = AtomicPtr::new(std::ptr::null_mut());
/// Bounds of all thunks, to say no quickly.
static LOWEST: AtomicUsize = AtomicUsize::new(usize::MAX);
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

/// Notes a thunk of `len` bytes at `at` for the site `addr`, with where its instructions went. Called by the control
/// thread only.
pub(super) fn remember(
    at: usize,
    len: usize,
    addr: usize,
    moved: impl Iterator<Item = (usize, usize)>,
) -> &'static [Moved] {
    let older = NEWEST.load(Relaxed);
    let moved = moved.map(|(from, to)| (from as u16, to as u16)).collect();
    let made: &'static Made = Box::leak(Box::new(Made { at, addr, moved, older, len: len as u32 }));
    LOWEST.fetch_min(at, Relaxed);
    HIGHEST.fetch_max(at + len, Relaxed);
    NEWEST.store(std::ptr::from_ref(made).cast_mut(), Release); // pairs with the Acquire below: the record is complete
    &made.moved
}

/// The probed program's address for `rip`, if that is in the displaced instructions of a thunk.
pub(crate) fn original_rip(rip: usize) -> Option<usize> {
    if rip < LOWEST.load(Relaxed) || rip >= HIGHEST.load(Relaxed) {
        return None;
    }
    // SAFETY: records are leaked.
    let mut at = unsafe { NEWEST.load(Acquire).as_ref() };
    while let Some(made) = at {
        if (made.at..made.at + made.len as usize).contains(&rip) {
            let (from, _) = made.moved.iter().rev().find(|(_, to)| made.at + *to as usize <= rip)?;
            return Some(made.addr + *from as usize);
        }
        // SAFETY: as above.
        at = unsafe { made.older.as_ref() };
    }
    None
}
