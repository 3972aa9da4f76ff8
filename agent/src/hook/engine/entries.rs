//! The sites of an engine by address: sorted, since a process may have tens of thousands, and neighbours are looked for.
#![forbid(unsafe_code)]

use super::Entry;
use std::ops::Range;

/// An entry that is being worked on is taken out and put back, and its place stays.
#[derive(Default)]
pub(super) struct Entries(Vec<Entry>);

impl Entries {
    fn find(&self, addr: usize) -> Result<usize, usize> {
        self.0.binary_search_by_key(&addr, Entry::addr)
    }

    pub fn get(&self, addr: usize) -> Option<&Entry> {
        Some(&self.0[self.find(addr).ok()?]).filter(|e| !e.out)
    }

    pub fn get_mut(&mut self, addr: usize) -> Option<&mut Entry> {
        let at = self.find(addr).ok()?;
        Some(&mut self.0[at]).filter(|e| !e.out)
    }

    /// Takes an entry out.
    pub fn take(&mut self, addr: usize) -> Option<Entry> {
        let place = self.get_mut(addr)?;
        let entry = *place;
        place.out = true;
        Some(entry)
    }

    /// Puts an entry in, or back; it takes the place of another one of its address.
    pub fn put(&mut self, entry: Entry) {
        match self.find(entry.addr()) {
            Ok(at) => self.0[at] = entry,
            Err(at) => {
                self.expect(1);
                self.0.insert(at, entry);
            }
        }
    }

    /// Makes room for `more` addresses.
    pub fn expect(&mut self, more: usize) {
        if self.0.capacity() - self.0.len() < more {
            self.0.reserve_exact(more.max(self.0.len() / 8));
        }
    }

    pub fn values(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter().filter(|e| !e.out)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.0.iter_mut().filter(|e| !e.out)
    }

    /// The entries of a range of addresses, in their order.
    pub fn range(&self, range: Range<usize>) -> impl Iterator<Item = &Entry> {
        let first = self.0.partition_point(|e| e.addr() < range.start);
        self.0[first..].iter().take_while(move |e| e.addr() < range.end).filter(|e| !e.out)
    }
}
