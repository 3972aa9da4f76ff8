//! LPM_TRIE: prefixes in a hash map, one probe per prefix length that was ever used, longest first.
//!
//! ```text
//! key    prefixlen u32 | data, bits behind the prefix cleared
//! value  the value, rounded up to 8 | data as it was given, which GET_NEXT_KEY returns
//! [header page: lengths in use, a bit each, at FREE_AT]
//! ```
//! The bit of a length is set before its first element is linked and never cleared: a death in between costs a probe.
//! A routing table has a few lengths; each probe is a hash lookup, so that everything a hash map promises holds here.

use super::MapDef;
use super::hash::{FREE_AT, Hash, Source};
use super::ops::{Ops, Shm};
use crate::region::Region;
use crate::uapi::{BPF_EXIST, BPF_MAP_TYPE_HASH};
use crate::{PAGE, copy, neg, round8};
use core::cmp::Ordering as Order;
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use rustix::io::Errno;

/// Bytes of data: the kernel's bounds.
pub const DATA_MIN: u32 = 1;
pub const DATA_MAX: u32 = 256;
/// struct bpf_lpm_trie_key begins with prefixlen.
pub const PREFIX: usize = 4;

const LENGTH_WORDS: usize = (DATA_MAX as usize * 8 + 1).div_ceil(64);
const _: () = assert!(FREE_AT.is_multiple_of(8) && FREE_AT + LENGTH_WORDS * 8 <= PAGE);

/// BPF_MAP_TYPE_LPM_TRIE.
pub struct LpmTrie {
    hash: Hash,
    lengths: *const AtomicU64,
    key_size: usize,
    value_size: usize,
}

const KEY_MAX: usize = PREFIX + DATA_MAX as usize;

/// A key in private memory, its data cleared from bit `prefix` on. Bytes are moved one by one and volatile: the compiler
/// would make calls of the C library's memcpy and memset of anything else.
struct Masked {
    bytes: [MaybeUninit<u8>; KEY_MAX],
    size: usize,
}

impl Masked {
    /// # Safety
    /// `key` is valid for `size` bytes, at most KEY_MAX.
    unsafe fn copy(key: *const u8, size: usize) -> Masked {
        let mut masked = Masked { bytes: [MaybeUninit::uninit(); KEY_MAX], size: size.min(KEY_MAX) };
        for at in 0..masked.size {
            // SAFETY: at < size.
            masked.set(at, unsafe { key.add(at).read_volatile() });
        }
        masked
    }

    fn set(&mut self, at: usize, byte: u8) {
        // SAFETY: an exclusive reference to one byte.
        unsafe { self.bytes[at].as_mut_ptr().write_volatile(byte) };
    }

    /// The key's `size` bytes.
    fn key(&self) -> *const u8 {
        self.bytes.as_ptr().cast()
    }

    fn prefix(&self) -> u32 {
        // SAFETY: `copy` wrote all bytes of the key, which begins with four for the prefix.
        unsafe { self.key().cast::<u32>().read_unaligned() }
    }

    /// Shortens the prefix to `len` bits, at most the present number.
    fn shorten(&mut self, len: u32) {
        len.to_ne_bytes().into_iter().enumerate().for_each(|(at, byte)| self.set(at, byte));
        let first = PREFIX + (len / 8) as usize;
        if first < self.size {
            // SAFETY: a byte of the key.
            let kept = unsafe { self.bytes[first].assume_init() } & !(0xff >> (len % 8)) as u8;
            self.set(first, kept);
            (first + 1..self.size).for_each(|at| self.set(at, 0));
        }
    }
}

fn index(key: &[u8]) -> u32 {
    super::ops::index(key)
}

