//! BLOOM_FILTER: a set that may say yes wrongly and never no wrongly. Bits are only ever set, one atomic OR each, so
//! there is nothing that a death could leave half done but an element that is not in yet.

use super::MapDef;
use super::hash::Key;
use super::ops::{Ops, Shm};
use crate::region::Region;
use crate::ring::LockId;
use crate::uapi::BPF_ANY;
use crate::{PAGE, neg};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use rustix::io::Errno;

/// Hash functions when map_extra names none.
const HASHES: u32 = 5;
/// The kernel stops growing the filter here.
const BITS_MAX: u64 = 1 << 32;

/// BPF_MAP_TYPE_BLOOM_FILTER.
pub struct Bloom {
    words: *const AtomicU64,
    mask: u64,
    hashes: u32,
    value_size: usize,
    seed: u64,
}

fn hashes(def: &MapDef) -> u32 {
    match def.map_extra as u32 & 15 {
        0 => HASHES,
        n => n,
    }
}

/// The kernel's size: entries * hashes / ln 2, with 7/5 for 1 / ln 2, rounded up to a power of two.
fn bits(def: &MapDef) -> u64 {
    let wanted = u64::from(def.max_entries) * u64::from(hashes(def)) / 5 * 7;
    wanted.clamp(64, BITS_MAX).next_power_of_two()
}

impl Bloom {
    /// The bits of a value: two independent hashes, combined (Kirsch and Mitzenmacher 2006).
    fn bits_of(&self, value: *const u8) -> impl Iterator<Item = (&AtomicU64, u64)> {
        // SAFETY: every caller passes a value of this map.
        let key = unsafe { Key::<0>::new(value, self.value_size) };
        let (first, step) = (key.hash(self.seed), key.hash(!self.seed) | 1);
        (0..u64::from(self.hashes)).map(move |i| {
            let bit = first.wrapping_add(i.wrapping_mul(step)) & self.mask;
            // SAFETY: masked to the number of bits, all inside the mapping; atomic.
            (unsafe { &*self.words.add((bit / 64) as usize) }, 1 << (bit % 64))
        })
    }

    fn insert(&self, value: *const u8, flags: u64) -> Result<(), Errno> {
        if flags != BPF_ANY {
            return Err(Errno::INVAL);
        }
        for (word, bit) in self.bits_of(value) {
            if word.load(Relaxed) & bit == 0 {
                word.fetch_or(bit, Release);
            }
        }
        Ok(())
    }

    fn contains(&self, value: *const u8) -> Result<(), Errno> {
        // Pairs with insert: who finds an element sees what was written before it was put in.
        let all = self.bits_of(value).all(|(word, bit)| word.load(Acquire) & bit != 0);
        if all { Ok(()) } else { Err(Errno::NOENT) }
    }
}

impl Ops for Bloom {
    fn file_len(def: &MapDef, _cpus: u32) -> Option<usize> {
        usize::try_from(bits(def) / 8).ok()?.checked_next_multiple_of(PAGE)?.checked_add(PAGE)
    }

    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno> {
        let region = Region::map(shm.fd, shm.len)?;
        let words = region.base().wrapping_add(PAGE).cast();
        let (mask, hashes, value_size) = (bits(shm.def) - 1, hashes(shm.def), shm.def.value_size as usize);
        Ok((region, Bloom { words, mask, hashes, value_size, seed: shm.seed }))
    }

    unsafe fn push(&self, value: *const u8, flags: u64, _me: LockId) -> i64 {
        self.insert(value, flags).map_or_else(neg, |()| 0)
    }

    unsafe fn peek(&self, value: *mut u8, _me: LockId) -> i64 {
        self.contains(value).map_or_else(neg, |()| 0)
    }

    fn sys_lookup(&self, _key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        self.contains(value.as_ptr())
    }

    fn sys_update(&self, _key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        self.insert(value.as_ptr(), flags)
    }

    fn sys_delete(&self, _key: &[u8]) -> Result<(), Errno> {
        Err(Errno::OPNOTSUPP)
    }

    fn sys_next_key(&self, _key: Option<&[u8]>, _out: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::OPNOTSUPP)
    }
}
