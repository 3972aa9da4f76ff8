//! The borders of our code in the tool: no panic of ours crosses into it, and nothing of ours stays on its stack.

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How much of the stack below a call may have traces of ours: little more than functions of the C library use.
pub const SHALLOW: usize = 4 << 10;
/// The same for calls that make objects or change them.
pub const DEEP: usize = 16 << 10;
/// The same for the compiler.
pub const DEEPEST: usize = 64 << 10;

/// Runs `ours`; when it panics, `theirs`. Then the stack below is zeros.
///
/// Tools have variables that they forget to initialise. libbcc closes such a one as a descriptor, if it is positive
/// (`ModulePath`, for a perf map that is missing). After a system call it holds what their own frames left there; with
/// ours in between it was the number of an open perf event now and then, which ended a probe.
#[inline(always)]
pub fn guard<T>(ours: impl FnOnce() -> T, theirs: impl FnOnce() -> T) -> T {
    guard_to::<SHALLOW, T>(ours, theirs)
}

/// As [`guard`], with so many bytes of zeros.
#[inline(always)]
pub fn guard_to<const N: usize, T>(ours: impl FnOnce() -> T, theirs: impl FnOnce() -> T) -> T {
    let answer = apart(ours, theirs);
    wipe::<N>();
    answer
}

/// In a frame of its own, which is below that of whoever wipes.
#[inline(never)]
fn apart<T>(ours: impl FnOnce() -> T, theirs: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(ours)) {
        Ok(v) => v,
        Err(_) => theirs(),
    }
}

#[inline(never)]
fn wipe<const N: usize>() {
    let mut stack = MaybeUninit::<[u8; N]>::uninit();
    black_box(&mut stack);
    stack = MaybeUninit::zeroed();
    black_box(&mut stack);
}
