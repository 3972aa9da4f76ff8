//! Node memory: where everything is, who owns a node, how one is claimed and given back.
//!
//! ```text
//! [header page: cursors of up to CURSORS CPUs in the kind area; LRU: hand and full, a cache line each]
//! [stash: extra x (u32, padding)]        node indices that probably are in the extra pool, a cache line each
//! [used: one byte per node]              1 = do not bother to try this node
//! [touched: bitmap, LRU only]            1 = looked up since the hand passed
//! [heads: buckets u64]
//! [nodes: capacity x (next u64, state u64, key, value)]   node i at (i - 1) * stride
//! [values, if per CPU: CPU 0: capacity x value | padding][CPU 1: ...]
//! ```
//! Per-CPU values are grouped by CPU and padded, so that CPUs share no cache line when they count under one key.
//!
//! `state` is the truth, changed by CAS, so a claim is one instruction and names its owner. Stash and used bytes are
//! hints; a byte and not a bit, since then whoever has the node may write it without a locked instruction. They are
//! looked at eight at a time. All-zero means: every node free, the last `extra` of them in the extra pool.

use super::word::{Kind, Link, State};
use crate::map::header::KIND_AREA;
use crate::map::{MapDef, ops::Shm, table};
use crate::uapi::{BPF_MAP_TYPE_LRU_HASH, BPF_MAP_TYPE_LRU_PERCPU_HASH, BPF_MAP_TYPE_PERCPU_HASH};
use crate::{LINES, PAGE, round8};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};
use std::collections::BTreeSet;

const CURSORS: usize = 256;
/// CPUs write entries of their own at each update.
const STASH_STRIDE: usize = 64;
pub const NODE_HEADER: usize = 16;
const HAND_AT: usize = KIND_AREA + CURSORS * 4;
const FULL_AT: usize = HAND_AT + 64;
/// Where a kind that is built on these nodes may keep words of its own.
pub const FREE_AT: usize = FULL_AT + 64;
const _: () = assert!(FREE_AT <= PAGE);
/// The bytes of nodes that are looked at together, and what of them says that a node is used.
const GROUP: usize = 8;
const GROUP_USED: u64 = 0x0101_0101_0101_0101;
/// Groups with a free node, from a CPU's cursor on, in which recovery looks for a claim without its hint.
const DISTURBED_GROUPS: usize = 8;

/// Sizes and offsets, from private attributes only.
#[derive(Clone, Copy)]
pub struct Layout {
    pub buckets: usize,
    pub max_entries: u32,
    pub extra: u32,
    pub key_size: usize,
    pub value_size: usize,
    /// CPUs whose values a node holds: 1 unless per-CPU.
    pub values: usize,
    pub node_stride: usize,
    stash_at: usize,
    used_at: usize,
    touched_at: usize,
    heads_at: usize,
    nodes_at: usize,
    /// Values of CPU 0, of node 1 first: inside the nodes, unless per-CPU.
    values_at: usize,
    /// Bytes from a node's value to the next node's.
    pub value_stride: usize,
    /// Bytes from one CPU's values to the next CPU's.
    pub cpu_stride: usize,
    pub file_len: usize,
}

impl Layout {
    pub fn of(def: &MapDef, cpus: u32) -> Option<Layout> {
        let values = if is_percpu(def) { cpus as usize } else { 1 };
        let extra = cpus.checked_mul(2)?.checked_add(32)?;
        let capacity = def.max_entries.checked_add(extra)? as usize;
        // At most half full: four of five elements are the first of their chain.
        let buckets = (def.max_entries as usize).checked_next_power_of_two()?.checked_mul(2)?;
        let (value_at, value_len) =
            (NODE_HEADER + round8(def.key_size as usize), round8(def.value_size as usize));
        let node_stride = if is_percpu(def) { value_at } else { value_at.checked_add(value_len)? };
        let stash_at = PAGE;
        let used_at = stash_at + extra as usize * STASH_STRIDE;
        let touched_at = used_at + capacity.next_multiple_of(GROUP);
        let heads_at = touched_at + if is_lru(def) { capacity.div_ceil(64) * 8 } else { 0 };
        // Nodes begin on a cache line.
        let nodes_at = heads_at.checked_add(buckets.checked_mul(8)?)?.next_multiple_of(64);
        let nodes_end = nodes_at.checked_add(node_stride.checked_mul(capacity)?)?;
        let (values_at, value_stride, cpu_stride, end) = if is_percpu(def) {
            let values_at = nodes_end.checked_next_multiple_of(LINES)?;
            let cpu_stride = value_len.checked_mul(capacity)?.checked_next_multiple_of(LINES)?;
            (values_at, value_len, cpu_stride, values_at.checked_add(cpu_stride.checked_mul(values)?)?)
        } else {
            (nodes_at + value_at, node_stride, 0, nodes_end)
        };
        let file_len = end.checked_next_multiple_of(PAGE)?;
        let (key_size, value_size) = (def.key_size as usize, def.value_size as usize);
        let max_entries = def.max_entries;
        #[rustfmt::skip]
        let layout = Layout { buckets, max_entries, extra, key_size, value_size, values, node_stride,
            stash_at, used_at, touched_at, heads_at, nodes_at, values_at, value_stride, cpu_stride, file_len };
        Some(layout)
    }