/// The kernel's order of iteration: a prefix comes after those inside of it, siblings by their first different bit.
fn order(a: &[u8], b: &[u8]) -> Order {
    let (len_a, len_b) = (index(a), index(b));
    let common = len_a.min(len_b) as usize;
    let bit = |key: &[u8], at: usize| key[PREFIX + at / 8] >> (7 - at % 8) & 1;
    let differ = (0..common).find(|&at| bit(a, at) != bit(b, at));
    differ.map_or(len_b.cmp(&len_a), |at| bit(a, at).cmp(&bit(b, at)))
}

impl LpmTrie {
    fn max_prefix(&self) -> u32 {
        (self.key_size - PREFIX) as u32 * 8
    }

    fn length_word(&self, word: usize) -> &AtomicU64 {
        debug_assert!(word < LENGTH_WORDS);
        // SAFETY: inside the header page (asserted above); atomic.
        unsafe { &*self.lengths.add(word) }
    }

    /// The longest length in use that is at most `len`.
    fn length_below(&self, len: u32) -> Option<u32> {
        let mut word = len as usize / 64;
        let mut bits = self.length_word(word).load(Acquire) & u64::MAX >> (63 - len % 64); // pairs with use_length
        while bits == 0 {
            word = word.checked_sub(1)?;
            bits = self.length_word(word).load(Acquire);
        }
        Some(word as u32 * 64 + 63 - bits.leading_zeros())
    }

    fn use_length(&self, len: u32) {
        let (word, bit) = (self.length_word(len as usize / 64), 1 << (len % 64));
        if word.load(Relaxed) & bit == 0 {
            word.fetch_or(bit, Release);
        }
    }

    /// Calls `probe` with the masked key for each length in use, longest first, until it answers.
    ///
    /// # Safety
    /// `key` is valid for key_size bytes.
    unsafe fn longest<T>(&self, key: *const u8, mut probe: impl FnMut(*const u8) -> Option<T>) -> Option<T> {
        // SAFETY: the caller's promise.
        let mut masked = unsafe { Masked::copy(key, self.key_size) };
        let mut len = masked.prefix();
        if len > self.max_prefix() {
            return None;
        }
        loop {
            len = self.length_below(len)?;
            masked.shorten(len);
            if let Some(found) = probe(masked.key()) {
                return Some(found);
            }
            len = len.checked_sub(1)?;
        }
    }

    /// # Safety
    /// `key` is valid for key_size bytes.
    unsafe fn exact(&self, key: *const u8) -> Result<Masked, Errno> {
        // SAFETY: the caller's promise.
        let mut masked = unsafe { Masked::copy(key, self.key_size) };
        let len = masked.prefix();
        if len > self.max_prefix() {
            return Err(Errno::INVAL);
        }
        masked.shorten(len);
        Ok(masked)
    }

    /// # Safety
    /// `key` and `value` are valid for key_size and value_size bytes.
    unsafe fn write(&self, key: *const u8, value: *const u8, flags: u64) -> Result<(), Errno> {
        if flags > BPF_EXIST {
            return Err(Errno::INVAL);
        }
        // SAFETY: the caller's promise.
        let masked = unsafe { self.exact(key) }?;
        self.use_length(masked.prefix());
        // SAFETY: the data follows the prefix length in key.
        let data = unsafe { key.add(PREFIX) };
        let source = Source::Joined(value, self.value_size, data, round8(self.value_size));
        let done = self.hash.write(self.hash.key(masked.key()), source, flags);
        done.map_err(|e| if e == Errno::TOOBIG { Errno::NOSPC } else { e })
    }

    /// # Safety
    /// `key` is valid for key_size bytes.
    unsafe fn remove(&self, key: *const u8) -> Result<(), Errno> {
        // SAFETY: the caller's promise.
        let masked = unsafe { self.exact(key) }?;
        self.hash.remove(self.hash.key(masked.key()), |_| ())
    }

