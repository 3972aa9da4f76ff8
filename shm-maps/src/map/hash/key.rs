//! Hashing and comparing keys.

use crate::copy;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

// Odd constants of wyhash: their bit patterns make one multiplication mix well.
pub(super) const MIX_A: u64 = 0xa076_1d64_78bd_642f;
pub(super) const MIX_B: u64 = 0xe703_7ed1_a0b4_28db;

/// Multiplies to 128 bits and folds: every input bit reaches the low half, where the bucket comes from.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ (wide >> 64) as u64
}

/// A key of the program's, in private memory. `N` is its length where the code is made for one length, else 0.
#[derive(Clone, Copy)]
pub struct Key<const N: usize = 0> {
    bytes: *const u8,
    len: usize,
}

impl<const N: usize> Key<N> {
    /// # Safety
    /// `bytes` is valid for `len` bytes as long as the Key is used. `len` is `N` unless that is 0.
    #[inline]
    pub unsafe fn new(bytes: *const u8, len: usize) -> Key<N> {
        debug_assert!(N == 0 || N == len);
        Key { bytes, len: if N == 0 { len } else { N } }
    }

    #[inline]
    pub fn bytes(&self) -> *const u8 {
        self.bytes
    }

    /// Its length: a constant where the code is made for one.
    #[inline]
    pub fn len(&self) -> usize {
        if N == 0 { self.len } else { N }
    }

    /// The hash of these bytes under the map's seed.
    #[inline]
    pub fn hash(&self, seed: u64) -> u64 {
        // SAFETY: `new`'s promise.
        unsafe {
            match self.len() {
                4 => fold(u64::from(self.bytes.cast::<u32>().read_unaligned()) ^ seed ^ MIX_A, MIX_B),
                8 => fold(self.bytes.cast::<u64>().read_unaligned() ^ seed ^ MIX_A, MIX_B),
                len => hash_long(self.bytes, len, seed),
            }
        }
    }

    /// The hash of the shared key at `node`, for who has no copy of it. The bytes may change meanwhile: then it is
    /// the hash of something else.
    ///
    /// # Safety
    /// `node` is 8-aligned and valid for `len` bytes.
    pub unsafe fn hash_at(node: *const u8, len: usize, seed: u64) -> u64 {
        let word = |at: usize| {
            // SAFETY: at + 8 is at most the length rounded up, to which key slots extend; atomic.
            unsafe { (*node.add(at).cast::<AtomicU64>()).load(Relaxed) }
        };
        let tail = len & !7;
        match len {
            4 => fold((word(0) as u32 as u64) ^ seed ^ MIX_A, MIX_B),
            8 => fold(word(0) ^ seed ^ MIX_A, MIX_B),
            _ => {
                let start = seed ^ MIX_A ^ len as u64;
                let state = (0..tail).step_by(8).fold(start, |state, at| fold(state ^ word(at), MIX_B));
                let rest = if tail == len { [0; 8] } else { word(tail).to_ne_bytes() };
                let last = rest[..len - tail].iter().fold(0u64, |last, byte| (last << 8) | u64::from(*byte));
                fold(state ^ last, MIX_A)
            }
        }
    }

    /// Whether the shared key at `node` has the same bytes.
    ///
    /// # Safety
    /// `node` is 8-aligned and valid for the key's length.
    #[inline]
    pub unsafe fn equals(&self, node: *const u8) -> bool {
        // SAFETY: the caller's promise and `new`'s.
        unsafe {
            match self.len() {
                4 => (*node.cast::<AtomicU32>()).load(Relaxed) == self.bytes.cast::<u32>().read_unaligned(),
                8 => (*node.cast::<AtomicU64>()).load(Relaxed) == self.bytes.cast::<u64>().read_unaligned(),
                len => equals_long(node, self.bytes, len),
            }
        }
    }
}

/// Out of line: its loops would cost the short keys their registers.
///
/// # Safety
/// Both are valid for `len` bytes, `node` is 8-aligned.
#[inline(never)]
unsafe fn equals_long(node: *const u8, bytes: *const u8, len: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe { copy::equal(node, bytes, len) }
}

/// # Safety
/// `bytes` is valid for `len` bytes.
#[inline(never)]
unsafe fn hash_long(bytes: *const u8, len: usize, seed: u64) -> u64 {
    let mut state = seed ^ MIX_A ^ len as u64;
    let tail = len & !7;
    for at in (0..tail).step_by(8) {
        // SAFETY: at + 8 <= len.
        state = fold(state ^ unsafe { bytes.add(at).cast::<u64>().read_unaligned() }, MIX_B);
    }
    let mut last = 0u64;
    for at in tail..len {
        // SAFETY: at < len.
        last = (last << 8) | u64::from(unsafe { *bytes.add(at) });
    }
    fold(state ^ last, MIX_A)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_shared_memory_hashes_as_the_private_one() {
        let words: Vec<u64> = (1..20u64).map(|i| i.wrapping_mul(MIX_A)).collect();
        let bytes = words.as_ptr().cast::<u8>();
        for len in 1..=128 {
            // SAFETY: 152 valid bytes, 8-aligned.
            let (private, shared) =
                unsafe { (Key::<0>::new(bytes, len).hash(77), Key::<0>::hash_at(bytes, len, 77)) };
            assert_eq!(private, shared, "{len} bytes");
        }
    }
}
