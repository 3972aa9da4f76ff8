//! What was proved, for the compiler and the loader.

use crate::isa::MapIdx;
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

/// A proved access: every run accesses bytes `min..max` of the region only. Stack offsets are from r10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Where.
    pub region: Region,
    /// First byte that may be accessed.
    pub min: i64,
    /// One past the last.
    pub max: i64,
}

impl Access {
    /// What holds for both.
    pub(super) fn join(self, other: Access) -> Access {
        let region = if self.region == other.region { self.region } else { Region::Several };
        Access { region, min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// Results of a successful walk.
#[derive(Clone, Debug, Default)]
pub(super) struct Proved {
    pub live: Vec<bool>,
    pub accesses: Vec<Option<Access>>,
    pub stack: Vec<u32>,
    pub ctx_bytes: u32,
    pub reads_unwritten_stack: bool,
}

/// A program that [`verify`](super::verify) accepted; nothing else makes one. Dead code is out of its
/// reachable slots, and its stack is as deep as was proved.
#[derive(Clone, Debug)]
pub struct Verified {
    program: Program,
    accesses: Vec<Option<Access>>,
    ctx_bytes: u32,
    reads_unwritten_stack: bool,
}

impl Verified {
    pub(super) fn new(mut program: Program, proved: Proved) -> Verified {
        program.retain_live(&proved.live);
        for (func, depth) in proved.stack.iter().enumerate() {
            program.set_stack_depth(func, *depth);
        }
        let Proved { accesses, ctx_bytes, reads_unwritten_stack, .. } = proved;
        Verified { program, accesses, ctx_bytes, reads_unwritten_stack }
    }

    /// What the instruction at this slot accesses; `None` if it accesses nothing.
    pub fn access(&self, slot: usize) -> Option<Access> {
        self.accesses.get(slot).copied().flatten()
    }

    /// Bytes of context that are read. Whoever attaches the program checks that the context has as many.
    pub fn ctx_bytes(&self) -> u32 {
        self.ctx_bytes
    }

    /// Whether some path may read stack that it did not write, directly or through a helper: the runtime
    /// must clear it.
    pub fn reads_unwritten_stack(&self) -> bool {
        self.reads_unwritten_stack
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