    #[inline]
    pub fn capacity(&self) -> u32 {
        self.max_entries + self.extra
    }
}

pub fn is_percpu(def: &MapDef) -> bool {
    debug_assert!(table::row(def.map_type).is_some());
    matches!(def.map_type, BPF_MAP_TYPE_PERCPU_HASH | BPF_MAP_TYPE_LRU_PERCPU_HASH)
}

pub fn is_lru(def: &MapDef) -> bool {
    matches!(def.map_type, BPF_MAP_TYPE_LRU_HASH | BPF_MAP_TYPE_LRU_PERCPU_HASH)
}

/// A claimed node from the extra pool and the stash entry it came from.
#[derive(Clone, Copy)]
pub struct Borrowed {
    pub node: u32,
    /// None: found by a scan, in no entry.
    entry: Option<u32>,
}

/// The mapped nodes.
pub struct Nodes {
    base: *mut u8,
    nodes: *mut u8,
    /// The value of node 1 of CPU 0.
    values: *mut u8,
    heads: *const AtomicU64,
    pub layout: Layout,
    pub mask: u64,
    pub seed: u64,
    /// Elsewhere, so that the compiler sees that nothing here ever changes.
    owner: Box<AtomicU16>,
}

impl Nodes {
    pub fn new(base: *mut u8, layout: Layout, shm: &Shm<'_>) -> Nodes {
        Nodes {
            base,
            nodes: base.wrapping_add(layout.nodes_at),
            values: base.wrapping_add(layout.values_at),
            heads: base.wrapping_add(layout.heads_at).cast(),
            layout,
            mask: layout.buckets as u64 - 1,
            seed: shm.seed,
            owner: Box::new(AtomicU16::new(0)),
        }
    }

    pub fn set_owner(&self, owner: u16) {
        self.owner.store(owner, Relaxed);
    }

    #[inline]
    pub fn owner(&self) -> u16 {
        self.owner.load(Relaxed)
    }

    #[inline]
    pub fn head(&self, bucket: u64) -> &AtomicU64 {
        // SAFETY: masked to the number of buckets, all inside the mapping; atomic.
        unsafe { &*self.heads.add((bucket & self.mask) as usize) }
    }

    /// Whether an index read from shared memory names a node.
    #[inline]
    pub fn is_node(&self, index: u32) -> bool {
        index != 0 && index <= self.layout.capacity()
    }

    #[inline]
    fn node(&self, index: u32) -> *mut u8 {
        debug_assert!(self.is_node(index));
        self.nodes.wrapping_add((index as usize - 1) * self.layout.node_stride)
    }

    /// `index` must satisfy `is_node`.
    #[inline]
    pub fn next(&self, index: u32) -> &AtomicU64 {
        // SAFETY: a node inside the mapping; node strides are multiples of eight; atomic.
        unsafe { &*self.node(index).cast() }
    }

    #[inline]
    fn state_word(&self, index: u32) -> &AtomicU64 {
        // SAFETY: as in next; the header is 16 bytes.
        unsafe { &*self.node(index).add(8).cast() }
    }

    #[inline]
    pub fn key(&self, index: u32) -> *mut u8 {
        self.node(index).wrapping_add(NODE_HEADER)
    }

