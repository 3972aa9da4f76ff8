//! HASH, PERCPU_HASH and their LRU forms: lock-free, so exact under preemption, signals, nested probes and SIGKILL.
//!
//! | operation | linearises at |
//! |---|---|
//! | lookup | reading the word that leads to the node |
//! | insert | CAS of the bucket head, against the word read before the walk that found no such key |
//! | replace | one CAS of old.next from (successor, live) to (new, marked): deletes old and links new |
//! | delete | CAS of node.next from live to marked |
//!
//! Whoever marks a node unlinks it (or makes sure that another did) and then gives it back. Deleted memory
//! is recycled at once, as in the kernel's preallocated maps: a value pointer that a program kept
//! past the delete may then show another element's value, and so may an in-place update of a per-CPU value
//! that is overtaken by a delete and an insert.

mod chain;
mod direct;
mod key;
mod lru;
mod nodes;
mod recover;
pub(super) mod word;
mod write;

use super::MapDef;
use super::ops::{Ops, Shm};
use crate::region::Region;
use crate::{copy, neg, round8};
use chain::{Step, Walk};
use core::ops::ControlFlow;
pub(super) use key::Key;
pub(super) use nodes::FREE_AT;
use nodes::{Layout, Nodes, is_lru, is_percpu};
use rustix::io::Errno;

/// Where the parts of a hash map are in this process, for code that looks elements up by itself. As [`Hash`] does it:
///
/// 1. The word at the head of a chain is `heads[fold(key ^ salt) & mask]`, where the key is its four or eight bytes and
///    `fold(x)` the exclusive or of the halves of `x` times [`HashParts::MULTIPLIER`].
/// 2. Its lower half is 0, the end, or the number of a node if that is at most `capacity`; anything else is forged.
/// 3. Node `n` begins at `nodes + n * stride` with the word that leads to the next; [`HashParts::DELETED`] says that the
///    node is not an element any more. The key is [`HashParts::KEY_AT`] bytes into it.
/// 4. What was read is believed if the head's word is the same afterwards.
/// 5. The value of a CPU is at `node_values + n * value_stride + cpu * cpu_stride`.
#[derive(Clone, Copy, Debug)]
pub struct HashParts {
    /// Words at the heads of the chains.
    pub heads: *const u64,
    /// Number of heads less one, a power of two less one.
    pub mask: u64,
    /// Mixed into keys.
    pub salt: u64,
    /// Where node 0 would be. Nodes are numbered from 1.
    pub nodes: *mut u8,
    /// Bytes from node to node.
    pub stride: usize,
    /// Number of nodes.
    pub capacity: u32,
    /// Where the value of node 0 would be, of CPU 0.
    pub node_values: *mut u8,
    /// Bytes from a node's value to the next node's.
    pub value_stride: usize,
    /// Bytes from one CPU's value to the next CPU's.
    pub cpu_stride: usize,
    /// CPUs that have values of their own; 1 if they share one.
    pub values: u32,
}

impl HashParts {
    /// What keys are multiplied by.
    pub const MULTIPLIER: u64 = key::MIX_B;
    /// In the first word of a node.
    pub const DELETED: u64 = word::MARK;
    /// From the start of a node to the key.
    pub const KEY_AT: usize = nodes::NODE_HEADER;
}

/// BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_PERCPU_HASH, BPF_MAP_TYPE_LRU_HASH and BPF_MAP_TYPE_LRU_PERCPU_HASH.
pub struct Hash {
    nodes: Nodes,
    percpu: bool,
    lru: bool,
}

/// Where an update takes the values from.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// The program's: one value, of the CPU it runs on.
    Cpu(*const u8, u32),
    /// The tool's: a value for each CPU (one, unless the map is per-CPU), each rounded up to eight bytes.
    All(*const u8),
    /// A value of `.1` bytes, zeros up to byte `.3`, and the rest of the slot from `.2`.
    Joined(*const u8, usize, *const u8, usize),
}

