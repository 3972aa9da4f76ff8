//! What was proved, for the compiler and the loader.
//!
//! | fact | for whom | holds because |
//! |---|---|---|
//! | [`access`](Verified::access) | bounds and alignment that need no check | joined over all paths to the slot |
//! | [`unwritten`](Verified::unwritten) | stack that must be cleared on entry | every read of a byte that some path did not write |
//! | [`known`](Verified::known), [`outcome`](Verified::outcome) | constants, jumps that are none | frozen data; sides that no path takes |
//! | [`held`](Verified::held) | which fuel checks need to give something up | most references of all paths to the slot |
//! | [`ctx_bytes`](Verified::ctx_bytes) | whoever attaches the program | the highest byte of the context that is read |
//!
//! Paths that were cut short ([`prune`](super::prune)) are members of states that were walked on, so that what
//! holds on all walked paths holds on those.

use super::stack_bytes::StackBytes;
use crate::isa::{MapIdx, Op};
use crate::program::Program;
use std::ops::Deref;

/// The memory an instruction accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// The stack of some frame of this program.
    Stack,
    /// The context.
    Ctx,
    /// A value of this map.
    MapValue(MapIdx),
    /// A key of this map, handed to a callback.
    MapKey(MapIdx),
    /// A ring buffer record.
    Record,
    /// Different ones on different paths.
    Several,
}

/// A proved access: every run accesses bytes `min..max` of the region only, all of which are there. Stack
/// offsets are from r10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Where.
    pub region: Region,
    /// First byte that may be accessed.
    pub min: i64,
    /// One past the last.
    pub max: i64,
    /// The offset of the first byte is a multiple of this: 1, 2, 4 or 8. So is the address, where regions
    /// begin at multiples of 8, which all do.
    pub align: u32,
}

impl Access {
    /// What holds for both.
    pub(super) fn join(self, other: Access) -> Access {
        let region = if self.region == other.region { self.region } else { Region::Several };
        let (min, max) = (self.min.min(other.min), self.max.max(other.max));
        Access { region, min, max, align: self.align.min(other.align) }
    }
}

/// What all walks of a load gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loaded {
    Never,
    Known(u64),
    Varies,
}

/// Sides of a branch that were walked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sides {
    pub taken: bool,
    pub not_taken: bool,
}

/// Results of a successful walk.
#[derive(Clone, Debug, Default)]
pub(super) struct Proved {
    pub live: Vec<bool>,
    pub accesses: Vec<Option<Access>>,
    pub loaded: Vec<Loaded>,
    pub sides: Vec<Sides>,
    pub held: Vec<u32>,
    pub stack: Vec<u32>,
    /// By function.
    pub unwritten: Vec<StackBytes>,
    pub ctx_bytes: u32,
}

impl Proved {
    /// Nothing walked yet.
    pub fn new(program: &Program) -> Proved {
        let (slots, funcs) = (program.ops().len(), program.funcs().len());
        Proved {
            live: vec![false; slots],
            accesses: vec![None; slots],
            loaded: vec![Loaded::Never; slots],
            sides: vec![Sides::default(); slots],
            held: vec![0; slots],
            stack: vec![0; funcs],
            unwritten: vec![StackBytes::NONE; funcs],
            ctx_bytes: 0,
        }
    }

    /// Bytes, by function and offset, that may be read without having been written.
    pub fn unwritten(&mut self, bytes: &[(usize, i64)]) {
        bytes.iter().for_each(|(func, off)| self.unwritten[*func].insert(*off));
    }
}

/// A program that may be compiled and run: one that [`verify`](super::verify) accepted, or one that somebody
/// vouches for ([`Verified::unchecked`], for which nothing is proved). Nothing else makes one.
///
/// Dead code is out of its reachable slots, and its stack is as deep as was proved.
#[derive(Clone, Debug)]
pub struct Verified {
    program: Program,
    /// `None` if nobody verified it.
    proved: Option<Proved>,
    unwritten: Vec<StackBytes>,
}

impl Verified {
    pub(super) fn new(mut program: Program, proved: Proved) -> Verified {
        program.retain_live(&proved.live);
        for (func, depth) in proved.stack.iter().enumerate() {
            program.set_stack_depth(func, *depth);
        }
        let unwritten = proved.unwritten.clone();
        Verified { program, proved: Some(proved), unwritten }
    }

    /// What [`Verified::unchecked`] makes: all stack counts as read before it is written.
    pub(crate) fn assumed(program: Program) -> Verified {
        let unwritten = program.funcs().iter().map(|f| StackBytes::below(f.stack.reserve)).collect();
        Verified { program, proved: None, unwritten }
    }

    /// Whether the verifier accepted it. Otherwise every fact is the weakest one.
    pub fn is_proved(&self) -> bool {
        self.proved.is_some()
    }

    /// What the instruction at this slot accesses; `None` if it accesses nothing, or nothing is known of it.
    pub fn access(&self, slot: usize) -> Option<Access> {
        self.proved.as_ref()?.accesses.get(slot).copied().flatten()
    }

    /// Whether the instruction at this slot may fault: it accesses memory, and that it is there was not
    /// proved.
    pub fn may_fault(&self, slot: usize) -> bool {
        let accesses = matches!(
            self.program.ops().get(slot),
            Some(Op::Load { .. } | Op::Store { .. } | Op::Atomic { .. })
        );
        accesses && self.access(slot).is_none()
    }

    /// What the load at this slot gives in every run, extended as the instruction does: constants of frozen
    /// maps that programs cannot write either.
    pub fn known(&self, slot: usize) -> Option<u64> {
        match self.proved.as_ref()?.loaded.get(slot)? {
            Loaded::Known(x) => Some(*x),
            Loaded::Never | Loaded::Varies => None,
        }
    }

    /// Whether the branch at this slot is always taken, or never; `None` if either can be.
    pub fn outcome(&self, slot: usize) -> Option<bool> {
        let sides = self.proved.as_ref()?.sides.get(slot)?;
        (sides.taken != sides.not_taken).then_some(sides.taken)
    }

    /// The most references (ring buffer records and the like) that a run may hold when it arrives at this
    /// slot. What runs out of fuel there must give them up. `None` if not known.
    pub fn held(&self, slot: usize) -> Option<u32> {
        self.proved.as_ref()?.held.get(slot).copied()
    }

    /// Whether some run may hold a reference at any time.
    pub fn takes_references(&self) -> bool {
        self.proved.as_ref().is_none_or(|p| p.held.iter().any(|n| *n > 0))
    }

    /// Bytes of a function's stack that a run may read, directly or through a helper, without having written
    /// them: they must be cleared on entry. All others may hold anything.
    pub fn unwritten(&self, func: usize) -> StackBytes {
        self.unwritten.get(func).copied().unwrap_or(StackBytes::NONE)
    }

    /// Whether any stack must be cleared.
    pub fn reads_unwritten_stack(&self) -> bool {
        self.unwritten.iter().any(|bytes| *bytes != StackBytes::NONE)
    }

    /// Bytes of context that are read. Whoever attaches the program checks that the context has as many;
    /// not known (0) if nothing was proved.
    pub fn ctx_bytes(&self) -> u32 {
        self.proved.as_ref().map_or(0, |p| p.ctx_bytes)
    }

    /// The program alone.
    pub fn into_program(self) -> Program {
        self.program
    }
}

impl Deref for Verified {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}
