//! STACK_TRACE: stacks by the hash of their addresses.
//!
//! ```text
//! [header page][slots: buckets x (version u32 | node u32)][tried: a bit per node][nodes: (state u64, hash u32, frames u32, ips)]
//! ```
//! A stack's id is its slot. A stack is written into a free node and published by a CAS of the slot's word;
//! readers copy and look at the word again. Words carry versions, so an unchanged word means an unchanged node.

use super::MapDef;
use super::hash::word::{Kind, State};
use super::ops::{Ops, Shm, index};
use crate::region::Region;
use crate::uapi::{BPF_F_FAST_STACK_CMP, BPF_F_REUSE_STACKID};
use crate::{PAGE, copy, neg};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use core::sync::atomic::fence;
use core::sync::atomic::{AtomicU16, AtomicU64};
use rustix::io::Errno;

const NODE_HEADER: usize = 16;
/// The first word of a node's value.
const FIRST_WORD: usize = NODE_HEADER / 8;
/// A retry means that another stack was stored in the same slot meanwhile.
const ATTEMPTS: u32 = 1 << 10;

#[derive(Clone, Copy)]
struct Layout {
    buckets: usize,
    capacity: usize,
    stride: usize,
    tried_at: usize,
    nodes_at: usize,
    file_len: usize,
}

impl Layout {
    fn of(def: &MapDef, cpus: u32) -> Option<Layout> {
        let buckets = (def.max_entries as usize).checked_next_power_of_two()?;
        // One more per CPU and then some: nodes being filled while every slot is taken.
        let capacity = buckets + cpus as usize * 2 + 32;
        let stride = NODE_HEADER + def.value_size as usize;
        let tried_at = PAGE + buckets.checked_mul(8)?;
        let nodes_at = tried_at + capacity.div_ceil(64) * 8;
        let file_len = nodes_at.checked_add(stride.checked_mul(capacity)?)?.checked_next_multiple_of(PAGE)?;
        Some(Layout { buckets, capacity, stride, tried_at, nodes_at, file_len })
    }
}

/// The stacks.
pub struct StackTrace {
    base: *mut u8,
    layout: Layout,
    value_size: usize,
    seed: u64,
    owner: AtomicU16,
}

/// A stack: its words by their numbers.
struct Words<F: Fn(usize) -> u64> {
    len: usize,
    at: F,
}

/// Hash and number of frames: the second word of a node.
fn summary(hash: u32, frames: usize) -> u64 {
    u64::from(hash) | (frames as u64) << 32
}

impl StackTrace {
    fn slot(&self, id: u32) -> Option<&AtomicU64> {
        // SAFETY: id < buckets, inside the mapping; atomic.
        ((id as usize) < self.layout.buckets)
            .then(|| unsafe { &*self.base.add(PAGE).cast::<AtomicU64>().add(id as usize) })
    }

    /// The node a slot word names, if any (a hostile index is none).
    fn node(&self, word: u64) -> Option<*mut u8> {
        let index = word as u32 as usize;
        let valid = index != 0 && index <= self.layout.capacity;
        valid.then(|| self.base.wrapping_add(self.layout.nodes_at + (index - 1) * self.layout.stride))
    }

    /// Bits of nodes that somebody tried to claim. Set before, so that recovery need not look at others: that would
    /// allocate their memory.
    fn tried(&self, word: usize) -> &AtomicU64 {
        // SAFETY: callers keep word below the bitmap's length; atomic.
        unsafe { &*self.base.add(self.layout.tried_at).cast::<AtomicU64>().add(word) }
    }

    /// Word `at` of a node: 0 state, 1 summary, and then as many as a value has.
    fn word(&self, node: *mut u8, at: usize) -> &AtomicU64 {
        debug_assert!(at < FIRST_WORD + self.value_size / 8);
        // SAFETY: nodes are 8-aligned, begin with 16 bytes and hold a value, a multiple of eight bytes; atomic. Callers
        // keep `at` below its end.
        unsafe { &*node.cast::<AtomicU64>().add(at) }
    }

    /// bpf_get_stackid after the walk: stores `ips` (innermost first) and returns the id, or -EEXIST when
    /// another stack has the slot (without BPF_F_REUSE_STACKID), -EFAULT for no frames, -ENOMEM.
    pub fn stack_insert(&self, ips: &[u64], flags: u64) -> i64 {
        self.insert_words(Words { len: ips.len(), at: |n| ips[n] }, flags)
    }

    /// As [`StackTrace::stack_insert`], of frames that are more than an address: `frames` of them, each of which
    /// `frame` makes anew whenever it is looked at, so that nobody needs room for all.
    pub fn stack_insert_frames<const N: usize>(
        &self,
        frames: usize,
        frame: impl Fn(usize) -> [u64; N],
        flags: u64,
    ) -> i64 {
        self.insert_words(Words { len: frames * N, at: |n| frame(n / N)[n % N] }, flags)
    }

