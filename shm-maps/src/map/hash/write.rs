//! Insert, replace, delete.

use super::chain::{Spot, Walk};
use super::key::Key;
use super::nodes::Borrowed;
use super::word::Link;
use super::{Hash, Source};
use crate::uapi::{BPF_EXIST, BPF_NOEXIST};
use crate::{copy, round8};
use core::sync::atomic::Ordering::{AcqRel, Relaxed};
use rustix::io::Errno;

/// Nodes an update has claimed and not yet used.
#[derive(Default)]
struct Held {
    main: Option<u32>,
    extra: Option<Borrowed>,
}

/// Attempts before an update gives up with EBUSY, as the kernel's does when it can not take the bucket lock.
/// Each failure means that another update succeeded, so this bounds hostile peers, not honest ones.
const ATTEMPTS: u32 = 1 << 16;

impl Hash {
    /// The update of all four kinds of caller.
    #[inline]
    pub(in crate::map) fn write<const N: usize>(
        &self,
        key: Key<N>,
        source: Source,
        flags: u64,
    ) -> Result<(), Errno> {
        if flags > BPF_EXIST {
            return Err(Errno::INVAL);
        }
        let mut held = Held::default();
        let bucket = key.hash(self.nodes.seed);
        for _ in 0..ATTEMPTS {
            let done = match self.find(bucket, key) {
                Walk::Lost => Err(Errno::BUSY),
                Walk::At(_) if flags == BPF_NOEXIST => Err(Errno::EXIST),
                Walk::End { .. } if flags == BPF_EXIST => Err(Errno::NOENT),
                Walk::At(spot) if self.percpu => {
                    self.fill_values(spot.node, source, false);
                    if self.lru {
                        self.nodes.touch(spot.node);
                    }
                    Ok(true)
                }
                Walk::At(spot) => self.replace(bucket, key, source, &spot, &mut held),
                Walk::End { head } => match self.insert(bucket, key, source, head, &mut held) {
                    Err(Errno::TOOBIG) if self.changes(bucket, head) => Ok(false),
                    made => made,
                },
            };
            match done {
                Ok(false) => continue,
                Ok(true) => return self.finish(held, Ok(())),
                Err(e) => return self.finish(held, Err(e)),
            }
        }
        self.finish(held, Err(Errno::BUSY))
    }

    /// Whether a bucket's head changes within the time that another thread takes to link a node which it has: the last
    /// free one may be for this very key. One that is interrupted there is not waited for.
    #[cold]
    fn changes(&self, bucket: u64, head: Link) -> bool {
        const LOOKS: u32 = 16;
        (0..LOOKS).any(|_| {
            core::hint::spin_loop();
            self.nodes.head(bucket).load(Relaxed) != head.0
        })
    }

    #[inline]
    fn finish(&self, held: Held, result: Result<(), Errno>) -> Result<(), Errno> {
        if let Some(node) = held.main {
            self.nodes.release(node, false);
        }
        if let Some(borrowed) = held.extra {
            self.nodes.release(borrowed.node, true);
        }
        result
    }

    /// True when linked, false when the chain changed and the update must look again.
    #[inline]
    fn insert<const N: usize>(
        &self,
        bucket: u64,
        key: Key<N>,
        source: Source,
        head: Link,
        held: &mut Held,
    ) -> Result<bool, Errno> {
        let node = match held.main {
            Some(node) => node,
            None => {
                let node = self.claim(self.claim_cpu(source))?;
                held.main = Some(node);
                self.fill(node, key, source);
                node
            }
        };
        self.nodes.set_next(node, head.index());
        // Release publishes the node's key and value. A peer that dies before this leaves a claimed node
        // that recover gives back; after it, the element exists.
        let linked =
            self.nodes.head(bucket).compare_exchange(head.0, head.to(node).0, AcqRel, Relaxed).is_ok();
        if linked {
            held.main = None;
        }
        Ok(linked)
    }

    /// A node for a new element.
    #[inline]
    fn claim(&self, cpu: u32) -> Result<u32, Errno> {
        if self.lru { self.claim_lru(cpu) } else { self.nodes.claim_main(cpu).ok_or(Errno::TOOBIG) }
    }

    /// True when replaced, false when the chain changed and the update must look again.
    #[inline]
    fn replace<const N: usize>(
        &self,
        bucket: u64,
        key: Key<N>,
        source: Source,
        spot: &Spot<'_>,
        held: &mut Held,
    ) -> Result<bool, Errno> {
        if held.extra.is_none() && held.main.is_none() {
            self.hold_replacement(key, source, held)?;
        }
        let node = held.extra.map(|b| b.node).or(held.main).ok_or(Errno::BUSY)?;
        self.nodes.set_next(node, spot.next_word.index());
        let (_, old) = self.nodes.state(spot.node);
        let mark = Link::marked(node, self.nodes.owner(), old.epoch(), held.extra.is_some());
        let word = self.nodes.next(spot.node);
        if word.compare_exchange(spot.next_word.0, mark.0, AcqRel, Relaxed).is_err() {
            return Ok(false);
        }
        if self.lru {
            self.nodes.touch(node);
        }
        match held.extra.take() {
            Some(borrowed) => {
                self.nodes.repay(borrowed, spot.node);
                self.retire(bucket, spot, node, true);
            }
            None => {
                held.main = None;
                self.retire(bucket, spot, node, false);
            }
        }
        Ok(true)
    }

