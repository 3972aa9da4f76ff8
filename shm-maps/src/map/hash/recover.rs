//! Giving back what a dead process held.
//!
//! A process can die with a node claimed but not linked (`state` names it), or marked but not given back
//! (the mark in `next` names it), or given back with a hint not yet updated. Nothing else: there are no locks.

use super::Hash;
use super::chain::{Step, Walk};
use super::key::Key;
use super::word::{Kind, Link};
use core::sync::atomic::Ordering::Acquire;

impl Hash {
    /// Runs on the tool's side; live processes may go on using the map.
    pub(super) fn recover_nodes(&self, owner: u16) -> usize {
        let mut key = vec![0; self.nodes.layout.key_size];
        let nodes = self.nodes.disturbed();
        let repaired = nodes.iter().filter(|&&node| self.recover_node(node, owner, &mut key)).count();
        self.nodes.restash(self.nodes.unstashed(&nodes).into_iter());
        repaired
    }

    fn recover_node(&self, node: u32, owner: u16, key: &mut [u8]) -> bool {
        let (raw, state) = self.nodes.state(node);
        match state.kind() {
            Kind::Main if self.nodes.is_hidden(node) => {
                self.nodes.clear_used(node);
                // Claimed since: its claimer may have set the hint before it was cleared.
                if self.nodes.state(node).1.kind() != Kind::Main {
                    self.nodes.set_used(node);
                }
                true
            }
            Kind::Main | Kind::Extra => false,
            Kind::FromMain | Kind::FromExtra => {
                let next = Link(self.nodes.next(node).load(Acquire)); // pairs with the marking CAS
                self.read_key(node, key);
                if next.is_mark_of(owner, state.epoch()) {
                    return self.nodes.purge(self.bucket_of(key))
                        && self.nodes.release_if(node, raw, next.to_extra());
                }
                state.owner() == owner
                    // A mark of an earlier life is what a claimed node shows until it is filled.
                    && !next.is_mark_in(state.epoch())
                    && !self.is_linked(node, key)
                    // Not linked and still not marked: if it was ever linked, someone marked it since.
                    && self.nodes.next(node).load(Acquire) == next.0
                    && self.nodes.release_if(node, raw, state.kind() == Kind::FromExtra)
            }
        }
    }

    fn bucket_of(&self, key: &[u8]) -> u64 {
        // SAFETY: a buffer of key_size bytes.
        unsafe { Key::<0>::new(key.as_ptr(), key.len()) }.hash(self.nodes.seed)
    }

    fn is_linked(&self, node: u32, key: &[u8]) -> bool {
        // Lost counts as linked: better a node too few than one freed in use.
        !matches!(
            self.nodes.walk(self.bucket_of(key), |step| matches!(step, Step::Node(n) if n == node)),
            Walk::End { .. }
        )
    }
}
