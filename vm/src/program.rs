//! A decoded program: what the interpreter runs, the verifier judges and the compiler translates.
#![forbid(unsafe_code)]

use crate::isa::{Callee, Insn, MAX_STACK, MapIdx, Op};

/// Stack of one function, in bytes below r10.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackUse {
    /// Deepest byte that is certainly used.
    pub seen: u32,
    /// Bytes to reserve: [`MAX_STACK`] when r10's address escapes, else `seen` rounded up to 16.
    pub reserve: u32,
}

/// One function of a program. The first one is the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Func {
    /// First slot.
    pub start: usize,
    /// One past the last slot.
    pub end: usize,
    /// Its stack.
    pub stack: StackUse,
}

/// A structurally valid program. Slot indices are those of the bytecode: `lddw` takes two.
#[derive(Clone, Debug)]
pub struct Program {
    pub(crate) insns: Vec<Insn>,
    pub(crate) ops: Vec<Op>,
    pub(crate) funcs: Vec<Func>,
    pub(crate) targets: Vec<bool>,
    pub(crate) reachable: Vec<bool>,
    pub(crate) maps: Vec<MapIdx>,
    pub(crate) callbacks: bool,
    pub(crate) hash: u64,
}

impl Program {
    /// The bytecode it was decoded from.
    pub fn insns(&self) -> &[Insn] {
        &self.insns
    }

    /// One op per slot.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// The functions, by first slot.
    pub fn funcs(&self) -> &[Func] {
        &self.funcs
    }

    /// Whether some jump goes to this slot.
    pub fn is_target(&self, slot: usize) -> bool {
        self.targets.get(slot).copied().unwrap_or(false)
    }

    /// Whether control flow can reach this slot. Values are not considered.
    pub fn is_reachable(&self, slot: usize) -> bool {
        self.reachable.get(slot).copied().unwrap_or(false)
    }

    /// The maps that the program refers to, each once, in order of index.
    pub fn maps_used(&self) -> &[MapIdx] {
        &self.maps
    }

    /// The helpers that reachable code calls, with repetitions.
    pub fn helpers_used(&self) -> impl Iterator<Item = u32> + '_ {
        self.reachable_ops().filter_map(|op| match op {
            Op::Call(Callee::Helper(id)) => Some(*id),
            _ => None,
        })
    }

    /// FNV-1a of the bytecode.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Whether addresses of functions are handed to helpers as callbacks.
    pub fn has_callbacks(&self) -> bool {
        self.callbacks
    }

    /// Narrows the stack of a function to what the verifier proved: `depth` bytes below r10 hold every
    /// access, by whatever pointer.
    pub fn set_stack_depth(&mut self, func: usize, depth: u32) {
        if let Some(func) = self.funcs.get_mut(func) {
            func.stack.reserve = depth.max(func.stack.seen).next_multiple_of(16).min(MAX_STACK);
        }
    }

    /// Narrows reachability to what the verifier visited: the compiler leaves the rest out. `live` has one
    /// entry per slot.
    pub fn retain_live(&mut self, live: &[bool]) {
        for (slot, reachable) in self.reachable.iter_mut().enumerate() {
            *reachable &= live.get(slot).copied().unwrap_or(false);
        }
    }

    fn reachable_ops(&self) -> impl Iterator<Item = &Op> {
        self.ops.iter().zip(&self.reachable).filter(|(_, reachable)| **reachable).map(|(op, _)| op)
    }
}