    /// The first element in order that comes after `key`, or the first of all.
    fn first_after(&self, key: Option<&[u8]>, out: &mut [u8]) -> Result<(), Errno> {
        let mut least: Option<Vec<u8>> = None;
        let mut candidate = vec![0; self.key_size];
        let data_at = round8(self.value_size);
        self.hash.scan(|stored, value| {
            // SAFETY: an element's key and the data behind its value.
            unsafe {
                copy::from_shared(candidate.as_mut_ptr(), stored, PREFIX);
                let data = &mut candidate[PREFIX..];
                copy::from_shared(data.as_mut_ptr(), value.add(data_at), data.len());
            }
            let valid = index(&candidate) <= self.max_prefix();
            let after = key.is_none_or(|key| order(&candidate, key) == Order::Greater);
            if valid && after && least.as_ref().is_none_or(|least| order(&candidate, least) == Order::Less) {
                least = Some(candidate.clone());
            }
        });
        out.copy_from_slice(&least.ok_or(Errno::NOENT)?);
        Ok(())
    }
}

/// The hash map underneath.
fn hash_def(def: &MapDef) -> Option<MapDef> {
    let data = def.key_size.checked_sub(PREFIX as u32)?;
    let value_size = u32::try_from(round8(def.value_size as usize)).ok()?.checked_add(data)?;
    Some(MapDef { map_type: BPF_MAP_TYPE_HASH, value_size, ..*def })
}

impl Ops for LpmTrie {
    fn file_len(def: &MapDef, cpus: u32) -> Option<usize> {
        Hash::file_len(&hash_def(def)?, cpus)
    }

    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno> {
        let (key_size, value_size) = (shm.def.key_size as usize, shm.def.value_size as usize);
        let def = hash_def(shm.def).ok_or(Errno::INVAL)?;
        let (region, hash) = Hash::open(Shm { def: &def, ..shm })?;
        let lengths = region.base().wrapping_add(FREE_AT).cast();
        Ok((region, LpmTrie { hash, lengths, key_size, value_size }))
    }

    fn set_owner(&self, owner: u16) {
        self.hash.set_owner(owner);
    }

    fn recover(&self, owner: u16) -> usize {
        self.hash.recover(owner)
    }

    unsafe fn lookup(&self, key: *const u8, cpu: u32) -> *mut u8 {
        // SAFETY: the caller's promise; the masked key is key_size bytes.
        let found = unsafe {
            self.longest(key, |key| Some(self.hash.lookup(key, cpu)).filter(|value| !value.is_null()))
        };
        found.unwrap_or(core::ptr::null_mut())
    }

    unsafe fn update(&self, key: *const u8, value: *const u8, flags: u64, _cpu: u32) -> i64 {
        // SAFETY: the caller's promise.
        unsafe { self.write(key, value, flags) }.map_or_else(neg, |()| 0)
    }

    unsafe fn delete(&self, key: *const u8) -> i64 {
        // SAFETY: the caller's promise.
        unsafe { self.remove(key) }.map_or_else(neg, |()| 0)
    }

    fn sys_lookup(&self, key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        // SAFETY: key is key_size bytes, value value_size.
        let found =
            unsafe { self.longest(key.as_ptr(), |key| self.hash.copy_value(key, value).then_some(())) };
        found.ok_or(Errno::NOENT)
    }

    fn sys_update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        // SAFETY: key is key_size bytes, value value_size.
        unsafe { self.write(key.as_ptr(), value.as_ptr(), flags) }
    }

    fn sys_delete(&self, key: &[u8]) -> Result<(), Errno> {
        // SAFETY: key is key_size bytes.
        unsafe { self.remove(key.as_ptr()) }
    }

    fn sys_next_key(&self, key: Option<&[u8]>, out: &mut [u8]) -> Result<(), Errno> {
        // The first for a key that is not there, as ever.
        let known = key.filter(|key| {
            // SAFETY: key is key_size bytes.
            let masked = unsafe { self.exact(key.as_ptr()) };
            masked.is_ok_and(|masked| self.hash.copy_value(masked.key(), &mut []))
        });
        self.first_after(known, out)
    }
}
