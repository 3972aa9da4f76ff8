//! Which int3 are ours and where a thread that hit one goes on. Written by the control thread, read by the SIGTRAP
//! handler of any thread at any time.

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::*};

/// Set in a target whose int3 has been removed. A thread that executed it just before gets here late.
const RETIRED: usize = 1 << 63;

struct Table {
    /// Open addressing, a power of two, at most three quarters full. Keys are never removed.
    cells: Box<[(AtomicUsize, AtomicUsize)]>,
}

static TABLE: AtomicPtr<Table> = AtomicPtr::new(std::ptr::null_mut());

impl Table {
    fn with_room(n: usize) -> Self {
        let cells = (0..(n + n / 3 + 1).next_power_of_two().max(256)).map(|_| Default::default()).collect();
        Self { cells }
    }

    /// The cell of `addr`, or the empty one where it belongs.
    fn cell(&self, addr: usize) -> &(AtomicUsize, AtomicUsize) {
        let mask = self.cells.len() - 1;
        let mut i = addr.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        loop {
            let cell = &self.cells[i & mask];
            // Acquire pairs with the Release in `set`: a key that is there has its target.
            let key = cell.0.load(Acquire);
            if key == addr || key == 0 {
                return cell;
            }
            i += 1;
        }
    }

    fn set(&self, addr: usize, target: usize) {
        let cell = self.cell(addr);
        cell.1.store(target, Release);
        cell.0.store(addr, Release);
    }
}

fn table() -> Option<&'static Table> {
    // SAFETY: null or a leaked table.
    unsafe { TABLE.load(Acquire).as_ref() }
}

/// What the control thread keeps besides: how full the table is.
#[derive(Default)]
pub(super) struct Traps {
    keys: usize,
}

impl Traps {
    /// Makes room for `more` addresses at once: each table that is outgrown stays where it is.
    pub fn reserve(&mut self, more: usize) {
        let old = table();
        let keys = self.keys + more;
        if old.is_some_and(|t| keys + keys / 3 < t.cells.len()) {
            return;
        }
        let new = Table::with_room(keys.max(self.keys * 2));
        for (key, value) in old.iter().flat_map(|t| t.cells.iter()) {
            if key.load(Relaxed) != 0 {
                new.set(key.load(Relaxed), value.load(Relaxed));
            }
        }
        // A handler may still be reading the old table: it is not freed. All of them together are no larger than this
        // one. Release pairs with the Acquire in `table`.
        TABLE.store(Box::into_raw(Box::new(new)), Release);
    }

    /// From now on an int3 at `addr` sends its thread to `target`.
    pub fn set(&mut self, addr: usize, target: usize) {
        self.reserve(1);
        let Some(table) = table() else { return };
        if table.cell(addr).0.load(Relaxed) == 0 {
            self.keys += 1;
        }
        table.set(addr, target);
    }

    /// The int3 at `addr` is gone; threads that executed it go back to the instruction.
    pub fn retire(&mut self, addr: usize) {
        if let Some(table) = table() {
            let cell = table.cell(addr);
            if cell.0.load(Relaxed) == addr {
                cell.1.store(cell.1.load(Relaxed) | RETIRED, Release);
            }
        }
    }

    /// The memory at `addr` is gone.
    pub fn forget(&mut self, addr: usize) {
        if let Some(table) = table()
            && table.cell(addr).0.load(Relaxed) == addr
        {
            table.cell(addr).1.store(0, Release);
        }
    }
}

/// Where a thread goes on whose int3 ended at `rip`; `None` if the int3 is not ours.
pub(crate) fn trapped(rip: usize) -> Option<usize> {
    let addr = rip.wrapping_sub(1);
    let cell = table()?.cell(addr);
    if cell.0.load(Acquire) != addr {
        return None;
    }
    // A removed int3 may be coming back this very moment: the target is published before the byte is written, and
    // retired after the byte is gone. A byte that is int3 while the target stays retired is somebody else's.
    const LOOKS: u32 = 1000;
    for _ in 0..LOOKS {
        let target = cell.1.load(Acquire);
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
