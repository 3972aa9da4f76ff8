//! The map types: one row each drives MAP_CREATE's validation and the dispatch of operations.
//! The errno of every rule was asked from Linux 6.18 (`tests/create.rs` asks again).

use super::MapDef;
use super::array::{Array, PercpuArray};
use super::bloom::Bloom;
use super::fd_array::FdArray;
use super::hash::Hash;
use super::lpm::{self, LpmTrie};
use super::map_in_map::{ArrayOfMaps, HashOfMaps};
use super::perf_array::PerfEventArray;
use super::queue::Queue;
use super::ringbuf::{RingBufMap, UserRingMap};
use super::stack_trace::StackTrace;
use super::task_storage::TaskStorage;
use crate::ENOTSUPP;
use crate::uapi::*;
use rustix::io::Errno;

/// Which sizes a type takes for its keys or values; anything else is EINVAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// The type has none: 0.
    None,
    /// This many bytes.
    Bytes(u32),
    /// Any but 0; `check` may bound it.
    Any,
}

impl Size {
    fn admits(self, size: u32) -> bool {
        match self {
            Size::None => size == 0,
            Size::Bytes(n) => size == n,
            Size::Any => size != 0,
        }
    }
}

/// One row.
#[derive(Debug)]
pub struct MapType {
    /// BPF_MAP_TYPE_*
    pub id: u32,
    /// The uapi name without its prefix.
    pub name: &'static str,
    /// map_flags MAP_CREATE accepts.
    pub flags: u32,
    /// key_size
    pub key: Size,
    /// value_size
    pub value: Size,
    check: fn(&MapDef) -> Result<(), Errno>,
}

const ACCESS: u32 = BPF_F_RDONLY | BPF_F_WRONLY;
const PROG_ACCESS: u32 = BPF_F_RDONLY_PROG | BPF_F_WRONLY_PROG;
const HASH_FLAGS: u32 = BPF_F_NO_PREALLOC | BPF_F_ZERO_SEED | ACCESS | PROG_ACCESS;
const LRU_FLAGS: u32 = HASH_FLAGS | BPF_F_NO_COMMON_LRU;
const QUEUE_FLAGS: u32 = BPF_F_NUMA_NODE | ACCESS | PROG_ACCESS;
const FD_FLAGS: u32 = BPF_F_NUMA_NODE | ACCESS;

macro_rules! map_types {
    ($d:tt $($NAME:ident = $id:ident: $Imp:ident { flags: $flags:expr, key: $key:expr, value: $value:expr, check: $check:path })*) => {
        /// Every type this crate implements.
        pub static MAP_TYPES: &[MapType] = &[$(MapType {
            id: $id, name: stringify!($NAME), flags: $flags, key: $key, value: $value, check: $check,
        }),*];

        /// An open map's implementation, by type.
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)] // the uapi's names
        pub(crate) enum Kind { $($NAME($Imp)),* }

        impl Kind {
            /// The length of the memfd; `None` when it overflows.
            pub fn file_len(def: &MapDef, cpus: u32) -> Option<usize> {
                match def.map_type { $($id => <$Imp as super::Ops>::file_len(def, cpus),)* _ => None }
            }

            /// Maps the memfd and prepares the private side.
            pub fn open(shm: super::Shm<'_>) -> Result<(crate::region::Region, Kind), Errno> {
                match shm.def.map_type {
                    $($id => { let (region, imp) = <$Imp as super::Ops>::open(shm)?; Ok((region, Kind::$NAME(imp))) })*
                    _ => Err(Errno::INVAL),
                }
            }
        }

        /// Static dispatch: `with_kind!(kind, m => m.lookup(key))`.
        macro_rules! with_kind {
            ($d kind:expr, $d m:ident => $d e:expr) => { match $d kind { $($crate::map::table::Kind::$NAME($d m) => $d e),* } };
        }
        pub(crate) use with_kind;
    };
}

