//! The programs at system calls once more, for the assembly (arch/x86_64/syscall_entry.rs): a table by number, of the calls
//! of which nothing needs to be known but that they are made.

use super::effects::is_plain;
use super::{Listeners, NUMBERS as COUNT, SideList};
use crate::run::enter::{Entry, List};
use bpftime_shm::session::wire::CallContext;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Numbers that are in the table.
pub(crate) const NUMBERS: usize = COUNT;

/// Both sides of a call. [`List::LONG_WAY`] in a side's needs: the assembly asks `hook::syscall`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Call {
    pub(crate) enter: List,
    pub(crate) exit: List,
}
const _: () = assert!(size_of::<Call>().is_power_of_two());

impl Call {
    /// In a side's needs: the list is empty.
    pub(crate) const NOTHING: u32 = 4;
    /// In the needs of the enter side: the exit side is not empty.
    pub(crate) const EXIT_TOO: u32 = 8;
}

/// The table and what it points to.
pub(super) struct Direct {
    calls: Vec<Call>,
    /// By number and side; those of numbers that only share what is for all are not here.
    _own: Vec<Vec<Entry>>,
    _shared: [Vec<Entry>; 2],
}

// SAFETY: the lists of `calls` point into the other fields, which may be shared between threads.
unsafe impl Send for Direct {}
// SAFETY: as above.
unsafe impl Sync for Direct {}

/// What the assembly reads: the calls of a [`Direct`], by number, or null: nothing is to be reported without asking.
pub(crate) static CALLS: AtomicPtr<Call> = AtomicPtr::new(std::ptr::null_mut());

/// Publishes a table, or none. As for [`super::publish`].
pub(super) fn publish(direct: Option<&Direct>) {
    let calls = direct.map_or(std::ptr::null(), |d| d.calls.as_ptr());
    // Release: pairs with the load of the assembly (x86 keeps its order); the table is complete.
    CALLS.store(calls.cast_mut(), Ordering::Release);
}

impl Direct {
    pub(super) fn of(listeners: &Listeners) -> Self {
        let sides = [&listeners.enter, &listeners.exit];
        let shared = sides.map(|side| entries(side, -1));
        let mut own: BTreeMap<(usize, usize), Vec<Entry>> = BTreeMap::new();
        for (s, side) in sides.into_iter().enumerate() {
            let numbers = side.by_nr.iter().enumerate().filter(|(_, l)| !l.is_empty());
            own.extend(numbers.map(|(nr, _)| ((nr, s), entries(side, nr as i32))));
        }
        let list = |nr: usize, s: usize| {
            let plain =
                is_plain(nr as i64) && sides[s].of(nr as i32).all(|l| l.context == CallContext::Record);
            let entries = own.get(&(nr, s)).unwrap_or(&shared[s]);
            if plain { of_records(entries) } else { List::default() }
        };
        let call = |nr: usize| {
            let (mut enter, exit) = (list(nr, 0), list(nr, 1));
            enter.needs |= if listeners.exit.wanted(nr as i32) { Call::EXIT_TOO } else { 0 };
            Call { enter, exit }
        };
        let calls = (0..NUMBERS).map(call).collect();
        Self { calls, _own: own.into_values().collect(), _shared: shared }
    }
}

/// The entries for a number in a row.
fn entries(side: &SideList, nr: i32) -> Vec<Entry> {
    side.of(nr).map(|l| l.entry.clone()).collect()
}

/// What the programs get are records. Who looks at registers does so by a helper, and goes the long way, as do runs that
/// are counted.
fn of_records(entries: &[Entry]) -> List {
    if entries.iter().any(|e| e.reads_registers() || e.is_counted()) {
        return List::default();
    }
    let mut list = List::of(entries);
    // The context is no register file.
    list.needs = list.needs & !List::REGISTERS | if entries.is_empty() { Call::NOTHING } else { 0 };
    list
}
