//! Uprobe sessions: one program at a function's entry and again at its return, with eight bytes in between.

use super::Hit;
use super::enter::{Entry, Who, run_event};
use crate::hook::{Carried, ThreadBlock};
use std::cell::UnsafeCell;
use std::sync::atomic::Ordering::Relaxed;

/// Which word of [`ThreadBlock::run`] leads to the [`Moment`] of the run in progress.
const WORD: usize = 4;

/// Where a session's program is.
pub struct Moment {
    /// At the return.
    pub at_return: bool,
    /// What the program remembers.
    pub word: *mut u64,
}

impl Moment {
    /// That of the run in progress. A program that is no session's has none: it may still get here by a tail call.
    pub fn current() -> Option<&'static Moment> {
        let word = ThreadBlock::current()?.run[WORD].load(Relaxed);
        // SAFETY: set by `during` for as long as the moment lives; before that 0, or the new block's NOBODY.
        if word == u64::MAX { None } else { unsafe { (word as *const Moment).as_ref() } }
    }

    /// Runs the program at this moment; its result, if it ended by itself.
    fn during(&self, entry: &Entry, who: &Who, hit: &Hit) -> Option<u64> {
        let word = &who.block.run[WORD];
        // A handler that interrupts the run may have sessions of its own.
        let outer = word.load(Relaxed);
        word.store(std::ptr::from_ref(self) as u64, Relaxed);
        let result = run_event(entry, who, hit);
        word.store(outer, Relaxed);
        result
    }
}

/// Where the word of a program is that no session runs.
struct Nowhere(UnsafeCell<u64>);
// SAFETY: nobody minds what is in there.
unsafe impl Sync for Nowhere {}
static NOWHERE: Nowhere = Nowhere(UnsafeCell::new(0));

/// Eight bytes that a program may always write.
pub fn nowhere() -> *mut u64 {
    NOWHERE.0.get()
}

/// At the function's entry: the program says by 0 that it wants the return.
pub fn at_entry(entry: &Entry, who: &Who, hit: &Hit, carried: &mut Carried) {
    carried.ask(hit.func_ip);
    let mut word = 0;
    let moment = Moment { at_return: false, word: &raw mut word };
    let wants = moment.during(entry, who, hit) == Some(0);
    if wants && !carried.add(entry.session(), word) {
        who.block.missed.fetch_add(1, Relaxed);
    }
}

/// At its return, for the programs that wanted it.
pub fn at_return(entry: &Entry, who: &Who, hit: &Hit, carried: &mut Carried) {
    if let Some(part) = carried.of(hit.func_ip, entry.session()) {
        Moment { at_return: true, word: &raw mut part.word }.during(entry, who, hit);
    }
}
