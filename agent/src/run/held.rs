//! What a run holds of rings, and must not leave behind when a fault or want of fuel ends it: a record that stays
//! reserved would stall the consumer.

use super::Run;
use std::mem::MaybeUninit;

/// Records that a run may hold at a time. The kernel knows no limit; its verifier's budget makes one of this order.
const MOST: usize = 16;

/// The reserved records of a run.
pub struct Held {
    count: u32,
    records: [MaybeUninit<u64>; MOST],
}

/// For runner.rs: where the count is, which alone has to be written.
pub(crate) const COUNT: usize = std::mem::offset_of!(Held, count);

impl Held {
    /// None yet. Nothing but the count is written.
    #[inline]
    pub fn none() -> Self {
        Self { count: 0, records: [MaybeUninit::uninit(); MOST] }
    }

    /// Whether there is room for another record.
    #[inline]
    pub fn has_room(&self) -> bool {
        (self.count as usize) < MOST
    }

    /// A record was reserved.
    #[inline]
    pub fn add(&mut self, record: u64) {
        if let Some(slot) = self.records.get_mut(self.count as usize) {
            slot.write(record);
            self.count += 1;
        }
    }

    /// A record was given up.
    #[inline]
    pub fn remove(&mut self, record: u64) {
        let count = self.count as usize;
        // SAFETY: the first `count` were written.
        let at = (0..count).rev().find(|at| unsafe { self.records[*at].assume_init() } == record);
        if let Some(at) = at {
            self.records[at] = self.records[count - 1];
            self.count -= 1;
        }
    }

    /// Takes a record out.
    fn take(&mut self) -> Option<u64> {
        self.count = self.count.checked_sub(1)?;
        // SAFETY: the first `count` were written.
        Some(unsafe { self.records[self.count as usize].assume_init() })
    }
}

/// Discards what an abandoned run holds.
#[cold]
pub fn let_go(run: &mut Run) {
    while let Some(record) = run.held.take() {
        super::helpers::ring::discard(run, record, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_given_up_is_found() {
        let mut held = Held::none();
        (1..=MOST as u64).for_each(|n| held.add(n));
        assert!(!held.has_room());
        held.remove(3);
        held.remove(MOST as u64);
        held.remove(99);
        let mut left: Vec<u64> = std::iter::from_fn(|| held.take()).collect();
        left.sort();
        assert_eq!(left.len(), MOST - 2);
        assert!(!left.contains(&3) && !left.contains(&(MOST as u64)));
    }
}
