//! Eviction. The kernel keeps two lists and a mark per element; here a hand goes round all nodes, takes the mark off
//! those that have one and evicts the first without (CLOCK, Corbató 1968): nothing to keep consistent over a death.
//! Approximate, as the kernel's is, with the same marks: a program's lookup and an update of an existing element.

use super::Hash;
use super::chain::{Step, Walk};
use super::key::Key;
use super::word::Kind;
use rustix::io::Errno;

impl Hash {
    /// A node for a new element: a free one, or that of the element that was not used for long.
    #[cold]
    pub(super) fn claim_lru(&self, cpu: u32) -> Result<u32, Errno> {
        if !self.nodes.seems_full() {
            if let Some(node) = self.nodes.claim_main(cpu) {
                return Ok(node);
            }
            self.nodes.set_full(true);
        }
        // Every node may have a mark, so two rounds; then nodes that others hold or win.
        let rounds = u64::from(self.nodes.layout.capacity()) * 2 + 64;
        let evicted = (0..rounds).find_map(|_| self.evict(self.nodes.advance_hand()));
        evicted.or_else(|| self.nodes.claim_main(cpu)).ok_or(Errno::NOMEM)
    }

    /// Claims `node` if it is free, or if it is an element without a mark that can be deleted.
    fn evict(&self, node: u32) -> Option<u32> {
        let (_, state) = self.nodes.state(node);
        let free = match state.kind() {
            Kind::Main => true,
            Kind::Extra => false,
            Kind::FromMain | Kind::FromExtra => !self.nodes.untouch(node) && self.remove_node(node),
        };
        // Another may have been faster with the node that came free.
        let claimed = free && self.nodes.try_claim(node, Kind::Main);
        if claimed {
            self.nodes.set_used(node);
            self.nodes.untouch(node);
        }
        claimed.then_some(node)
    }

    /// Deletes the element in `node`; false when it is none (any more).
    fn remove_node(&self, node: u32) -> bool {
        let len = self.nodes.layout.key_size;
        // SAFETY: a node's key slot is key_size bytes, 8-aligned.
        let bucket = unsafe { Key::<0>::hash_at(self.nodes.key(node), len, self.nodes.seed) };
        match self.nodes.walk(bucket, |step| matches!(step, Step::Node(n) if n == node)) {
            Walk::At(spot) => self.remove_at(bucket, &spot, &mut |_| ()),
            _ => false,
        }
    }
}
