//! Walking a bucket's chain: Michael's lock-free list (SPAA 2002) with versioned words.
//!
//! A step from `prev` to `cur` is believed only if `prev` still holds the same word *after* everything of
//! `cur` was read. Words carry versions and a deleted node's word is marked, so an unchanged word means:
//! `prev` was linked, `cur` was its successor, and `cur` was not recycled meanwhile. By induction from the
//! bucket head every believed node was in this chain, and what was read of it was its own.

use super::nodes::Nodes;
use super::word::Link;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use core::sync::atomic::fence;

/// A node and the words around it, all read while it was in the chain.
#[derive(Clone, Copy)]
pub struct Spot<'a> {
    pub prev: &'a AtomicU64,
    pub prev_word: Link,
    pub node: u32,
    pub next_word: Link,
}

/// How a walk ended.
pub enum Walk<'a> {
    /// The visitor chose this node.
    At(Spot<'a>),
    /// No node was chosen; `head` is the bucket's word, unchanged since before the first node was read.
    End {
        /// The word at the head.
        head: Link,
    },
    /// The step budget is spent: a corrupted chain, or more contention than any scheduler makes.
    Lost,
}

/// What the visitor is told.
pub enum Step {
    /// The walk begins, again: forget what was seen.
    Restart,
    /// A node. What is read of it counts only if the walk goes on, or ends, without a Restart.
    Node(u32),
}

/// Steps beyond one per node that a walk may take, for restarts.
const SPARE_STEPS: u64 = 1 << 16;

impl Nodes {
    /// Walks `bucket` until `visit` chooses a node, unlinking deleted nodes on the way.
    #[inline]
    pub fn walk<'a>(&'a self, bucket: u64, visit: impl FnMut(Step) -> bool) -> Walk<'a> {
        let mut budget = self.budget();
        self.walk_within(&mut budget, bucket, visit)
    }

    /// Steps enough to see every node once, whatever others do.
    #[inline]
    pub fn budget(&self) -> u64 {
        u64::from(self.layout.capacity()) + SPARE_STEPS
    }

    /// As walk, for operations over many buckets, which share one budget.
    #[inline]
    pub fn walk_within<'a>(
        &'a self,
        budget: &mut u64,
        bucket: u64,
        mut visit: impl FnMut(Step) -> bool,
    ) -> Walk<'a> {
        'restart: loop {
            visit(Step::Restart);
            let first = self.head(bucket);
            let mut prev = first;
            // Pairs with the CAS that linked the node: its key and value are visible.
            let mut head = Link(prev.load(Acquire));
            let mut word = head;
            loop {
                let node = word.index();
                if node == 0 {
                    return Walk::End { head };
                }
                if *budget == 0 || !self.is_node(node) {
                    return Walk::Lost;
                }
                *budget -= 1;
                let next_word = Link(self.next(node).load(Acquire)); // as for the head
                if next_word.is_marked() {
                    let shorter = word.to(next_word.index());
                    if word.is_marked() || prev.compare_exchange(word.0, shorter.0, AcqRel, Relaxed).is_err()
                    {
                        continue 'restart;
                    }
                    if core::ptr::eq(prev, first) {
                        head = shorter;
                    }
                    word = shorter;
                    continue;
                }
                let chosen = visit(Step::Node(node));
                fence(Acquire); // the reads of the node stay before the check
                if prev.load(Relaxed) != word.0 {
                    continue 'restart;
                }
                if chosen {
                    return Walk::At(Spot { prev, prev_word: word, node, next_word });
                }
                prev = self.next(node);
                word = next_word;
            }
        }
    }

    /// Takes a marked node out of its chain, then its life can end. False if that could not be ensured.
    #[inline]
    pub fn unlink(&self, bucket: u64, spot: &Spot<'_>, successor: u32) -> bool {
        let shorter = spot.prev_word.to(successor);
        spot.prev.compare_exchange(spot.prev_word.0, shorter.0, AcqRel, Relaxed).is_ok() || self.purge(bucket)
    }

    /// Walks the whole bucket: every node that was marked before is unlinked after.
    #[cold]
    pub fn purge(&self, bucket: u64) -> bool {
        matches!(self.walk(bucket, |_| false), Walk::End { .. })
    }
}