map_types! { $
    HASH = BPF_MAP_TYPE_HASH: Hash { flags: HASH_FLAGS | BPF_F_NUMA_NODE, key: Size::Any, value: Size::Any, check: check_hash }
    ARRAY = BPF_MAP_TYPE_ARRAY: Array { flags: BPF_F_NUMA_NODE | BPF_F_MMAPABLE | BPF_F_INNER_MAP | ACCESS | PROG_ACCESS, key: Size::Bytes(4), value: Size::Any, check: check_array }
    PROG_ARRAY = BPF_MAP_TYPE_PROG_ARRAY: FdArray { flags: FD_FLAGS, key: Size::Bytes(4), value: Size::Bytes(4), check: check_nothing }
    PERF_EVENT_ARRAY = BPF_MAP_TYPE_PERF_EVENT_ARRAY: PerfEventArray { flags: FD_FLAGS | BPF_F_PRESERVE_ELEMS, key: Size::Bytes(4), value: Size::Bytes(4), check: check_nothing }
    PERCPU_HASH = BPF_MAP_TYPE_PERCPU_HASH: Hash { flags: HASH_FLAGS, key: Size::Any, value: Size::Any, check: check_percpu_hash }
    PERCPU_ARRAY = BPF_MAP_TYPE_PERCPU_ARRAY: PercpuArray { flags: ACCESS | PROG_ACCESS, key: Size::Bytes(4), value: Size::Any, check: check_percpu }
    STACK_TRACE = BPF_MAP_TYPE_STACK_TRACE: StackTrace { flags: FD_FLAGS | BPF_F_STACK_BUILD_ID, key: Size::Bytes(4), value: Size::Any, check: check_stack }
    LRU_HASH = BPF_MAP_TYPE_LRU_HASH: Hash { flags: LRU_FLAGS | BPF_F_NUMA_NODE, key: Size::Any, value: Size::Any, check: check_lru_hash }
    LRU_PERCPU_HASH = BPF_MAP_TYPE_LRU_PERCPU_HASH: Hash { flags: LRU_FLAGS, key: Size::Any, value: Size::Any, check: check_lru_percpu_hash }
    LPM_TRIE = BPF_MAP_TYPE_LPM_TRIE: LpmTrie { flags: BPF_F_NO_PREALLOC | BPF_F_NUMA_NODE | ACCESS | PROG_ACCESS, key: Size::Any, value: Size::Any, check: check_lpm }
    ARRAY_OF_MAPS = BPF_MAP_TYPE_ARRAY_OF_MAPS: ArrayOfMaps { flags: FD_FLAGS, key: Size::Bytes(4), value: Size::Bytes(4), check: check_outer }
    HASH_OF_MAPS = BPF_MAP_TYPE_HASH_OF_MAPS: HashOfMaps { flags: HASH_FLAGS | BPF_F_NUMA_NODE, key: Size::Any, value: Size::Bytes(4), check: check_hash_of_maps }
    QUEUE = BPF_MAP_TYPE_QUEUE: Queue { flags: QUEUE_FLAGS, key: Size::None, value: Size::Any, check: check_queue }
    STACK = BPF_MAP_TYPE_STACK: Queue { flags: QUEUE_FLAGS, key: Size::None, value: Size::Any, check: check_queue }
    BLOOM_FILTER = BPF_MAP_TYPE_BLOOM_FILTER: Bloom { flags: QUEUE_FLAGS | BPF_F_ZERO_SEED, key: Size::None, value: Size::Any, check: check_bloom }
    CGROUP_ARRAY = BPF_MAP_TYPE_CGROUP_ARRAY: FdArray { flags: FD_FLAGS, key: Size::Bytes(4), value: Size::Bytes(4), check: check_nothing }
    RINGBUF = BPF_MAP_TYPE_RINGBUF: RingBufMap { flags: BPF_F_NUMA_NODE, key: Size::None, value: Size::None, check: check_ringbuf }
    USER_RINGBUF = BPF_MAP_TYPE_USER_RINGBUF: UserRingMap { flags: BPF_F_NUMA_NODE, key: Size::None, value: Size::None, check: check_ringbuf }
    TASK_STORAGE = BPF_MAP_TYPE_TASK_STORAGE: TaskStorage { flags: BPF_F_NO_PREALLOC | BPF_F_CLONE, key: Size::Bytes(4), value: Size::Any, check: check_storage }
}

/// KMALLOC_MAX_SIZE
const KMALLOC_MAX: u32 = 4 << 20;
/// What is left of it in a node of a trie with the longest data.
const VALUE_MAX: u64 = KMALLOC_MAX as u64 - 256 - 40;
/// KMALLOC_MAX_SIZE - sizeof(struct htab_elem): the sum of key and value must stay below.
const HASH_ELEM_MAX: u64 = (4 << 20) - 48;
/// U32_MAX / sizeof(struct bucket) buckets, of which there is a power of two.
const HASH_ENTRIES_MAX: u32 = 1 << 27;
/// U16_MAX - sizeof(struct bpf_local_storage_elem)
const STORAGE_VALUE_MAX: u32 = 65535 - 128;
/// PCPU_MIN_UNIT_SIZE: the largest allocation per CPU.
const PERCPU_VALUE_MAX: u32 = 32 << 10;

/// The row of `map_type`.
pub fn row(map_type: u32) -> Option<&'static MapType> {
    MAP_TYPES.iter().find(|row| row.id == map_type)
}

/// MAP_CREATE's validation of everything but memory.
pub fn check(def: &MapDef) -> Result<(), Errno> {
    let row = row(def.map_type).ok_or(Errno::INVAL)?;
    let both = |pair: u32| def.map_flags & pair == pair;
    // A Bloom filter's number of hash functions.
    let extra = if def.map_type == BPF_MAP_TYPE_BLOOM_FILTER { 15 } else { 0 };
    let valid = name_is_valid(&def.name)
        && def.map_flags & !row.flags == 0
        && !both(ACCESS)
        && !both(PROG_ACCESS)
        && def.map_extra & !extra == 0
        && (def.max_entries != 0) != (def.map_type == BPF_MAP_TYPE_TASK_STORAGE)
        && row.key.admits(def.key_size)
        && row.value.admits(def.value_size);
    if !valid {
        return Err(Errno::INVAL);
    }
    (row.check)(def)
}

