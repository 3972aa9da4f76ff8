//! Run statistics of programs (BPF_ENABLE_STATS), in the session page: a row per program, a column per CPU slot and one
//! more for runs in the tool.
//!
//! A column belongs to the run that owns the slot, so counting is three plain stores. The last column, and misses, which
//! belong to no slot, are added to atomically.

use serde::{Deserialize, Serialize};
use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering};

/// Programs of a session that have a row. The memory is sparse: a row that is not counted in costs nothing.
pub const ROWS: u32 = 4096;

/// One program's runs on one CPU slot.
#[repr(C, align(64))]
pub struct Column {
    count: AtomicU64,
    nanos: AtomicU64,
    missed: AtomicU64,
    rest: [u64; 5],
}

const _: () = assert!(size_of::<Column>() == 64);

/// What a program's runs come to, as `struct bpf_prog_info` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runs {
    /// `run_cnt`.
    pub count: u64,
    /// `run_time_ns`.
    pub nanos: u64,
    /// `recursion_misses`: runs that did not happen since no CPU slot was free.
    pub missed: u64,
}

impl Add for Runs {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let count = self.count.wrapping_add(other.count);
        let nanos = self.nanos.wrapping_add(other.nanos);
        Self { count, nanos, missed: self.missed.wrapping_add(other.missed) }
    }
}

/// A program's row.
#[derive(Clone, Copy)]
pub struct Row<'a>(pub(super) &'a [Column]);

impl Row<'_> {
    /// Counts a run by who owns CPU slot `slot`.
    pub fn count(self, slot: u32, nanos: u64) {
        let Some(column) = self.0.get(slot as usize) else { return };
        let add = |word: &AtomicU64, n| {
            word.store(word.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        };
        add(&column.count, 1);
        add(&column.nanos, nanos);
    }

    /// Counts a run in the tool.
    pub fn count_here(self, nanos: u64) {
        if let Some(column) = self.0.last() {
            column.count.fetch_add(1, Ordering::Relaxed);
            column.nanos.fetch_add(nanos, Ordering::Relaxed);
        }
    }

    /// Counts a run that did not happen.
    pub fn miss(self) {
        if let Some(column) = self.0.last() {
            column.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was counted so far.
    pub fn runs(self) -> Runs {
        let of = |c: &Column| Runs {
            count: c.count.load(Ordering::Relaxed),
            nanos: c.nanos.load(Ordering::Relaxed),
            missed: c.missed.load(Ordering::Relaxed),
        };
        self.0.iter().map(of).fold(Runs::default(), Runs::add)
    }

    /// For the row's next program. What is zero is left alone: writing it would take memory.
    pub fn clear(self) {
        let words = self.0.iter().flat_map(|c| [&c.count, &c.nanos, &c.missed]);
        words.filter(|w| w.load(Ordering::Relaxed) != 0).for_each(|w| w.store(0, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::super::page::Page;
    use super::*;

    #[test]
    fn rows_count_by_themselves_and_over_all_mappings() {
        let (fd, page) = Page::create(2).unwrap();
        let other = Page::open(&fd).unwrap();
        let (near, far) = (page.stats(7).unwrap(), other.stats(7).unwrap());
        near.count(0, 5);
        far.count(1, 6);
        far.count_here(7);
        near.miss();
        assert_eq!(far.runs(), Runs { count: 3, nanos: 18, missed: 1 });
        assert_eq!(page.stats(6).unwrap().runs(), Runs::default());
        near.clear();
        assert_eq!(far.runs(), Runs::default());
        assert!(page.stats(ROWS).is_none());
    }
}
