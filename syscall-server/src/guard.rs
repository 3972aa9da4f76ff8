//! No panic of ours crosses into the tool.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `ours`; when it panics, `theirs`.
pub fn guard<T>(ours: impl FnOnce() -> T, theirs: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(ours)) {
        Ok(v) => v,
        Err(_) => theirs(),
    }
}