impl Hash {
    /// Where everything is.
    pub fn parts(&self) -> HashParts {
        let (nodes, layout) = (&self.nodes, &self.nodes.layout);
        HashParts {
            heads: nodes.head(0).as_ptr(),
            mask: nodes.mask,
            salt: nodes.seed ^ key::MIX_A,
            nodes: nodes.key(1).wrapping_sub(HashParts::KEY_AT + layout.node_stride),
            stride: layout.node_stride,
            capacity: layout.capacity(),
            node_values: nodes.value(1, 0).wrapping_sub(layout.value_stride),
            value_stride: layout.value_stride,
            cpu_stride: layout.cpu_stride,
            values: layout.values as u32,
        }
    }

    #[inline]
    pub(super) fn key(&self, bytes: *const u8) -> Key {
        // SAFETY: every caller passes a key of this map.
        unsafe { Key::new(bytes, self.nodes.layout.key_size) } // of any length
    }

    #[inline]
    fn find<const N: usize>(&self, bucket: u64, key: Key<N>) -> Walk<'_> {
        self.nodes.walk(bucket, |step| match step {
            Step::Restart => false,
            // SAFETY: the walk passes valid nodes only.
            Step::Node(node) => unsafe { key.equals(self.nodes.key(node)) },
        })
    }

    /// `key` is valid for key_size bytes, which are `N` unless that is 0.
    #[inline]
    fn lookup_of<const N: usize>(&self, key: *const u8, cpu: u32) -> *mut u8 {
        // SAFETY: above.
        let key: Key<N> = unsafe { Key::new(key, self.nodes.layout.key_size) };
        match (self.find(key.hash(self.nodes.seed), key), self.cpu_index(cpu)) {
            (Walk::At(spot), Some(cpu)) => {
                if self.lru {
                    self.nodes.touch(spot.node);
                }
                self.nodes.value(spot.node, cpu)
            }
            _ => core::ptr::null_mut(),
        }
    }

    /// As for lookup_of.
    #[inline]
    fn update_of<const N: usize>(&self, key: *const u8, source: Source, flags: u64) -> i64 {
        // SAFETY: above.
        let key: Key<N> = unsafe { Key::new(key, self.nodes.layout.key_size) };
        self.write(key, source, flags).map_or_else(neg, |()| 0)
    }

    /// As for lookup_of.
    #[inline]
    fn delete_of<const N: usize>(&self, key: *const u8) -> i64 {
        // SAFETY: above.
        let key: Key<N> = unsafe { Key::new(key, self.nodes.layout.key_size) };
        self.remove(key, |_| ()).map_or_else(neg, |()| 0)
    }

    /// Calls `read` with the key's node inside the walk, so that a node recycled meanwhile is not mistaken for the
    /// element: `read` may run again, the last time counts.
    #[inline]
    fn read_element(&self, key: Key, mut read: impl FnMut(u32)) -> bool {
        let walk = self.nodes.walk(key.hash(self.nodes.seed), |step| match step {
            Step::Restart => false,
            Step::Node(node) => {
                // SAFETY: the walk passes valid nodes only.
                let found = unsafe { key.equals(self.nodes.key(node)) };
                if found {
                    read(node);
                }
                found
            }
        });
        matches!(walk, Walk::At(_))
    }

    /// Copies `out.len()` bytes of the element's value; false when there is none.
    pub(super) fn copy_value(&self, key: *const u8, out: &mut [u8]) -> bool {
        self.read_element(self.key(key), |node| {
            // SAFETY: callers ask for at most value_size bytes.
            unsafe { copy::from_shared(out.as_mut_ptr(), self.nodes.value(node, 0), out.len()) }
        })
    }

    /// The first four bytes of the element's value.
    #[inline]
    pub(super) fn copy_word(&self, key: *const u8) -> Option<u32> {
        let mut word = [0; 4];
        self.copy_value(key, &mut word).then(|| u32::from_ne_bytes(word))
    }

    /// Number of buckets.
    pub(super) fn buckets(&self) -> u32 {
        self.nodes.layout.buckets as u32
    }

    /// The keys in a bucket, one after another.
    pub(super) fn bucket_keys(&self, bucket: u32) -> Vec<u8> {
        let len = self.nodes.layout.key_size;
        let mut keys = Vec::new();
        let _ = self.nodes.walk(bucket.into(), |step| {
            match step {
                Step::Restart => keys.clear(),
                Step::Node(node) => {
                    let at = keys.len();
                    keys.resize(at + len, 0);
                    self.read_key(node, &mut keys[at..]);
                }
            }
            false
        });
        keys
    }

    /// Calls `visit` with key and value of every element; both are only good during the call.
    pub(super) fn scan(&self, mut visit: impl FnMut(*const u8, *const u8)) {
        let mut budget = self.nodes.budget();
        for bucket in 0..=self.nodes.mask {
            let _ = self.nodes.walk_within(&mut budget, bucket, |step| {
                if let Step::Node(node) = step {
                    visit(self.nodes.key(node), self.nodes.value(node, 0));
                }
                false
            });
        }
    }

    #[inline]
    fn cpu_index(&self, cpu: u32) -> Option<usize> {
        match self.percpu {
            false => Some(0),
            true => ((cpu as usize) < self.nodes.layout.values).then_some(cpu as usize),
        }
    }

    /// Copies a node's values to the tool's buffer.
    fn read_values(&self, node: u32, out: &mut [u8]) {
        let size = self.nodes.layout.value_size;
        let stride = if self.percpu { round8(size) } else { size };
        for (cpu, chunk) in out.chunks_exact_mut(stride).enumerate().take(self.nodes.layout.values) {
            // SAFETY: a value's slot is round8(size) bytes.
            unsafe { copy::from_shared(chunk.as_mut_ptr(), self.nodes.value(node, cpu), stride) };
        }
    }

    fn read_key(&self, node: u32, out: &mut [u8]) {
        // SAFETY: out has the map's key size.
        unsafe { copy::from_shared(out.as_mut_ptr(), self.nodes.key(node), out.len()) };
    }

    /// The key after `key` in its bucket; None at the bucket's end, Some(false) if `key` is not there.
    fn next_in_bucket(&self, bucket: u64, key: Key, out: &mut [u8]) -> Option<bool> {
        let mut seen = false;
        let walk = self.nodes.walk(bucket, |step| match step {
            Step::Restart => {
                seen = false;
                false
            }
            Step::Node(node) if seen => {
                self.read_key(node, out);
                true
            }
            Step::Node(node) => {
                // SAFETY: the walk passes valid nodes only.
                seen = unsafe { key.equals(self.nodes.key(node)) };
                false
            }
        });
        match walk {
            Walk::At(_) => Some(true),
            _ if seen => None,
            _ => Some(false),
        }
    }

    /// The first key of the first bucket from `bucket` on that has one.
    fn first_key_from(&self, bucket: u64, out: &mut [u8]) -> Result<(), Errno> {
        let mut budget = self.nodes.budget();
        for bucket in bucket..=self.nodes.mask {
            let walk = self.nodes.walk_within(&mut budget, bucket, |step| match step {
                Step::Restart => false,
                Step::Node(node) => {
                    self.read_key(node, out);
                    true
                }
            });
            if matches!(walk, Walk::At(_)) {
                return Ok(());
            }
        }
        Err(Errno::NOENT)
    }

    /// The hash of a node's key.
    fn hash_of(&self, node: u32) -> u64 {
        self.key(self.nodes.key(node)).hash(self.nodes.seed)
    }

    /// The `ordinal`th element of a bucket.
    fn nth(&self, budget: &mut u64, bucket: u64, ordinal: u32) -> Option<u32> {
        let mut left = ordinal;
        let walk = self.nodes.walk_within(budget, bucket, |step| match step {
            Step::Restart => {
                left = ordinal;
                false
            }
            Step::Node(_) if left == 0 => true,
            Step::Node(_) => {
                left -= 1;
                false
            }
        });
        match walk {
            Walk::At(spot) => Some(spot.node),
            _ => None,
        }
    }
}

