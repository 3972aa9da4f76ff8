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

/// Fuel left behind by a poisoned call: the run was aborted, it did not loop too long.
pub const FUEL_ABORTED: i64 = i64::MIN;

/// r0 after a tail call that found no program and fell through: -EINVAL, as helpers spell failure.
/// The helper itself returns the address of the program's entry, or 0 to fall through.
pub const TAIL_CALL_FAILED: i64 = -22;

/// Tail calls that a run may make, the kernel's `MAX_TAIL_CALL_CNT`. The helper counts: generated code calls
/// the target and each link of the chain is a native frame.
pub const MAX_TAIL_CALLS: u32 = 33;