    #[inline]
    fn insert_words(&self, mut ips: Words<impl Fn(usize) -> u64>, flags: u64) -> i64 {
        ips.len = ips.len.min(self.value_size / 8);
        if ips.len == 0 {
            return neg(Errno::FAULT);
        }
        let hash = self.hash(&ips);
        let id = hash & (self.layout.buckets as u32 - 1);
        let Some(slot) = self.slot(id) else { return neg(Errno::FAULT) };
        let mut held = None;
        let result = self.insert_at(slot, hash, &ips, flags, &mut held);
        if let Some(index) = held {
            self.release(index);
        }
        result.map_or_else(neg, |()| i64::from(id))
    }

    fn insert_at(
        &self,
        slot: &AtomicU64,
        hash: u32,
        ips: &Words<impl Fn(usize) -> u64>,
        flags: u64,
        held: &mut Option<u32>,
    ) -> Result<(), Errno> {
        for _ in 0..ATTEMPTS {
            let word = slot.load(Acquire); // pairs with the CAS below
            if let Some(node) = self.node(word) {
                let same = self.is_same(node, hash, ips, flags);
                fence(Acquire); // the node's bytes were read before the word is looked at again
                if slot.load(Relaxed) != word {
                    continue;
                }
                if same {
                    return Ok(());
                }
                if flags & BPF_F_REUSE_STACKID == 0 {
                    return Err(Errno::EXIST);
                }
            }
            let index = match *held {
                Some(index) => index,
                None => self.claim(hash, ips).ok_or(Errno::NOMEM)?,
            };
            *held = Some(index);
            // Release publishes the node's frames. A death before it leaves a claimed node for recover.
            if slot.compare_exchange(word, successor(word, index), AcqRel, Relaxed).is_ok() {
                *held = self.node(word).map(|_| word as u32); // the replaced node is ours to free
                return Ok(());
            }
        }
        Err(Errno::BUSY)
    }

    fn is_same(&self, node: *mut u8, hash: u32, ips: &Words<impl Fn(usize) -> u64>, flags: u64) -> bool {
        let found = self.word(node, 1).load(Relaxed);
        if flags & BPF_F_FAST_STACK_CMP != 0 {
            return found as u32 == hash;
        }
        found == summary(hash, ips.len)
            && (0..ips.len).all(|n| self.word(node, FIRST_WORD + n).load(Relaxed) == (ips.at)(n))
    }

    fn hash(&self, ips: &Words<impl Fn(usize) -> u64>) -> u32 {
        let mut state = self.seed ^ ips.len as u64;
        for ip in (0..ips.len).map(&ips.at) {
            let wide = u128::from(state ^ ip) * u128::from(0xe703_7ed1_a0b4_28dbu64);
            state = wide as u64 ^ (wide >> 64) as u64;
        }
        state as u32 ^ (state >> 32) as u32
    }

    /// Takes a free node near `hash` and fills it.
    fn claim(&self, hash: u32, ips: &Words<impl Fn(usize) -> u64>) -> Option<u32> {
        let capacity = self.layout.capacity;
        for step in 0..capacity {
            let index = ((hash as usize + step) % capacity + 1) as u32;
            let node = self.node(u64::from(index))?;
            let state = State(self.word(node, 0).load(Acquire)); // pairs with release
            if state.kind() != Kind::Main {
                continue;
            }
            let (tried, bit) = (self.tried((index as usize - 1) / 64), 1 << ((index - 1) % 64));
            if tried.load(Relaxed) & bit == 0 {
                tried.fetch_or(bit, Relaxed);
            }
            let mine = state.next(Kind::FromMain, self.owner.load(Relaxed));
            if self.word(node, 0).compare_exchange(state.0, mine.0, AcqRel, Relaxed).is_err() {
                continue;
            }
            self.word(node, 1).store(summary(hash, ips.len), Relaxed);
            (0..ips.len).for_each(|n| self.word(node, FIRST_WORD + n).store((ips.at)(n), Relaxed));
            return Some(index);
        }
        None
    }

    fn release(&self, index: u32) {
        let Some(node) = self.node(u64::from(index)) else { return };
        let state = State(self.word(node, 0).load(Relaxed));
        let free = state.next(Kind::Main, 0);
        let _ = self.word(node, 0).compare_exchange(state.0, free.0, AcqRel, Relaxed); // pairs with claim
    }