    /// The value of `cpu`, which is below `layout.values`.
    #[inline]
    pub fn value(&self, index: u32, cpu: usize) -> *mut u8 {
        debug_assert!(self.is_node(index) && cpu < self.layout.values);
        let (node, cpu) = ((index as usize - 1) * self.layout.value_stride, cpu * self.layout.cpu_stride);
        self.values.wrapping_add(node + cpu)
    }

    /// The raw state word and what it means; a zero word's meaning depends on the index.
    #[inline]
    pub fn state(&self, index: u32) -> (u64, State) {
        let raw = self.state_word(index).load(Acquire); // pairs with release: the former life is over
        let virgin_extra = raw == 0 && index > self.layout.max_entries;
        (raw, State(if virgin_extra { Kind::Extra as u64 } else { raw }))
    }

    /// Takes `index` if it is free in the pool `from`.
    #[inline]
    pub fn try_claim(&self, index: u32, from: Kind) -> bool {
        self.claimed(index, from).is_some()
    }

    /// As try_claim; the node's new state.
    #[inline]
    fn claimed(&self, index: u32, from: Kind) -> Option<State> {
        let (raw, state) = self.state(index);
        let to = if from == Kind::Main { Kind::FromMain } else { Kind::FromExtra };
        let claimed = state.next(to, self.owner());
        let word = self.state_word(index);
        let won = state.kind() == from && word.compare_exchange(raw, claimed.0, AcqRel, Relaxed).is_ok();
        won.then_some(claimed)
    }

    /// Groups of nodes whose used bytes are looked at together.
    #[inline]
    fn groups(&self) -> usize {
        (self.layout.capacity() as usize).div_ceil(GROUP)
    }

    /// The used bytes of a group. Read whole, written one by one: x86 does that without tearing.
    #[inline]
    fn used(&self, group: usize) -> &AtomicU64 {
        debug_assert!(group < self.groups());
        // SAFETY: callers keep group below their number, for which the layout has room; 8-aligned; atomic.
        unsafe { &*self.base.add(self.layout.used_at).cast::<AtomicU64>().add(group) }
    }

    #[inline]
    fn used_byte(&self, index: u32) -> &AtomicU8 {
        debug_assert!(self.is_node(index));
        // SAFETY: a byte for each node; atomic.
        unsafe { &*self.base.add(self.layout.used_at + index as usize - 1).cast() }
    }

    /// Marks a claimed node as not worth trying.
    #[inline]
    pub fn set_used(&self, index: u32) {
        self.used_byte(index).store(1, Relaxed);
    }

    #[inline]
    fn touched(&self, index: u32) -> (&AtomicU64, u64) {
        debug_assert!(self.is_node(index));
        let at = index as usize - 1;
        // SAFETY: index is a node, so the word is in the bitmap, which only LRU maps have and ask for; atomic.
        let word = unsafe { &*self.base.add(self.layout.touched_at).cast::<AtomicU64>().add(at / 64) };
        (word, 1 << (at % 64))
    }

    /// LRU: the element was used. A plain load when it was since the hand passed, so that readers share the line.
    #[inline]
    pub fn touch(&self, index: u32) {
        let (word, bit) = self.touched(index);
        if word.load(Relaxed) & bit == 0 {
            word.fetch_or(bit, Relaxed);
        }
    }

    /// LRU: whether the element was used since the hand passed; it has not been from now on.
    pub fn untouch(&self, index: u32) -> bool {
        let (word, bit) = self.touched(index);
        word.load(Relaxed) & bit != 0 && word.fetch_and(!bit, Relaxed) & bit != 0
    }

    /// LRU: the node that the hand points to; it moves on.
    pub fn advance_hand(&self) -> u32 {
        self.kind_word(HAND_AT).fetch_add(1, Relaxed) % self.layout.capacity() + 1
    }

    /// LRU: a hint that no node is free, so that a full map need not be searched for one each time.
    pub fn seems_full(&self) -> bool {
        self.kind_word(FULL_AT).load(Relaxed) != 0
    }

    pub fn set_full(&self, full: bool) {
        if self.seems_full() != full {
            self.kind_word(FULL_AT).store(full.into(), Relaxed);
        }
    }

    fn kind_word(&self, at: usize) -> &AtomicU32 {
        debug_assert!(at + 4 <= PAGE);
        // SAFETY: inside the header page (asserted above); atomic.
        unsafe { &*self.base.add(at).cast() }
    }

