//! Operations as programs do them: the usual case by itself, the rest by what knows every case.

use bpftime_shm::Map;

macro_rules! usual {
    ($map:ident, $method:ident($($arg:expr),*)) => {
        $map.hash_table().and_then(|hash| match $map.def().key_size {
            4 => hash.$method::<4>($($arg),*),
            8 => hash.$method::<8>($($arg),*),
            _ => hash.$method::<0>($($arg),*),
        })
    };
}

/// # Safety
/// As [`Map::lookup`].
pub unsafe fn lookup(map: &Map, key: *const u8, cpu: u32) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { usual!(map, try_lookup(key, cpu)).unwrap_or_else(|| map.lookup(key, cpu)) }
}

/// # Safety
/// As [`Map::update`].
pub unsafe fn update(map: &Map, key: *const u8, value: *const u8, flags: u64, cpu: u32) -> i64 {
    // SAFETY: the caller's promise.
    unsafe {
        usual!(map, try_update(key, value, flags, cpu)).unwrap_or_else(|| map.update(key, value, flags, cpu))
    }
}

/// # Safety
/// As [`Map::delete`].
pub unsafe fn delete(map: &Map, key: *const u8) -> i64 {
    // SAFETY: the caller's promise.
    unsafe { usual!(map, try_delete(key)).unwrap_or_else(|| map.delete(key)) }
}