impl Ops for Hash {
    fn file_len(def: &MapDef, cpus: u32) -> Option<usize> {
        Some(Layout::of(def, cpus)?.file_len)
    }

    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno> {
        let layout = Layout::of(shm.def, shm.cpus).ok_or(Errno::INVAL)?;
        let region = Region::map(shm.fd, shm.len)?;
        let nodes = Nodes::new(region.base(), layout, &shm);
        Ok((region, Hash { nodes, percpu: is_percpu(shm.def), lru: is_lru(shm.def) }))
    }

    fn set_owner(&self, owner: u16) {
        self.nodes.set_owner(owner);
    }

    fn recover(&self, owner: u16) -> usize {
        self.recover_nodes(owner)
    }

    #[inline]
    unsafe fn lookup(&self, key: *const u8, cpu: u32) -> *mut u8 {
        match self.nodes.layout.key_size {
            4 => self.lookup_of::<4>(key, cpu),
            8 => self.lookup_of::<8>(key, cpu),
            _ => self.lookup_of::<0>(key, cpu),
        }
    }

    #[inline]
    unsafe fn update(&self, key: *const u8, value: *const u8, flags: u64, cpu: u32) -> i64 {
        if self.cpu_index(cpu).is_none() {
            return neg(Errno::INVAL);
        }
        let source = Source::Cpu(value, cpu);
        match self.nodes.layout.key_size {
            4 => self.update_of::<4>(key, source, flags),
            8 => self.update_of::<8>(key, source, flags),
            _ => self.update_of::<0>(key, source, flags),
        }
    }

