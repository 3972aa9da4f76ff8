//! Which thunks exist: for the engine, and for signal handlers that must say where their thread would be without us.

use super::Site;
use super::keep::{Keep, KeepBytes};
use crate::arch::Landing;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::*};

/// A thunk ever made. Small: a process may have tens of thousands.
pub(super) struct Made {
    /// Where it is.
    pub at: usize,
    /// Whose it is.
    pub site: &'static Site,
    older: Option<&'static Made>,
    len: u16,
    /// How many instructions it displaces.
    pub count: u8,
    /// Which routine it calls; none for a system call's.
    pub landing: Option<Landing>,
    /// Of each its offset from the site and its copy's from the thunk's start, in [`PER_MOVE`] bytes; then what the bytes at
    /// the site were.
    tail: &'static [u8],
}

/// One byte and two.
const PER_MOVE: usize = 3;

impl Made {
    fn moved(&self) -> impl DoubleEndedIterator<Item = (usize, usize)> + use<'_> {
        let (moves, _) = self.tail[..self.original_at()].as_chunks::<PER_MOVE>();
        moves.iter().map(|[from, low, high]| (*from as usize, u16::from_le_bytes([*low, *high]) as usize))
    }

    fn original_at(&self) -> usize {
        self.count as usize * PER_MOVE
    }

    /// By displaced instruction: offset from the site, address of the copy.
    pub fn copies(&'static self) -> impl Iterator<Item = (usize, usize)> + use<> {
        self.moved().map(|(from, to)| (from, self.at + to))
    }

    /// The bytes of the displaced instructions, as the program has them.
    pub fn original(&self) -> &'static [u8] {
        &self.tail[self.original_at()..]
    }
}

static NEWEST: AtomicPtr<Made> = AtomicPtr::new(std::ptr::null_mut());

fn newest() -> Option<&'static Made> {
    // SAFETY: null, or a record that is kept.
    unsafe { NEWEST.load(Acquire).as_ref() }
}

/// Bounds of all thunks, to say no quickly.
static LOWEST: AtomicUsize = AtomicUsize::new(usize::MAX);
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

/// Where records of thunks are. On the control thread.
#[derive(Default)]
pub(super) struct Records {
    made: Keep<Made>,
    tails: KeepBytes,
}

impl Records {
    /// Tells how many thunks are coming.
    pub fn expect(&mut self, more: usize) {
        // Three instructions, seven bytes.
        const TAIL: usize = 3 * PER_MOVE + 7;
        self.made.expect(more);
        self.tails.expect(more * TAIL);
    }

    /// Notes a thunk of `len` bytes at `at` for `site`, which calls `landing`, with where the instructions of
    /// `original` went.
    pub fn remember(
        &mut self,
        (at, len): (usize, usize),
        site: &'static Site,
        landing: Option<Landing>,
        moved: impl Iterator<Item = (usize, usize)>,
        original: &[u8],
    ) -> &'static Made {
        let older = newest();
        let mut tail = Vec::new();
        for (from, to) in moved {
            let [low, high] = (to as u16).to_le_bytes();
            tail.extend([from as u8, low, high]);
        }
        let count = (tail.len() / PER_MOVE) as u8;
        tail.extend(original);
        let tail = self.tails.put(&tail);
        let made = self.made.put(Made { at, site, older, len: len as u16, count, landing, tail });
        LOWEST.fetch_min(at, Relaxed);
        HIGHEST.fetch_max(at + len, Relaxed);
        NEWEST.store(std::ptr::from_ref(made).cast_mut(), Release); // pairs with the Acquire below: the record is complete
        made
    }
}

/// The probed program's address for `rip`, if that is in the displaced instructions of a thunk.
pub(crate) fn original_rip(rip: usize) -> Option<usize> {
    if rip < LOWEST.load(Relaxed) || rip >= HIGHEST.load(Relaxed) {
        return None;
    }
    let mut at = newest();
    while let Some(made) = at {
        if (made.at..made.at + made.len as usize).contains(&rip) {
            let (from, _) = made.moved().rev().find(|(_, to)| made.at + to <= rip)?;
            return Some(made.site.addr + from);
        }
        at = made.older;
    }
    None
}
