//! Calls of helpers that need no call: what they return is in the run's header, or is an address that the loader
//! knows how to compute.

use super::values::{Regs, Value};
use crate::contract::{COOKIE_OFFSET, CPU_OFFSET, FUNC_IP_OFFSET, HashTable, PID_TGID_OFFSET};
use crate::isa::{Callee, MapIdx, Op, fnv1a};
use crate::program::Program;
use std::mem::offset_of;

/// What the compiler may know of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapLayout {
    /// An array, whose elements are at [`Symbol::MapElements`](crate::image::Symbol).
    Array(ArrayLayout),
    /// A hash map, whose handle begins with a [`HashTable`](crate::contract::HashTable).
    Hash(HashLayout),
}

impl MapLayout {
    /// A number for what the compiler was told of maps, by index: FNV-1a, folded. Code made for one may only run with another
    /// of the same number.
    pub fn digest(maps: &[Option<MapLayout>]) -> u32 {
        let words = |map: &Option<MapLayout>| match *map {
            None => [0; 5],
            Some(MapLayout::Array(ArrayLayout { entries, value_size, stride, cpu_stride })) => {
                // No stride between CPUs is that large.
                [1, entries.into(), value_size.into(), stride.into(), cpu_stride.unwrap_or(u64::MAX)]
            }
            Some(MapLayout::Hash(HashLayout { key_size, value_size, percpu })) => {
                [2, key_size.into(), value_size.into(), percpu.into(), 0]
            }
        };
        let hash = fnv1a(maps.iter().flat_map(words).flat_map(u64::to_le_bytes));
        (hash ^ hash >> 32) as u32
    }
}

/// How the elements of an array map lie in memory, behind [`Symbol::MapElements`](crate::image::Symbol).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArrayLayout {
    /// Number of elements.
    pub entries: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Bytes from one element to the next.
    pub stride: u32,
    /// Bytes from the elements of one CPU to those of the next; `None` when all CPUs share them.
    pub cpu_stride: Option<u64>,
}

/// What calls for a hash map can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashLayout {
    /// Bytes of a key. Lookups by 4 or 8 are inlined.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Each CPU has a value of its own, and updates it in place.
    pub percpu: bool,
}

/// What stands for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intrinsic {
    /// A field of the run's header: offset and bytes (4 or 8).
    Field(i32, u32),
    /// A lookup in an array by the u32 that r2 points to.
    Lookup(MapIdx, ArrayLayout),
    /// The value that r3 points to over the element of the u32 that r2 points to.
    Overwrite(MapIdx, ArrayLayout),
    /// An operation on a hash map.
    Hash(HashOp, HashLayout),
}

/// How an operation on a hash map is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HashOp {
    /// Code that finds the element, if it is the first of its chain; else the map's function.
    Lookup,
    /// The same, and the value is written in place.
    Overwrite,
    /// The map's function, by offset in its [`HashTable`](crate::contract::HashTable).
    Call(i32),
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
/// `bpf_map_update_elem`.
pub(crate) const UPDATE: u32 = 2;
const DELETE: u32 = 3;
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
        LOOKUP | UPDATE | DELETE => {
            let Value::Map(map) = regs[1] else { return None };
            match (id, (*env.maps.get(map.0 as usize)?)?) {
                (LOOKUP, MapLayout::Array(layout)) => Intrinsic::Lookup(map, layout),
                (UPDATE, MapLayout::Array(layout)) if overwrites(layout.value_size, regs[4]) => {
                    Intrinsic::Overwrite(map, layout)
                }
                (_, MapLayout::Array(_)) => return None,
                (id, MapLayout::Hash(layout)) => Intrinsic::Hash(hash_op(id, layout, regs[4]), layout),
            }
        }
        _ => return None,
    })
}

/// Values up to this size are written by inlined code.
const OVERWRITTEN: u32 = 64;
/// `BPF_ANY`.
const ANY: u64 = 0;

fn overwrites(value_size: u32, flags: Value) -> bool {
    value_size <= OVERWRITTEN && value_size.is_multiple_of(4) && flags == Value::Number(ANY)
}

fn hash_op(id: u32, layout: HashLayout, flags: Value) -> HashOp {
    let sized = matches!(layout.key_size, 4 | 8);
    match id {
        LOOKUP if sized => HashOp::Lookup,
        LOOKUP => HashOp::Call(offset_of!(HashTable, lookup) as i32),
        UPDATE if sized && layout.percpu && overwrites(layout.value_size, flags) => HashOp::Overwrite,
        UPDATE => HashOp::Call(offset_of!(HashTable, update) as i32),
        _ => HashOp::Call(offset_of!(HashTable, delete) as i32),
    }
}
