//! The contract between generated code, helpers and whoever runs a program: one calling convention, one
//! header. Both sides compile against this file; the layout is asserted here and nowhere else.
//!
//! Every function of a program and every helper is a [`BpfFn`]: r1-r5 in the five argument registers, the
//! run in the sixth, r0 as result. Compiled code uses no string instruction (movs, stos, scas and their like): a probe may
//! stand where the direction flag is set, and whoever runs the program leaves it so. A helper that takes a callback gets the address of a [`BpfFn`] and calls
//! it the same way, with the run it was given.

/// A compiled function of a program, or a helper.
///
/// # Safety
/// `run` points to a [`RunHeader`] that nobody else writes during the call. What r1-r5 must be is up to the
/// callee; a compiled program dereferences them as its bytecode says.
pub type BpfFn = unsafe extern "C" fn(u64, u64, u64, u64, u64, *mut RunHeader) -> u64;

/// First field of the runner's own per-run state: what generated code reads without calling anybody.
///
/// | field | written by | read by |
/// |---|---|---|
/// | fuel | the runner before a run; generated code during it | both |
/// | pid_tgid, cookie, func_ip, cpu | the runner before a run | generated code, in place of the helper |
///
/// A helper that calls back into the program takes one from `fuel` before each call, and returns as soon as
/// it is negative. Other helpers leave it alone: generated code keeps it in a register across their calls,
/// unless the program passes callbacks.
#[repr(C)]
#[derive(Debug)]
pub struct RunHeader {
    /// Back-edges and local calls that may still be taken. Once it is negative every function of the
    /// program returns 0 at its next back-edge or call, so a program cannot hang its host.
    pub fuel: i64,
    /// What `bpf_get_current_pid_tgid` returns.
    pub pid_tgid: u64,
    /// What `bpf_get_attach_cookie` returns.
    pub cookie: u64,
    /// What `bpf_get_func_ip` returns.
    pub func_ip: u64,
    /// What `bpf_get_smp_processor_id` returns: the CPU slot that this run owns, and the index of its values
    /// in per-CPU maps.
    pub cpu: u32,
    /// Zero; keeps the size a multiple of eight.
    pub reserved: u32,
}

impl RunHeader {
    /// A run with fuel and nothing else: tests and tools without a process behind them.
    pub const fn with_fuel(fuel: i64) -> RunHeader {
        RunHeader { fuel, pid_tgid: 0, cookie: 0, func_ip: 0, cpu: 0, reserved: 0 }
    }
}

/// Offset of [`RunHeader::fuel`], as generated code uses it.
pub const FUEL_OFFSET: i32 = 0;
/// Offset of [`RunHeader::pid_tgid`].
pub const PID_TGID_OFFSET: i32 = 8;
/// Offset of [`RunHeader::cookie`].
pub const COOKIE_OFFSET: i32 = 16;
/// Offset of [`RunHeader::func_ip`].
pub const FUNC_IP_OFFSET: i32 = 24;
/// Offset of [`RunHeader::cpu`].
pub const CPU_OFFSET: i32 = 32;

const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(RunHeader, fuel) == FUEL_OFFSET as usize);
    assert!(offset_of!(RunHeader, pid_tgid) == PID_TGID_OFFSET as usize);
    assert!(offset_of!(RunHeader, cookie) == COOKIE_OFFSET as usize);
    assert!(offset_of!(RunHeader, func_ip) == FUNC_IP_OFFSET as usize);
    assert!(offset_of!(RunHeader, cpu) == CPU_OFFSET as usize);
    assert!(size_of::<RunHeader>() == 40 && align_of::<RunHeader>() == 8);
};

/// What the handle of a map begins with, if the compiler was told that it is a hash map
/// ([`MapLayout::Hash`](crate::MapLayout)): generated code looks elements up by itself and calls the map's own functions.
///
/// Memory behind `heads` and `nodes` may be written by anyone at any time. The way to an element:
///
/// 1. `x` is the key, as a number of its 4 or 8 bytes, exclusive or `salt`; `h` the exclusive or of both halves of the 128-bit
///    product of `x` and [`HashTable::MULTIPLIER`]. The chain begins with the word `heads[h & mask]`.
/// 2. The lower half of a word is 0 at the end of the chain, or the number of a node. Above `capacity` it is forged.
/// 3. Node `n` is at `nodes + n * stride`. It begins with the word that leads to the next; the bit
///    [`HashTable::DELETED`] of it says that the node is no element. The key is at [`HashTable::KEY_AT`].
/// 4. What was read of the node counts if the word that led to it is the same afterwards.
/// 5. The value of a CPU below `values` is at `node_values + n * value_stride + cpu * cpu_stride`; shared values are as of
///    CPU 0, and `value_stride` is then `stride`.
///
/// Generated code follows the first step of a chain only; `lookup` and `update` know the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HashTable {
    /// Address of the heads.
    pub heads: u64,
    /// Number of heads less one.
    pub mask: u64,
    /// Mixed into keys.
    pub salt: u64,
    /// Address of node 0, which does not exist.
    pub nodes: u64,
    /// Bytes from node to node.
    pub stride: u64,
    /// Address of the value of node 0 of CPU 0.
    pub node_values: u64,
    /// Bytes from a node's value to the next node's.
    pub value_stride: u64,
    /// Bytes from one CPU's value to the next CPU's.
    pub cpu_stride: u64,
    /// Number of nodes.
    pub capacity: u32,
    /// CPUs that have a value in each node.
    pub values: u32,
    /// `bpf_map_lookup_elem` for this map. What these three return for its handle and well-formed arguments is what the
    /// helpers return.
    pub lookup: BpfFn,
    /// `bpf_map_update_elem` for this map.
    pub update: BpfFn,
    /// `bpf_map_delete_elem` for this map.
    pub delete: BpfFn,
}

impl HashTable {
    /// What keys are multiplied by.
    pub const MULTIPLIER: u64 = 0xe703_7ed1_a0b4_28db;
    /// Bit of a node's first word.
    pub const DELETED: u64 = 1 << 32;
    /// Bytes from a node to its key.
    pub const KEY_AT: i32 = 16;
}

/// Fuel left behind by a poisoned call: the run was aborted, it did not loop too long.
pub const FUEL_ABORTED: i64 = i64::MIN;

/// r0 after a tail call that found no program and fell through: -EINVAL, as helpers spell failure.
/// The helper itself returns the address of the program's entry, or 0 to fall through.
pub const TAIL_CALL_FAILED: i64 = -22;

/// Tail calls that a run may make, the kernel's `MAX_TAIL_CALL_CNT`. The helper counts: generated code calls
/// the target and each link of the chain is a native frame.
pub const MAX_TAIL_CALLS: u32 = 33;
