//! Which int3 are ours and where a thread that hit one goes on. Written by the control thread, read by the SIGTRAP
//! handler of any thread at any time.

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::*};

/// Set in a target whose int3 has been removed. A thread that executed it just before gets here late.
const RETIRED: usize = 1 << 63;

/// Handlers may be reading a table at any time: it is never freed and never moved. One that is full gets a newer one beside it.
struct Table {
    /// Open addressing, at most five sixths full. Keys are never removed. As large as it has to be: many are used little.
    cells: Box<[(AtomicUsize, AtomicUsize)]>,
    older: Option<&'static Table>,
    /// Cells of this and of all older ones. For the control thread, as the next.
    total: usize,
    /// How many keys it takes yet.
    room: AtomicUsize,
}

static NEWEST: AtomicPtr<Table> = AtomicPtr::new(std::ptr::null_mut());

impl Table {
    /// The cell of `addr`, or the empty one where it belongs.
    fn cell(&self, addr: usize) -> &(AtomicUsize, AtomicUsize) {
        let hash = addr.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The share of the cells that the hash is of all numbers.
        let mut i = ((hash as u128 * self.cells.len() as u128) >> 64) as usize;
        loop {
            let cell = &self.cells[i];
            // Acquire pairs with the Release in `Traps::set`: a key that is there has its target.
            let key = cell.0.load(Acquire);
            if key == addr || key == 0 {
                return cell;
            }
            i = if i + 1 < self.cells.len() { i + 1 } else { 0 };
        }
    }
}

fn newest() -> Option<&'static Table> {
    // SAFETY: null or a leaked table.
    unsafe { NEWEST.load(Acquire).as_ref() }
}

/// The target of `addr`, if it is in any table.
fn target(addr: usize) -> Option<&'static AtomicUsize> {
    let tables = std::iter::successors(newest(), |table| table.older);
    tables.map(|table| table.cell(addr)).find(|cell| cell.0.load(Acquire) == addr).map(|cell| &cell.1)
}

/// The control thread's right to change the tables.
#[derive(Default)]
pub(super) struct Traps {
    /// How many keys are coming, beyond those that the newest table has room for.
    expected: usize,
}

impl Traps {
    /// Tells how many addresses are coming: they get one table.
    pub fn expect(&mut self, more: usize) {
        self.expected = more.saturating_sub(newest().map_or(0, |table| table.room.load(Relaxed)));
    }

    fn grow(&mut self) {
        const LEAST: usize = 192;
        let older = newest();
        // So that there are few, however many keys come one by one.
        let before = older.map_or(0, |table| table.total);
        let room = std::mem::take(&mut self.expected).max(before / 16).max(LEAST);
        let cells: Box<[_]> = (0..room + room / 5 + 1).map(|_| Default::default()).collect();
        let total = before + cells.len();
        // Release pairs with the Acquire in `newest`.
        NEWEST.store(Box::into_raw(Box::new(Table { cells, older, total, room: room.into() })), Release);
    }

    /// From now on an int3 at `addr` sends its thread to `target`.
    pub fn set(&mut self, addr: usize, target: usize) {
        if let Some(known) = self::target(addr) {
            return known.store(target, Release);
        }
        if newest().is_none_or(|table| table.room.load(Relaxed) == 0) {
            self.grow();
        }
        let Some(table) = newest() else { return };
        let cell = table.cell(addr);
        cell.1.store(target, Release);
        cell.0.store(addr, Release);
        table.room.fetch_sub(1, Relaxed);
    }

    /// The int3 at `addr` is gone; threads that executed it go back to the instruction.
    pub fn retire(&mut self, addr: usize) {
        if let Some(known) = target(addr) {
            known.store(known.load(Relaxed) | RETIRED, Release);
        }
    }

    /// The memory at `addr` is gone.
    pub fn forget(&mut self, addr: usize) {
        target(addr).into_iter().for_each(|known| known.store(0, Release));
    }
}

/// Where a thread goes on whose int3 ended at `rip`; `None` if the int3 is not ours.
pub(crate) fn trapped(rip: usize) -> Option<usize> {
    let addr = rip.wrapping_sub(1);
    let known = target(addr)?;
    // A removed int3 may be coming back this very moment: the target is published before the byte is written, and
    // retired after the byte is gone. A byte that is int3 while the target stays retired is somebody else's.
    const LOOKS: u32 = 1000;
    for _ in 0..LOOKS {
        let target = known.load(Acquire);
        if target & RETIRED == 0 {
            return (target != 0).then_some(target);
        }
        // SAFETY: the thread just executed the byte, and retired addresses are forgotten when unmapped.
        if unsafe { (addr as *const u8).read_volatile() } != 0xcc {
            return Some(addr);
        }
        std::hint::spin_loop();
    }
    None
}
