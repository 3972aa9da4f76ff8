//! What object ids in a map's shared memory stand for in this process.
//!
//! A peer can write any id: it finds an object that the session put into *this* map, of the right kind, or nothing.
//! Programs read without locks; the process's control side writes. The table only grows, an entry that is taken out
//! keeps its place, and a table that was outgrown is kept (all of them together are no larger than the last).

use core::ptr;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32};
use std::sync::{Mutex, PoisonError};

const FIRST_SLOTS: usize = 8;

/// An id, 0 for none, and its object, null when it was taken out.
#[derive(Default)]
struct Slot {
    id: AtomicU32,
    object: AtomicPtr<()>,
}

/// Open addressing; a power of two of slots, at most half of them taken.
struct Table {
    slots: Box<[Slot]>,
}

impl Table {
    fn new(slots: usize) -> Table {
        Table { slots: (0..slots).map(|_| Slot::default()).collect() }
    }

    /// The slots in the order in which `id` is looked for.
    #[inline]
    fn probe(&self, id: u32) -> impl Iterator<Item = &Slot> {
        let mask = self.slots.len() - 1;
        // Ids are consecutive numbers: neighbours stay neighbours.
        (0..self.slots.len()).map(move |step| &self.slots[(id as usize).wrapping_add(step) & mask])
    }

    /// The slot of `id`, or the free one for it.
    fn place(&self, id: u32) -> Option<&Slot> {
        self.probe(id).find(|slot| matches!(slot.id.load(Relaxed), 0) || slot.id.load(Relaxed) == id)
    }

    fn taken(&self) -> impl Iterator<Item = (u32, *mut ())> {
        let each = self.slots.iter().map(|slot| (slot.id.load(Relaxed), slot.object.load(Relaxed)));
        each.filter(|(id, _)| *id != 0)
    }
}

/// The objects of one map.
#[derive(Default)]
pub struct Members {
    table: AtomicPtr<Table>,
    /// All tables there ever were, which own their memory; the last is current. Locked by whoever writes.
    #[expect(clippy::vec_box, reason = "programs hold the address of a table, so it must not move")]
    all: Mutex<Vec<Box<Table>>>,
}

impl Members {
    /// The object with this id, or null.
    #[inline]
    pub fn get(&self, id: u32) -> *const () {
        // Acquire: pairs with the Release in `set`; the table is complete.
        // SAFETY: null, or a table that lives as long as `self`.
        let Some(table) = (unsafe { self.table.load(Acquire).as_ref() }) else { return ptr::null() };
        for slot in table.probe(id) {
            match slot.id.load(Acquire) {
                0 => break,
                found if found == id => return slot.object.load(Acquire), // pairs with set: the object is complete
                _ => {}
            }
        }
        ptr::null()
    }

    /// Enters an object under a number other than 0, or takes it out with null. Programs may go on using one that was
    /// taken out until they end.
    pub fn set(&self, id: u32, object: *const ()) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = all.last().map_or(0, |table| table.taken().count());
        if all.last().is_none_or(|table| taken * 2 >= table.slots.len()) {
            let table = Box::new(grown(all.last().map(|last| &**last)));
            self.table.store((&raw const *table).cast_mut(), Release); // pairs with get
            all.push(table);
        }
        if let Some(slot) = all.last().and_then(|table| table.place(id)) {
            slot.object.store(object.cast_mut(), Release);
            slot.id.store(id, Release); // after the object: who finds the id finds it
        }
    }

    /// The objects.
    pub fn iter(&self) -> impl Iterator<Item = *const ()> + '_ {
        // SAFETY: as in `get`.
        let table = unsafe { self.table.load(Acquire).as_ref() };
        table.into_iter().flat_map(|t| t.slots.iter()).filter_map(|slot| {
            let object = slot.object.load(Acquire).cast_const();
            (!object.is_null()).then_some(object)
        })
    }
}

/// A table for twice as many as are in `old`, with those.
fn grown(old: Option<&Table>) -> Table {
    let kept: Vec<_> =
        old.into_iter().flat_map(|t| t.taken()).filter(|(_, object)| !object.is_null()).collect();
    let table = Table::new(((kept.len() + 1) * 4).next_power_of_two().max(FIRST_SLOTS));
    for (id, object) in kept {
        if let Some(slot) = table.place(id) {
            slot.object.store(object, Relaxed); // published with the table
            slot.id.store(id, Relaxed);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_find_their_objects_through_growth_and_removal() {
        let members = Members::default();
        let object = |id: u32| ptr::without_provenance::<()>(id as usize * 16);
        assert!(members.get(1).is_null());
        for id in 1..2000 {
            members.set(id, object(id));
            members.set(id / 2 * 2, if id % 5 == 0 { ptr::null() } else { object(id / 2 * 2) });
        }
        for id in (1..2000).filter(|id| id % 2 == 1) {
            assert_eq!(members.get(id), object(id));
        }
        assert!(members.get(2000).is_null() && members.get(u32::MAX).is_null());
    }

    #[test]
    fn entries_that_come_and_go_do_not_make_it_grow_for_ever() {
        let members = Members::default();
        for id in 1..100_000u32 {
            members.set(id, ptr::without_provenance(8));
            members.set(id, ptr::null());
        }
        assert_eq!(members.iter().count(), 0);
        let all = members.all.lock().expect("lock");
        assert!(all.last().is_some_and(|t| t.slots.len() <= 16));
    }
}