    /// Extra nodes outnumber the CPU slots; when many tool threads hold them all, a main node does.
    #[inline]
    fn hold_replacement<const N: usize>(
        &self,
        key: Key<N>,
        source: Source,
        held: &mut Held,
    ) -> Result<(), Errno> {
        let cpu = self.claim_cpu(source);
        held.extra = self.nodes.claim_extra(cpu);
        if held.extra.is_none() {
            held.main = self.nodes.claim_main(cpu);
        }
        if held.extra.is_none() && held.main.is_none() {
            held.extra = self.nodes.scan_extra();
        }
        let node = held.extra.map(|b| b.node).or(held.main).ok_or(Errno::BUSY)?;
        self.fill(node, key, source);
        Ok(())
    }

    /// Deletes `key`; `last_look` sees the element after it left the map and before it is recycled.
    #[inline]
    pub(in crate::map) fn remove<const N: usize>(
        &self,
        key: Key<N>,
        mut last_look: impl FnMut(u32),
    ) -> Result<(), Errno> {
        let bucket = key.hash(self.nodes.seed);
        for _ in 0..ATTEMPTS {
            let spot = match self.find(bucket, key) {
                Walk::At(spot) => spot,
                Walk::End { .. } => return Err(Errno::NOENT),
                Walk::Lost => return Err(Errno::BUSY),
            };
            if self.remove_at(bucket, &spot, &mut last_look) {
                if self.lru {
                    self.nodes.set_full(false);
                }
                return Ok(());
            }
        }
        Err(Errno::BUSY)
    }

    /// Deletes the element at `spot`; false when the chain changed.
    #[inline]
    pub(super) fn remove_at(&self, bucket: u64, spot: &Spot<'_>, last_look: &mut impl FnMut(u32)) -> bool {
        let (_, state) = self.nodes.state(spot.node);
        let successor = spot.next_word.index();
        let mark = Link::marked(successor, self.nodes.owner(), state.epoch(), false);
        let word = self.nodes.next(spot.node);
        let removed = word.compare_exchange(spot.next_word.0, mark.0, AcqRel, Relaxed).is_ok();
        if removed {
            last_look(spot.node);
            self.retire(bucket, spot, successor, false);
        }
        removed
    }

    /// After the mark: unlink, then end the node's life. If it can not be unlinked (corruption), it is lost.
    #[inline]
    pub(super) fn retire(&self, bucket: u64, spot: &Spot<'_>, successor: u32, to_extra: bool) {
        if self.nodes.unlink(bucket, spot, successor) {
            self.nodes.release(spot.node, to_extra);
        }
    }

    /// Which CPU's hints to claim by. The tool starts elsewhere than the programs.
    #[inline]
    fn claim_cpu(&self, source: Source) -> u32 {
        match source {
            Source::Cpu(_, cpu) => cpu,
            Source::All(_) | Source::Joined(..) => self.nodes.layout.extra - 1,
        }
    }

    /// Writes key and values of a claimed node, which nobody else reads.
    #[inline]
    fn fill<const N: usize>(&self, node: u32, key: Key<N>, source: Source) {
        // SAFETY: the node's key slot holds key_size bytes rounded up.
        unsafe { copy::to_shared(self.nodes.key(node), key.bytes(), key.len()) };
        self.fill_values(node, source, true);
    }

    /// Writes values; of a new element the other CPUs' are zero.
    #[inline]
    fn fill_values(&self, node: u32, source: Source, new: bool) {
        let size = self.nodes.layout.value_size;
        let (first, count) = (self.nodes.value(node, 0), self.nodes.layout.values);
        match source {
            Source::Cpu(value, cpu) => {
                let own = if self.percpu { cpu as usize % count } else { 0 };
                if new && self.percpu {
                    for other in (0..count).filter(|other| *other != own) {
                        // SAFETY: a value slot of the node.
                        unsafe { copy::zero_shared(self.nodes.value(node, other), round8(size)) };
                    }
                }
                let slot = self.nodes.value(node, own);
                // SAFETY: one value slot; the caller's value.
                unsafe { copy::to_shared(slot, value, size) };
            }
            Source::All(values) if self.percpu => {
                for cpu in 0..count {
                    // SAFETY: a value slot of the node; the tool's buffer has as many values, as long.
                    unsafe {
                        copy::to_shared(
                            self.nodes.value(node, cpu),
                            values.add(cpu * round8(size)),
                            round8(size),
                        );
                    }
                }
            }
            Source::Joined(value, len, rest, at) => {
                // SAFETY: one value slot of `size` bytes, `at` of them, a multiple of eight, for the value; the
                // caller's value and what belongs behind it.
                unsafe {
                    copy::zero_shared(first, at);
                    copy::to_shared(first, value, len);
                    copy::to_shared(first.add(at), rest, size - at);
                }
            }
            // SAFETY: one value slot; the tool's buffer is value_size bytes.
            Source::All(value) => unsafe { copy::to_shared(first, value, size) },
        }
    }
}
