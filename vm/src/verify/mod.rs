//! The verifier: walks every path of a program with typed, ranged values, and accepts the program only if
//! each access, call and exit on each of them is safe. Kernel-shaped: what it refuses, it refuses with the
//! errno and the words of the kernel's verifier, as far as we know them from asking it.
//!
//! Rules that a change here must respect:
//!
//! * Soundness is an inclusion: the concrete state of every run is a member of a state that was walked, or
//!   of one that a walked state is compared with ([`prune`]). Imprecision goes to "any number", never to
//!   "unreachable": only [`num::decide`] cuts a path.
//! * Nothing here depends on memory that a target can write, on time (but for the budget) or on order.
//! * `num` knows numbers, `state` what a path is, `live` what of it matters, `explore` the order of walking;
//!   `alu`, `branch`, `memory`, `field`, `stack`, `ctx`, `helper`, `args` and `call` judge one instruction each.
//! * Privileged rules, as for root on a kernel: stack that was never written may be read (the runtime clears
//!   it), addresses may be stored in maps and compared.
//! * No kernel source was read for this. Wording and errno come from `BPF_PROG_LOAD` (tests/verify).
#![forbid(unsafe_code)]

mod alu;
mod args;
mod branch;
mod call;
mod ctx;
mod dynptr;
mod error;
mod explore;
mod facts;
mod field;
mod helper;
mod hint;
mod live;
mod log;
mod memory;
mod need;
pub mod num;
mod prune;
mod record;
mod stack;
mod stack_bytes;
mod state;
mod value;

pub use error::{Errno, Refusal};
pub use facts::{Access, Region, Verified};
pub use hint::hint;
pub use log::{Log, Stats};
pub use record::{Moment, Place, Recorded};
pub use stack_bytes::StackBytes;

use crate::isa::MapIdx;
use crate::program::Program;
use bpftime_abi::attr::MapCreate;
use bpftime_abi::field::Fields;

/// What the verifier must know of a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapFacts {
    /// `BPF_MAP_TYPE_*`.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Capacity.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
    /// Whether user space may no longer change it.
    pub frozen: bool,
}

impl From<MapFacts> for MapCreate {
    /// What BPF_MAP_CREATE is asked for, but for names and types.
    fn from(facts: MapFacts) -> MapCreate {
        MapCreate {
            map_type: facts.map_type,
            key_size: facts.key_size,
            value_size: facts.value_size,
            max_entries: facts.max_entries,
            map_flags: facts.flags,
            ..MapCreate::default()
        }
    }
}

/// What the loader knows and the verifier asks.
pub trait VerifyEnv {
    /// A map of the program.
    fn map(&self, map: MapIdx) -> MapFacts;
    /// The little-endian number of `len` bytes at `off` in the value of a frozen array that programs cannot
    /// write either; `None` for all others.
    fn rodata(&self, map: MapIdx, off: u32, len: u32) -> Option<u64>;
    /// What of a map's values is no data.
    fn fields(&self, _map: MapIdx) -> Fields {
        Fields::default()
    }
    /// `BPF_PROG_TYPE_*`.
    fn prog_type(&self) -> u32;
    /// Whether the licence is compatible with the GPL.
    fn gpl(&self) -> bool;
    /// `attr.expected_attach_type`.
    fn expected_attach_type(&self) -> u32;
    /// Whether the program may sleep (`BPF_F_SLEEPABLE`).
    fn sleepable(&self) -> bool {
        false
    }
    /// Whether programs may call this helper.
    fn helper_exists(&self, id: u32) -> bool;
}

/// Judges a program. The last line of the log before the statistics is the reason of a refusal.
pub fn verify(program: Program, env: &dyn VerifyEnv, log: &mut Log) -> Result<Verified, Refusal> {
    let mut verifier = explore::Verifier::new(&program, env, log);
    let verdict = verifier.run();
    let proved = verifier.finish(&verdict);
    verdict.map(|()| Verified::new(program, proved))
}

/// As [`verify`], and hands out the states of the walk, for tests of its soundness.
pub fn verify_recording(
    program: Program,
    env: &dyn VerifyEnv,
    log: &mut Log,
) -> Result<(Verified, Recorded), Refusal> {
    let mut verifier = explore::Verifier::new(&program, env, log);
    verifier.record();
    verifier.run()?;
    let (proved, recorded) = verifier.recorded();
    Ok((Verified::new(program, proved), recorded))
}
