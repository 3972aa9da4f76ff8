//! The two words that begin a node, and the word that is a bucket head.
//!
//! ```text
//! Link (bucket head, node.next)
//!   live     | version 31            | 0 | index 32 |    any change of the word bumps version
//!   marked   | owner 16 | epoch 14 | x | 1 | index 32 |  the node is deleted; index is its successor
//! State (node.state)
//!            | epoch 32 | owner 16 | 0 14 | kind 2 |
//! ```
//! Index 0 is the end of a chain; node i is index i. `x`: free the node to the extra pool. Who marked a
//! node frees it; `owner` and `epoch` in the mark tell recovery whether that happened.

/// A chain word. Bit 32 is the mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link(pub u64);

pub const MARK: u64 = 1 << 32;
const EXTRA: u64 = 1 << 33;
const EPOCH_SHIFT: u32 = 34;
const EPOCH_MASK: u32 = (1 << 14) - 1;
const OWNER_SHIFT: u32 = 48;
const VERSION_SHIFT: u32 = 33;

impl Link {
    #[inline]
    pub fn index(self) -> u32 {
        self.0 as u32
    }

    #[inline]
    pub fn is_marked(self) -> bool {
        self.0 & MARK != 0
    }

    /// The successor of this live word in time: another index, the next version.
    #[inline]
    pub fn to(self, index: u32) -> Link {
        let version = (self.0 >> VERSION_SHIFT).wrapping_add(1);
        Link((version << VERSION_SHIFT) | u64::from(index))
    }

    /// The first `next` of a node's life. Starts of consecutive lives are spread over all versions by
    /// the golden ratio, so that a thread that slept through lives of the node does not meet its word again.
    #[inline]
    pub fn first(epoch: u32, index: u32) -> Link {
        let version = u64::from(epoch.wrapping_mul(0x9e37_79b1));
        Link((version << VERSION_SHIFT) | u64::from(index))
    }

    /// The word that deletes a node in life `epoch`, followed by `index`.
    #[inline]
    pub fn marked(index: u32, owner: u16, epoch: u32, to_extra: bool) -> Link {
        let extra = if to_extra { EXTRA } else { 0 };
        let epoch = u64::from(epoch & EPOCH_MASK) << EPOCH_SHIFT;
        Link((u64::from(owner) << OWNER_SHIFT) | epoch | extra | MARK | u64::from(index))
    }

    /// Of a marked word: which pool the node goes to.
    pub fn to_extra(self) -> bool {
        self.0 & EXTRA != 0
    }

    /// Of a marked word: did `owner` mark the node in this `epoch` of its life?
    pub fn is_mark_of(self, owner: u16, epoch: u32) -> bool {
        self.is_mark_in(epoch) && (self.0 >> OWNER_SHIFT) as u16 == owner
    }

    /// Of any word: was the node marked in this `epoch` of its life?
    pub fn is_mark_in(self, epoch: u32) -> bool {
        self.is_marked() && (self.0 >> EPOCH_SHIFT) as u32 & EPOCH_MASK == epoch & EPOCH_MASK
    }
}

/// Whose a node is. max_entries nodes are main, so inserting fails exactly when max_entries elements
/// exist; replacing borrows from the extra pool and gives the replaced node back to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// In no chain, may become a new element.
    Main = 0,
    /// In no chain, may replace an element.
    Extra = 1,
    /// Claimed from the main pool: being filled, or in a chain.
    FromMain = 2,
    /// Claimed from the extra pool: being filled, or in a chain.
    FromExtra = 3,
}

/// A node's state word. The epoch counts every change, so a CAS never mistakes one life for another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State(pub u64);

impl State {
    #[inline]
    pub fn kind(self) -> Kind {
        match self.0 & 3 {
            0 => Kind::Main,
            1 => Kind::Extra,
            2 => Kind::FromMain,
            _ => Kind::FromExtra,
        }
    }

    #[inline]
    pub fn owner(self) -> u16 {
        (self.0 >> 16) as u16
    }

    #[inline]
    pub fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline]
    pub fn next(self, kind: Kind, owner: u16) -> State {
        let epoch = u64::from(self.epoch().wrapping_add(1));
        State((epoch << 32) | (u64::from(owner) << 16) | kind as u64)
    }
}