    #[inline]
    fn cursor(&self, cpu: u32) -> &AtomicU32 {
        // SAFETY: inside the header page (asserted above); atomic.
        unsafe { &*self.base.add(KIND_AREA).cast::<AtomicU32>().add(cpu as usize % CURSORS) }
    }

    #[inline]
    fn stash(&self, entry: u32) -> &AtomicU32 {
        debug_assert!(entry < self.layout.extra);
        // SAFETY: callers stay below the number of entries; atomic.
        unsafe { &*self.base.add(self.layout.stash_at + entry as usize * STASH_STRIDE).cast() }
    }

    /// Claims a node for a new element. `None` means that max_entries elements exist (or are being made).
    /// The cursor stays with the group of the last claim, whose nodes are in this CPU's cache.
    #[inline]
    pub fn claim_main(&self, cpu: u32) -> Option<u32> {
        self.claim_near(cpu).map(|(node, _)| node).or_else(|| self.claim_elsewhere(cpu))
    }

    /// A free node in the group of this CPU's last claim, and its state.
    #[inline]
    pub fn claim_near(&self, cpu: u32) -> Option<(u32, State)> {
        let group = (self.cursor(cpu).load(Relaxed) as usize).wrapping_sub(1); // 0: "never used"
        if group < self.groups() { self.claim_of(group) } else { None }
    }

    /// Claims a free node of a group.
    #[inline]
    fn claim_of(&self, group: usize) -> Option<(u32, State)> {
        let mut free = !self.used(group).load(Relaxed) & GROUP_USED;
        while free != 0 {
            let index = (group * GROUP) as u32 + free.trailing_zeros() / 8 + 1;
            if !self.is_node(index) {
                break;
            }
            if let Some(state) = self.claimed(index, Kind::Main) {
                // Before the node is linked, hence before anyone can free it and clear the byte.
                self.set_used(index);
                return Some((index, state));
            }
            free &= free - 1;
        }
        None
    }

    #[cold]
    fn claim_elsewhere(&self, cpu: u32) -> Option<u32> {
        let groups = self.groups();
        let start = self.first_group(cpu, groups);
        let mut each = (start..groups).chain(0..start);
        let (group, (node, _)) = each.find_map(|group| Some((group, self.claim_of(group)?)))?;
        self.cursor(cpu).store(group as u32 + 1, Relaxed);
        Some(node)
    }

    /// CPUs begin apart; a zero cursor has not been used.
    #[inline]
    fn first_group(&self, cpu: u32, groups: usize) -> usize {
        match self.cursor(cpu).load(Relaxed) {
            0 => (cpu as usize % CURSORS) * (groups / CURSORS.min(groups)) % groups,
            at => (at as usize - 1) % groups,
        }
    }

    /// Claims a node to replace an element with.
    #[inline]
    pub fn claim_extra(&self, cpu: u32) -> Option<Borrowed> {
        for step in 0..self.layout.extra {
            let entry = (cpu.wrapping_add(step)) % self.layout.extra;
            let node = match self.stash(entry).load(Relaxed) {
                0 => self.layout.max_entries + 1 + entry, // never used
                node => node,
            };
            if self.is_node(node) && self.try_claim(node, Kind::Extra) {
                return Some(Borrowed { node, entry: Some(entry) });
            }
        }
        None
    }

    /// As claim_extra, if the first entry that this CPU looks at names a free node.
    #[inline]
    pub fn borrow_near(&self, cpu: u32) -> Option<(Borrowed, State)> {
        let entry = if cpu < self.layout.extra { cpu } else { 0 };
        let node = match self.stash(entry).load(Relaxed) {
            0 => self.layout.max_entries + 1 + entry, // never used
            node => node,
        };
        let state = self.is_node(node).then(|| self.claimed(node, Kind::Extra))??;
        Some((Borrowed { node, entry: Some(entry) }, state))
    }

    /// As claim_extra when the stash has none: a recovery that ran beside us may have forgotten some.
    #[cold]
    pub fn scan_extra(&self) -> Option<Borrowed> {
        let node = (1..=self.layout.capacity()).find(|&node| self.try_claim(node, Kind::Extra))?;
        Some(Borrowed { node, entry: None })
    }

