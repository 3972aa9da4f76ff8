//! Map helpers 1-3.

use super::helper;
use crate::run::{MapHandle, Run};

/// The map behind a constant of the program.
///
/// # Safety
/// `handle` is what the linker put into the code: a handle that the program keeps alive.
#[inline]
pub unsafe fn map_of<'a>(handle: u64) -> &'a MapHandle {
    // SAFETY: see above.
    unsafe { &*(handle as *const MapHandle) }
}

helper! {
    /// 1 `map_lookup_elem(map, key)`: pointer to the value, or null.
    fn map_lookup_elem(run, map, key) {
        // SAFETY: the map is a linked constant, the key as long as the map wants.
        unsafe { map_of(map).map.lookup(key as *const u8, run.cpu()) as u64 }
    }
}

helper! {
    /// 2 `map_update_elem(map, key, value, flags)`: 0 or negative errno.
    fn map_update_elem(run, map, key, value, flags) {
        // SAFETY: as above, for key and value.
        unsafe { map_of(map).map.update(key as *const u8, value as *const u8, flags, run.cpu()) as u64 }
    }
}

helper! {
    /// 3 `map_delete_elem(map, key)`: 0 or negative errno.
    fn map_delete_elem(run, map, key) {
        // SAFETY: as above.
        unsafe { map_of(map).map.delete(key as *const u8) as u64 }
    }
}
