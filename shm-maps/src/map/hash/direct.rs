//! The usual case of what programs ask of HASH and PERCPU_HASH, in few instructions: nobody else is at work in the chain, a
//! node is free where this CPU last found one. Each function here either does the whole operation, as the rest of this
//! module would, or says `None` and has done nothing.
//!
//! Nothing here panics, and nothing is called that moves blocks of memory: so the code needs no vector registers, which
//! whoever links programs looks for and saves the programs from saving them.

use super::Hash;
use super::chain::Spot;
use super::key::Key;
use super::nodes::Nodes;
use super::word::{Link, State};
use crate::uapi::BPF_ANY;
use crate::{copy, neg};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use core::sync::atomic::fence;
use rustix::io::Errno;

/// Elements of a chain that are looked at. Few chains of a half full table are longer than three.
const STEPS: usize = 8;

/// A key's place in its chain.
enum Place<'a> {
    At(Spot<'a>),
    /// Nowhere; the word at the head, which has not changed since.
    End(Link),
}

impl Nodes {
    /// As [`Nodes::walk`], for who gives up when anything changes meanwhile.
    #[inline]
    fn place<const N: usize>(&self, bucket: u64, key: Key<N>) -> Option<Place<'_>> {
        let mut prev = self.head(bucket);
        let head = Link(prev.load(Acquire)); // as in `walk`, here and below
        let mut word = head;
        for _ in 0..STEPS {
            let node = word.index();
            if node == 0 {
                return Some(Place::End(head));
            }
            if !self.is_node(node) {
                return None;
            }
            let next_word = Link(self.next(node).load(Acquire));
            // SAFETY: a node's key slot is as long as the map's keys.
            let found = unsafe { key.equals(self.key(node)) };
            fence(Acquire);
            if next_word.is_marked() || prev.load(Relaxed) != word.0 {
                return None;
            }
            if found {
                return Some(Place::At(Spot { prev, prev_word: word, node, next_word }));
            }
            (prev, word) = (self.next(node), next_word);
        }
        None
    }
}

impl Hash {
    /// [`Map::lookup`](crate::Map::lookup) with keys of `N` bytes, of any length if that is 0.
    ///
    /// # Safety
    /// As that.
    #[inline]
    pub unsafe fn try_lookup<const N: usize>(&self, key: *const u8, cpu: u32) -> Option<*mut u8> {
        // SAFETY: the caller's promise.
        let key: Key<N> = unsafe { Key::new(key, self.nodes.layout.key_size) };
        match self.nodes.place(key.hash(self.nodes.seed), key)? {
            Place::At(spot) => Some(self.nodes.value(spot.node, self.cpu_index(cpu)?)),
            Place::End(_) => Some(core::ptr::null_mut()),
        }
    }

    /// [`Map::update`](crate::Map::update) with keys of `N` bytes, of any length if that is 0.
    ///
    /// # Safety
    /// As that.
    #[inline]
    pub unsafe fn try_update<const N: usize>(
        &self,
        key: *const u8,
        value: *const u8,
        flags: u64,
        cpu: u32,
    ) -> Option<i64> {
        if flags != BPF_ANY || self.nodes.layout.value_size >= copy::LONG {
            return None;
        }
        // SAFETY: the caller's promise.
        let key: Key<N> = unsafe { Key::new(key, self.nodes.layout.key_size) };
        let bucket = key.hash(self.nodes.seed);
        match self.nodes.place(bucket, key)? {
            Place::At(spot) if self.percpu => self.put(spot.node, value, self.cpu_index(cpu)?),
            Place::At(spot) => self.exchange(bucket, key, value, cpu, &spot)?,
            Place::End(_) if self.percpu => return None,
            Place::End(head) => self.link(bucket, key, value, cpu, head)?,
        }
        Some(0)
    }

    /// [`Map::delete`](crate::Map::delete) with keys of `N` bytes, of any length if that is 0.
    ///
    /// # Safety
    /// As that.
    #[inline]
    pub unsafe fn try_delete<const N: usize>(&self, key: *const u8) -> Option<i64> {
        // SAFETY: the caller's promise.
        let key: Key<N> = unsafe { Key::new(key, self.nodes.layout.key_size) };
        let bucket = key.hash(self.nodes.seed);
        match self.nodes.place(bucket, key)? {
            Place::At(spot) => self.remove_at(bucket, &spot, &mut |_| ()).then_some(0),
            Place::End(_) => Some(neg(Errno::NOENT)),
        }
    }

    /// Writes a value. Most are a word.
    #[inline]
    fn put(&self, node: u32, value: *const u8, cpu: usize) {
        let (slot, size) = (self.nodes.value(node, cpu), self.nodes.layout.value_size);
        // SAFETY: one value slot; the caller's value.
        unsafe {
            match size {
                8 => copy::short_to_shared(slot, value, 8),
                size => copy::short_to_shared(slot, value, size),
            }
        };
    }

    /// Writes key and value of a node in its new state, and what follows it.
    #[inline]
    fn fill_in<const N: usize>(&self, node: u32, state: State, key: Key<N>, value: *const u8, next: u32) {
        // SAFETY: a node's key slot is as long as the map's keys.
        unsafe { copy::short_to_shared(self.nodes.key(node), key.bytes(), key.len()) };
        self.put(node, value, 0);
        self.nodes.next(node).store(Link::first(state.epoch(), next).0, Relaxed);
    }

    /// A new element.
    #[inline]
    fn link<const N: usize>(
        &self,
        bucket: u64,
        key: Key<N>,
        value: *const u8,
        cpu: u32,
        head: Link,
    ) -> Option<()> {
        let (node, state) = self.nodes.claim_near(cpu)?;
        self.fill_in(node, state, key, value, head.index());
        // As in `insert`.
        let linked =
            self.nodes.head(bucket).compare_exchange(head.0, head.to(node).0, AcqRel, Relaxed).is_ok();
        if !linked {
            self.nodes.release(node, false);
        }
        linked.then_some(())
    }

    /// Another value for an element: a node from the extra pool takes its place, as in `replace`.
    #[inline]
    fn exchange<const N: usize>(
        &self,
        bucket: u64,
        key: Key<N>,
        value: *const u8,
        cpu: u32,
        spot: &Spot<'_>,
    ) -> Option<()> {
        let (borrowed, state) = self.nodes.borrow_near(cpu)?;
        let node = borrowed.node;
        self.fill_in(node, state, key, value, spot.next_word.index());
        let (_, old) = self.nodes.state(spot.node);
        let mark = Link::marked(node, self.nodes.owner(), old.epoch(), true);
        let word = self.nodes.next(spot.node);
        if word.compare_exchange(spot.next_word.0, mark.0, AcqRel, Relaxed).is_err() {
            self.nodes.release(node, true);
            return None;
        }
        self.nodes.repay(borrowed, spot.node);
        self.retire(bucket, spot, node, true);
        Some(())
    }
}