/// Letters, digits, `_` and `.`, ended by a zero byte.
fn name_is_valid(name: &[u8; 16]) -> bool {
    let text = name.split(|&b| b == 0).next().unwrap_or(&[]);
    text.len() < name.len() && text.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
}

fn check_nothing(_: &MapDef) -> Result<(), Errno> {
    Ok(())
}

fn check_hash(def: &MapDef) -> Result<(), Errno> {
    let elem = u64::from(def.key_size) + u64::from(def.value_size);
    if elem >= HASH_ELEM_MAX || def.max_entries > HASH_ENTRIES_MAX {
        return Err(Errno::TOOBIG);
    }
    Ok(())
}

fn check_percpu(def: &MapDef) -> Result<(), Errno> {
    if def.value_size > PERCPU_VALUE_MAX { Err(Errno::TOOBIG) } else { Ok(()) }
}

fn check_percpu_hash(def: &MapDef) -> Result<(), Errno> {
    check_percpu(def)?;
    check_hash(def)
}

fn check_lru_hash(def: &MapDef) -> Result<(), Errno> {
    if def.map_flags & BPF_F_NO_PREALLOC != 0 {
        return Err(ENOTSUPP);
    }
    if def.map_flags & BPF_F_NO_COMMON_LRU != 0 && def.map_flags & BPF_F_NUMA_NODE != 0 {
        return Err(Errno::INVAL);
    }
    check_hash(def)
}

fn check_lru_percpu_hash(def: &MapDef) -> Result<(), Errno> {
    check_percpu(def)?;
    check_lru_hash(def)
}

fn check_storage(def: &MapDef) -> Result<(), Errno> {
    let typed = def.btf_key_type_id != 0 && def.btf_value_type_id != 0;
    if def.map_flags & BPF_F_NO_PREALLOC == 0 || !typed {
        return Err(Errno::INVAL);
    }
    if def.value_size > STORAGE_VALUE_MAX { Err(Errno::TOOBIG) } else { Ok(()) }
}

/// The server made the template of a map that exists; a forged header could say anything.
fn check_outer(def: &MapDef) -> Result<(), Errno> {
    let known = row(def.inner.map_type).is_some();
    let holds_others = matches!(
        def.inner.map_type,
        BPF_MAP_TYPE_PROG_ARRAY | BPF_MAP_TYPE_ARRAY_OF_MAPS | BPF_MAP_TYPE_HASH_OF_MAPS
    );
    if known && !holds_others { Ok(()) } else { Err(Errno::INVAL) }
}

fn check_hash_of_maps(def: &MapDef) -> Result<(), Errno> {
    check_outer(def)?;
    check_hash(def)
}

fn check_lpm(def: &MapDef) -> Result<(), Errno> {
    let data = def.key_size.saturating_sub(lpm::PREFIX as u32);
    if def.map_flags & BPF_F_NO_PREALLOC == 0 || !(lpm::DATA_MIN..=lpm::DATA_MAX).contains(&data) {
        return Err(Errno::INVAL);
    }
    if u64::from(def.value_size) > VALUE_MAX { Err(Errno::INVAL) } else { Ok(()) }
}

fn check_queue(def: &MapDef) -> Result<(), Errno> {
    if def.value_size > KMALLOC_MAX { Err(Errno::TOOBIG) } else { Ok(()) }
}

fn check_bloom(def: &MapDef) -> Result<(), Errno> {
    if def.value_size > KMALLOC_MAX { Err(Errno::TOOBIG) } else { Ok(()) }
}

fn check_array(def: &MapDef) -> Result<(), Errno> {
    if def.value_size > i32::MAX as u32 { Err(Errno::TOOBIG) } else { Ok(()) }
}

fn check_stack(def: &MapDef) -> Result<(), Errno> {
    let frame = if def.map_flags & BPF_F_STACK_BUILD_ID != 0 { BUILD_ID_SIZE } else { 8 };
    if !def.value_size.is_multiple_of(frame) || def.value_size / frame > PERF_MAX_STACK_DEPTH {
        return Err(Errno::INVAL);
    }
    if def.max_entries > 1 << 31 { Err(Errno::TOOBIG) } else { Ok(()) }
}

fn check_ringbuf(def: &MapDef) -> Result<(), Errno> {
    let size = def.max_entries;
    if size.is_power_of_two() && (size as usize).is_multiple_of(crate::PAGE) {
        Ok(())
    } else {
        Err(Errno::INVAL)
    }
}