    /// `given` takes the place of a borrowed node that is now an element.
    #[inline]
    pub fn repay(&self, borrowed: Borrowed, given: u32) {
        // Only who claimed the node an entry names may write the entry.
        if let Some(entry) = borrowed.entry {
            self.stash(entry).store(given, Relaxed);
        }
    }

    /// Ends a node's life. The caller claimed it and never linked it, or marked it and saw it unlinked.
    #[inline]
    pub fn release(&self, index: u32, to_extra: bool) {
        let (_, state) = self.state(index);
        let kind = if to_extra { Kind::Extra } else { Kind::Main };
        // Pairs with try_claim's acquire: our last accesses to the node come before its next life.
        self.state_word(index).store(state.next(kind, 0).0, Release);
        if !to_extra {
            self.clear_used(index);
        }
    }

    /// As release, but only if the state is still `raw`: for recovery, which races with other recoveries.
    pub fn release_if(&self, index: u32, raw: u64, to_extra: bool) -> bool {
        let kind = if to_extra { Kind::Extra } else { Kind::Main };
        let freed =
            self.state_word(index).compare_exchange(raw, State(raw).next(kind, 0).0, AcqRel, Relaxed).is_ok();
        if freed && !to_extra {
            self.clear_used(index);
        }
        freed
    }

    #[inline]
    pub fn clear_used(&self, index: u32) {
        self.used_byte(index).store(0, Relaxed);
    }

    /// Whether the hint keeps claimers from a node.
    pub fn is_hidden(&self, index: u32) -> bool {
        self.used_byte(index).load(Relaxed) & 1 != 0
    }

    /// Makes the stash name exactly the extra pool's nodes again.
    pub fn restash(&self, mut lost: impl Iterator<Item = u32>) {
        for entry in 0..self.layout.extra {
            let named = match self.stash(entry).load(Relaxed) {
                0 => self.layout.max_entries + 1 + entry,
                node => node,
            };
            let valid = self.is_node(named) && self.state(named).1.kind() == Kind::Extra;
            if !valid {
                let Some(node) = lost.next() else { return };
                self.stash(entry).store(node, Relaxed);
            }
        }
    }

    /// Nodes that may not be as the map was made: the extra pool's own, those near one that was ever claimed, and those
    /// that a CPU would claim from next, since the hint is set after the claim. What was never touched stays untouched:
    /// looking at it would allocate it.
    pub fn disturbed(&self) -> Vec<u32> {
        let (capacity, own) = (self.layout.capacity(), self.layout.max_entries);
        let groups = self.groups();
        let mut wanted: BTreeSet<usize> = (0..groups).filter(|g| self.used(*g).load(Relaxed) != 0).collect();
        for cpu in 0..CURSORS as u32 {
            // A CPU that claims for the first time begins at a place of its own.
            if self.cursor(cpu).load(Relaxed) == 0 && cpu >= self.layout.extra / 2 {
                continue;
            }
            let start = self.first_group(cpu, groups);
            let next = (start..groups).chain(0..start);
            let has_free = |g: &usize| !self.used(*g).load(Relaxed) & GROUP_USED != 0;
            wanted.extend(next.filter(has_free).take(DISTURBED_GROUPS));
        }
        let of_group = |g: usize| ((g * GROUP) as u32 + 1..).take(GROUP).filter(move |node| *node <= own);
        wanted.into_iter().flat_map(of_group).chain(own + 1..=capacity).collect()
    }

    /// Those of `nodes` that the extra pool owns but no stash entry names.
    pub fn unstashed(&self, nodes: &[u32]) -> Vec<u32> {
        let named: Vec<u32> = (0..self.layout.extra)
            .map(|entry| match self.stash(entry).load(Relaxed) {
                0 => self.layout.max_entries + 1 + entry,
                node => node,
            })
            .collect();
        let extra = |i: &u32| self.state(*i).1.kind() == Kind::Extra && !named.contains(i);
        nodes.iter().copied().filter(extra).collect()
    }

    /// Starts a claimed node's life in a chain before `index`.
    #[inline]
    pub fn set_next(&self, node: u32, index: u32) {
        let (_, state) = self.state(node);
        // Published by the CAS that links the node.
        self.next(node).store(Link::first(state.epoch(), index).0, Relaxed);
    }
}
