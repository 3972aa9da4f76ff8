//! Rings from programs to the tool: BPF ring buffers (many producers) and perf buffers (one per CPU slot).

mod lock;
mod mapping;
mod perf;
mod ringbuf;
mod user;

pub use lock::LockId;
pub(crate) use lock::OwnedLock;
pub use mapping::Piece;
pub use perf::{PerfRing, Sample};
pub use ringbuf::RingBuf;
pub use user::UserRing;

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;

/// The outcome of a producer's operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Posted {
    /// What the helper returns: 0 or a negated errno.
    pub ret: i64,
    /// A consumer waits and must be woken: FUTEX_WAKE on the ring's `armed` word.
    pub wake: bool,
}

/// Whether the consumer wants to be woken.
///
/// The consumer sets it, looks for data once more, and sleeps while it is set (FUTEX_WAIT with value 1). The
/// producer publishes data, then takes it. Both in SeqCst order: either the consumer sees the data or the
/// producer sees the wish.
#[repr(transparent)]
pub struct Armed(AtomicU32);

impl Armed {
    /// Consumer: about to wait.
    pub fn arm(&self) {
        self.0.swap(1, SeqCst);
    }

    /// Consumer: not waiting any more.
    pub fn disarm(&self) {
        self.0.store(0, SeqCst);
    }

    /// Producer: true for the one who must wake.
    #[inline]
    pub fn take(&self) -> bool {
        self.0.load(SeqCst) != 0 && self.0.swap(0, SeqCst) != 0
    }

    /// The futex word.
    pub fn word(&self) -> &AtomicU32 {
        &self.0
    }
}
