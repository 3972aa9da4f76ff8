//! Calls of helpers that need no call: what they return is in the run's header, or is an address that the loader
//! knows how to compute.

use super::values::{Regs, Value};
use crate::contract::{COOKIE_OFFSET, CPU_OFFSET, FUNC_IP_OFFSET, PID_TGID_OFFSET};
use crate::isa::{Callee, MapIdx, Op};
use crate::program::Program;

/// How the elements of an array map lie in memory, behind [`Symbol::MapElements`](crate::image::Symbol).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapLayout {
    /// Number of elements.
    pub entries: u32,
    /// Bytes from one element to the next.
    pub stride: u32,
    /// Bytes from the elements of one CPU to those of the next; `None` when all CPUs share them.
    pub cpu_stride: Option<u64>,
}

/// What stands for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intrinsic {
    /// A field of the run's header: offset and bytes (4 or 8).
    Field(i32, u32),
    /// A lookup in an array by the u32 that r2 points to.
    Lookup(MapIdx, MapLayout),
}

/// What the loader says about helpers and maps.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Environment<'a> {
    /// Helper ids mean what they mean in the kernel.
    pub kernel_helpers: bool,
    /// By map index.
    pub maps: &'a [Option<MapLayout>],
}

/// `bpf_map_lookup_elem`.
const LOOKUP: u32 = 1;
const GET_SMP_PROCESSOR_ID: u32 = 8;
const GET_CURRENT_PID_TGID: u32 = 14;
const GET_FUNC_IP: u32 = 173;
const GET_ATTACH_COOKIE: u32 = 174;

/// What stands for the call at a slot, with these registers before it; `None` when it has to be made.
pub(crate) fn at(program: &Program, env: Environment<'_>, slot: usize, regs: &Regs) -> Option<Intrinsic> {
    let Op::Call(Callee::Helper(id)) = program.ops()[slot] else { return None };
    if !env.kernel_helpers {
        return None;
    }
    Some(match id {
        GET_SMP_PROCESSOR_ID => Intrinsic::Field(CPU_OFFSET, 4),
        GET_CURRENT_PID_TGID => Intrinsic::Field(PID_TGID_OFFSET, 8),
        GET_FUNC_IP => Intrinsic::Field(FUNC_IP_OFFSET, 8),
        GET_ATTACH_COOKIE => Intrinsic::Field(COOKIE_OFFSET, 8),
        LOOKUP => match regs[1] {
            Value::Map(map) => Intrinsic::Lookup(map, (*env.maps.get(map.0 as usize)?)?),
            _ => return None,
        },
        _ => return None,
    })
}
