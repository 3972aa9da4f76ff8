//! The contract between generated code, helpers and whoever runs a program: one calling convention, one
//! header. Both sides compile against this file; the layout is asserted here and nowhere else.
//!
//! Every function of a program and every helper is a [`BpfFn`]: r1-r5 in the five argument registers, the
//! run in the sixth, r0 as result. A helper that takes a callback gets the address of a [`BpfFn`] and calls
//! it the same way, with the run it was given.

/// A compiled function of a program, or a helper.
///
/// # Safety
/// `run` points to a [`RunHeader`] that nobody else writes during the call. What r1-r5 must be is up to the
/// callee; a compiled program dereferences them as its bytecode says.
pub type BpfFn = unsafe extern "C" fn(u64, u64, u64, u64, u64, *mut RunHeader) -> u64;

/// First field of the runner's own per-run state.
///
/// | field | written by | read by |
/// |---|---|---|
/// | fuel | the runner before a run; generated code during it | both |
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
}

/// Offset of [`RunHeader::fuel`], as generated code uses it.
pub const FUEL_OFFSET: i32 = 0;

const _: () = assert!(std::mem::offset_of!(RunHeader, fuel) == FUEL_OFFSET as usize);
const _: () = assert!(size_of::<RunHeader>() == 8 && align_of::<RunHeader>() == 8);

/// Fuel left behind by a poisoned call: the run was aborted, it did not loop too long.
pub const FUEL_ABORTED: i64 = i64::MIN;

/// r0 after a tail call that found no program and fell through: -EINVAL, as helpers spell failure.
/// The helper itself returns the address of the program's entry, or 0 to fall through.
pub const TAIL_CALL_FAILED: i64 = -22;

/// Tail calls that a run may make, the kernel's `MAX_TAIL_CALL_CNT`. The helper counts: generated code calls
/// the target and each link of the chain is a native frame.
pub const MAX_TAIL_CALLS: u32 = 33;
