//! What a call carries from its entry to its return, for programs that run at both (uprobe sessions).
//!
//! Row i of the table belongs to whoever holds return slot i (returns.rs), and is only looked at by sites that have such
//! programs. A call that never comes back leaves its row as it is: a row names its site, a part the link that it is of, and
//! those are never used again, so what is left is found by nobody.

use crate::arch::stubs::STUBS;
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;

/// Programs of one call that can be carried; the returns of any more are missed, and counted.
pub const PARTS: usize = 8;

/// What one program remembers of a call.
#[repr(C)]
pub struct Part {
    who: u64,
    /// The program's to read and write.
    pub word: u64,
}

/// The programs that want a call's return.
#[repr(C)]
pub struct Carried {
    /// Whether any program was asked. If not, nothing below means anything.
    asked: bool,
    len: u32,
    /// Where the call is.
    site: u64,
    parts: [MaybeUninit<Part>; PARTS],
}

impl Carried {
    /// Nobody was asked.
    pub fn none() -> Self {
        Self { asked: false, len: 0, site: 0, parts: [const { MaybeUninit::uninit() }; PARTS] }
    }

    /// A program that runs at both ends runs at this one, at the address `site`.
    pub fn ask(&mut self, site: u64) {
        self.asked = true;
        self.site = site;
    }

    /// Program `who` wants the return, and remembers `word`. False when there is no room.
    #[must_use]
    pub fn add(&mut self, who: u64, word: u64) -> bool {
        let Some(part) = self.parts.get_mut(self.len as usize) else { return false };
        part.write(Part { who, word });
        self.len += 1;
        true
    }

    /// What program `who` remembers of the call at `site`, if it wants the return.
    pub fn of(&mut self, site: u64, who: u64) -> Option<&mut Part> {
        let len = if self.site == site { self.len as usize } else { 0 };
        let written = self.parts.iter_mut().take(len);
        // SAFETY: the first `len` were written by `add`.
        written.map(|part| unsafe { part.assume_init_mut() }).find(|part| part.who == who)
    }

    /// Whether every program that was asked is content with the entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

struct Rows(UnsafeCell<[MaybeUninit<Carried>; STUBS]>);

// SAFETY: a row is used by the holder of its slot only.
unsafe impl Sync for Rows {}

// Zeroes (.bss): no row was asked for anything, and pages that no session touches cost nothing.
static ROWS: Rows = Rows(UnsafeCell::new([const { MaybeUninit::zeroed() }; STUBS]));

/// Row `i`, for the holder of slot `i`.
pub(super) fn row(i: usize) -> *mut Carried {
    debug_assert!(i < STUBS);
    // SAFETY: slots are numbered below STUBS.
    unsafe { ROWS.0.get().cast::<Carried>().add(i) }
}

/// The call that now holds slot `i` carries this.
pub(super) fn keep(i: usize, carried: &Carried) {
    if carried.asked {
        // SAFETY: the slot is the caller's; a `Carried` owns nothing.
        unsafe { row(i).copy_from_nonoverlapping(carried, 1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_carries_what_was_added_and_no_more_than_there_is_room_for() {
        let mut carried = Carried::none();
        carried.ask(0x10);
        assert!((0..PARTS as u64).all(|who| carried.add(who + 1, who * 10)));
        assert!(!carried.add(99, 0), "there is no room");
        assert_eq!(carried.of(0x10, 3).map(|part| part.word), Some(20));
        assert!(carried.of(0x10, 99).is_none());
        assert!(carried.of(0x20, 3).is_none(), "left by a call of another function");
    }

    #[test]
    fn a_row_is_only_written_for_those_who_asked() {
        let mut carried = Carried::none();
        assert!(carried.add(7, 1));
        keep(5, &carried);
        // SAFETY: nobody else uses slots in this test.
        let row = unsafe { &mut *row(5) };
        assert!(row.of(0x10, 7).is_none());
        carried.ask(0x10);
        keep(5, &carried);
        assert_eq!(row.of(0x10, 7).map(|part| part.word), Some(1));
    }
}