    /// Copies the stack of slot `id`, padded with zeros; returns the slot's word it belongs to.
    fn read(&self, id: u32, value: &mut [u8]) -> Result<u64, Errno> {
        let slot = self.slot(id).ok_or(Errno::NOENT)?;
        for _ in 0..ATTEMPTS {
            let word = slot.load(Acquire); // pairs with insert_at's CAS
            let node = self.node(word).ok_or(Errno::NOENT)?;
            let frames = (self.word(node, 1).load(Relaxed) >> 32) as usize;
            let len = value.len().min(frames.saturating_mul(8));
            // SAFETY: len is at most value_size.
            unsafe { copy::from_shared(value.as_mut_ptr(), node.add(NODE_HEADER), len) };
            value[len..].fill(0);
            fence(Acquire); // as in insert_at
            if slot.load(Relaxed) == word {
                return Ok(word);
            }
        }
        Err(Errno::BUSY)
    }

    fn empty(&self, id: u32, word: u64) -> bool {
        let Some(slot) = self.slot(id) else { return false };
        let emptied = slot.compare_exchange(word, successor(word, 0), AcqRel, Relaxed).is_ok();
        if emptied {
            self.release(word as u32);
        }
        emptied
    }
}

/// The next version of a slot's word, naming `index`.
fn successor(word: u64, index: u32) -> u64 {
    ((word >> 32).wrapping_add(1) << 32) | u64::from(index)
}

impl Ops for StackTrace {
    fn file_len(def: &MapDef, cpus: u32) -> Option<usize> {
        Some(Layout::of(def, cpus)?.file_len)
    }

    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno> {
        let layout = Layout::of(shm.def, shm.cpus).ok_or(Errno::INVAL)?;
        let region = Region::map(shm.fd, shm.len)?;
        let (base, value_size) = (region.base(), shm.def.value_size as usize);
        Ok((region, StackTrace { base, layout, value_size, seed: shm.seed, owner: AtomicU16::new(0) }))
    }

    fn set_owner(&self, owner: u16) {
        self.owner.store(owner, Relaxed);
    }

    /// Frees nodes that `owner` claimed and that no slot names.
    fn recover(&self, owner: u16) -> usize {
        let words = 0..self.layout.capacity.div_ceil(64);
        let indices = words.flat_map(|word| {
            let tried = self.tried(word).load(Relaxed);
            (0..64u64).filter(move |bit| tried >> bit & 1 != 0).map(move |bit| word as u64 * 64 + bit + 1)
        });
        indices
            .filter(|&index| self.node(index).is_some_and(|node| self.recover_node(node, index, owner)))
            .count()
    }

    fn sys_lookup(&self, key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        self.read(index(key), value).map(|_| ())
    }

    fn sys_update(&self, _key: &[u8], _value: &[u8], _flags: u64) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }

    fn sys_delete(&self, key: &[u8]) -> Result<(), Errno> {
        let slot = self.slot(index(key)).ok_or(Errno::TOOBIG)?;
        for _ in 0..ATTEMPTS {
            let word = slot.load(Acquire); // pairs with insert_at's CAS
            if self.node(word).is_none() {
                return Err(Errno::NOENT);
            }
            if self.empty(index(key), word) {
                return Ok(());
            }
        }
        Err(Errno::BUSY)
    }

    fn sys_next_key(&self, key: Option<&[u8]>, out: &mut [u8]) -> Result<(), Errno> {
        let taken = |id: u32| self.slot(id).is_some_and(|slot| self.node(slot.load(Acquire)).is_some());
        let first = match key.map(index) {
            Some(id) if taken(id) => id + 1,
            _ => 0,
        };
        let next = (first..self.layout.buckets as u32).find(|&id| taken(id)).ok_or(Errno::NOENT)?;
        out.copy_from_slice(&next.to_ne_bytes());
        Ok(())
    }

    fn sys_lookup_and_delete(&self, key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        for _ in 0..ATTEMPTS {
            let word = self.read(index(key), value)?;
            if self.empty(index(key), word) {
                return Ok(());
            }
        }
        Err(Errno::BUSY)
    }
}

impl StackTrace {
    fn recover_node(&self, node: *mut u8, index: u64, owner: u16) -> bool {
        let state = State(self.word(node, 0).load(Acquire)); // pairs with claim's CAS
        if state.kind() != Kind::FromMain || state.owner() != owner {
            return false;
        }
        let id = self.word(node, 1).load(Relaxed) as u32 & (self.layout.buckets as u32 - 1);
        let named = self.slot(id).is_some_and(|slot| slot.load(Acquire) as u32 as u64 == index);
        let free = state.next(Kind::Main, 0);
        !named && self.word(node, 0).compare_exchange(state.0, free.0, AcqRel, Relaxed).is_ok()
    }
}
