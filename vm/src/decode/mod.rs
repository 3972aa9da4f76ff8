//! Bytes to instructions: the structural half of loading. What is refused here is refused by the kernel
//! before it looks at values; what values do is the verifier's business.
//!
//! Passes, each on the result of the one before: `slot` decodes slots one by one, `funcs` cuts the
//! program into functions and checks jumps, `reach` walks the control flow and settles helper calls,
//! `stack` bounds the stack of each function and of call chains.
#![forbid(unsafe_code)]

mod error;
mod funcs;
mod reach;
mod slot;
mod stack;

pub use error::{Class, LoadError, Reason};

use crate::isa::{Callee, Const, Insn, MAX_INSNS, MapIdx, Op, bytecode_hash};
use crate::program::Program;

/// What the loader knows and the decoder asks: which maps and helpers exist. Without maps unless it says otherwise.
pub trait LoadEnv {
    /// The map behind a file descriptor (`lddw` with src 1 and 2).
    fn map_by_fd(&mut self, _fd: i32) -> Option<MapIdx> {
        None
    }
    /// The map at an index of the load command's `fd_array` (`lddw` with src 5 and 6).
    fn map_by_index(&mut self, _idx: i32) -> Option<MapIdx> {
        None
    }
    /// Bytes of the value that direct access may point into; `None` when the map type has none.
    fn map_value_len(&self, _map: MapIdx) -> Option<u32> {
        None
    }
    /// Whether programs may call this helper.
    fn helper_exists(&self, id: u32) -> bool;
    /// The helper that stands for the kernel function of this BTF id.
    fn kernel_function(&mut self, _btf_id: i32) -> Option<u32> {
        None
    }
    /// The kernel's name of a helper, for the message when it does not exist here.
    fn helper_name(&self, _id: u32) -> Option<&'static str> {
        None
    }
}

/// Which immediate operands are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Dialect {
    /// The kernel's: no division by an immediate zero, no immediate shift beyond the width.
    #[default]
    Kernel,
    /// RFC 9669's, which gives both a meaning.
    Rfc9669,
}

/// What happens to calls of helpers that do not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum UnknownHelpers {
    /// libbpf's poison ids abort the run when reached; any other is an error if the control flow reaches it.
    #[default]
    AcceptPoison,
    /// Every one that the control flow reaches is an error, poison too.
    Refuse,
    /// None is an error: all abort the run when reached. For a loader whose verifier reports the live ones.
    AcceptAll,
}

/// Choices of [`decode_with`].
#[derive(Clone, Copy, Debug, Default)]
pub struct DecodeOptions {
    /// Which immediate operands are refused.
    pub dialect: Dialect,
    /// What happens to calls of helpers that do not exist.
    pub unknown_helpers: UnknownHelpers,
}

/// Decodes and checks a program as the kernel would, accepting libbpf's poisoned calls.
pub fn decode(insns: &[Insn], env: &mut dyn LoadEnv) -> Result<Program, LoadError> {
    decode_with(insns, env, DecodeOptions::default())
}

/// Decodes and checks a program.
pub fn decode_with(
    insns: &[Insn],
    env: &mut dyn LoadEnv,
    options: DecodeOptions,
) -> Result<Program, LoadError> {
    if insns.is_empty() || insns.len() > MAX_INSNS {
        return Err(Reason::ProgramSize { got: insns.len(), limit: MAX_INSNS }.at(0));
    }
    let starts = funcs::starts(insns)?;
    let mut ops = slot::decode_all(insns, &starts, env, options.dialect)?;
    let funcs = funcs::cut(&ops, &starts)?;
    let reachable = reach::reachable(&ops, &funcs);
    reach::settle_helpers(&mut ops, &reachable, env, options.unknown_helpers)?;
    let mut program = Program {
        targets: funcs::targets(&ops),
        maps: maps_used(&ops),
        callbacks: ops.iter().any(|op| matches!(op, Op::LoadConst { value: Const::Func(_), .. })),
        hash: bytecode_hash(insns),
        insns: insns.to_vec(),
        ops,
        funcs,
        reachable,
    };
    stack::bound(&mut program)?;
    Ok(program)
}

fn maps_used(ops: &[Op]) -> Vec<MapIdx> {
    let map_of = |op: &Op| match op {
        Op::LoadConst { value: Const::Map(map) | Const::MapValue(map, _), .. } => Some(*map),
        _ => None,
    };
    let mut maps: Vec<_> = ops.iter().filter_map(map_of).collect();
    maps.sort_unstable();
    maps.dedup();
    maps
}

/// The function an op refers to, by call or by address.
fn func_of(op: &Op) -> Option<u32> {
    match op {
        Op::Call(Callee::Func(func)) | Op::LoadConst { value: Const::Func(func), .. } => Some(*func),
        _ => None,
    }
}