    #[inline]
    unsafe fn delete(&self, key: *const u8) -> i64 {
        match self.nodes.layout.key_size {
            4 => self.delete_of::<4>(key),
            8 => self.delete_of::<8>(key),
            _ => self.delete_of::<0>(key),
        }
    }

    unsafe fn for_each(&self, cpu: u32, visit: &mut dyn FnMut(*const u8, *mut u8) -> ControlFlow<()>) -> i64 {
        let Some(cpu) = self.cpu_index(cpu) else { return neg(Errno::INVAL) };
        let mut calls = 0;
        // A chain of n elements is walked 2n times; chains are short. A cycle ends when this is spent.
        let mut budget = self.nodes.budget().saturating_mul(16);
        for bucket in 0..=self.nodes.mask {
            let mut ordinal = 0;
            // A callback may delete the element it got: then the next one has its ordinal.
            while let Some(node) = self.nth(&mut budget, bucket, ordinal) {
                calls += 1;
                let own = self.hash_of(node);
                if visit(self.nodes.key(node), self.nodes.value(node, cpu)).is_break() {
                    return calls;
                }
                // Or another node with its key, if the callback gave the element a new value.
                let now = self.nth(&mut budget, bucket, ordinal);
                let still_there = now.is_some_and(|now| now == node || self.hash_of(now) == own);
                ordinal += u32::from(still_there);
                if calls > i64::from(self.nodes.layout.capacity()) {
                    return calls; // a callback that inserts as fast as we walk
                }
            }
        }
        calls
    }

    fn sys_lookup(&self, key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        let found = self.read_element(self.key(key.as_ptr()), |node| self.read_values(node, value));
        if found { Ok(()) } else { Err(Errno::NOENT) }
    }

    fn sys_update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        self.write(self.key(key.as_ptr()), Source::All(value.as_ptr()), flags)
    }

    fn sys_delete(&self, key: &[u8]) -> Result<(), Errno> {
        self.remove(self.key(key.as_ptr()), |_| ())
    }

    fn sys_next_key(&self, key: Option<&[u8]>, out: &mut [u8]) -> Result<(), Errno> {
        let Some(key) = key else { return self.first_key_from(0, out) };
        let key = self.key(key.as_ptr());
        let bucket = key.hash(self.nodes.seed) & self.nodes.mask;
        match self.next_in_bucket(bucket, key, out) {
            Some(true) => Ok(()),
            Some(false) => self.first_key_from(0, out),
            None => self.first_key_from(bucket + 1, out),
        }
    }

    fn sys_lookup_and_delete(&self, key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        // Read after the mark: no update that came before the delete is missed.
        self.remove(self.key(key.as_ptr()), |node| self.read_values(node, value))
    }
}
