//! What keeps pinned objects when their tool is gone: one process per runtime directory, `bpftime-agent hold`.
//!
//! It is a tool like any other, whose descriptors are the pins: it has a session, answers questions about its objects,
//! and attaches the links that it keeps. An agent that knows a link of the same id from an older session lets the
//! holder's wait, and changes over when that session or its link goes, in one step. The process is there as long as a
//! file stands for something that it keeps, or a descriptor that it gave away holds a link.

mod client;
mod serve;

use std::sync::atomic::{AtomicBool, Ordering};

pub use client::{pin, pinned};
pub use serve::serve;

static IS_THIS: AtomicBool = AtomicBool::new(false);

/// Whether this process is the holder.
pub fn is_this() -> bool {
    IS_THIS.load(Ordering::Relaxed)
}

/// Suffix of the holder's socket.
const SUFFIX: &str = ".pins";
/// The file whose lock a tool has while it pins, and the holder while it ends.
const LOCK: &str = "pins.lock";
