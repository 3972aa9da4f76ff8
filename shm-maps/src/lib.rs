//! BPF maps, rings and session records in shared memory.
//!
//! Rules that a change here must respect:
//!
//! 1. **A map is its memfd.** Header page, then data; sealed against resizing before anyone else can
//!    hold it, so no peer can raise SIGBUS in us. Nothing else names it and nothing is left behind.
//! 2. **Nobody trusts bytes a peer can write.** Shared memory holds indices and sizes, never pointers.
//!    Attributes are validated and copied private when the map is opened ([`map::Map::open`]); every
//!    index read later is compared with the private capacity before use; every walk has a step budget.
//!    A hostile peer can spoil values. It can not make us leave the mapping, loop for ever or panic.
//! 3. **The program side runs at any instruction of a foreign process**: no malloc, no panic, no libc
//!    call (system calls are raw, copies are ours: see `copy.rs`), nothing a signal handler nested
//!    on the same thread could deadlock on.
//! 4. **Death between any two stores is a normal event.** Hash maps are lock-free; the one lock
//!    (ring buffer reserve) records its owner; whatever a dead process held is found by `recover`.
//! 5. **The kernel is the oracle.** An errno, a flag, an order of keys: ask `bpf(2)` and put the
//!    question into `tests/semantics.rs`, which runs on both.
//! 6. **All-zero memory is a valid empty map.** Creation touches one page, whatever max_entries says.
//! 7. Adding a map type is a row in `map/table.rs`, one file that implements `Ops`, and a test.

mod copy;
pub mod map;
mod region;
pub mod ring;
pub mod session;
pub mod uapi;

pub use map::{Cpus, Map, MapDef, TaskStorage};
pub use ring::{PerfRing, Posted, RingBuf, UserRing};
pub use rustix::io::Errno;

/// `ENOTSUPP`: kernel-internal, yet bpf(2) returns it to user space (include/linux/errno.h).
pub const ENOTSUPP: Errno = Errno::from_raw_os_error(524);

/// What a helper returns for `e`: the negated errno in a register.
#[inline]
pub(crate) fn neg(e: Errno) -> i64 {
    -i64::from(e.raw_os_error())
}

/// Rounds up to the eight bytes that every value and stack slot in the BPF ABI is aligned to.
#[inline]
pub(crate) const fn round8(n: usize) -> usize {
    (n + 7) & !7
}

/// What processors fetch at once, two lines of 64 bytes: what CPUs write lies as far apart.
pub(crate) const LINES: usize = 128;

/// The page size of every platform we run on; file offsets and ring sizes are multiples of it.
pub const PAGE: usize = 4096;
