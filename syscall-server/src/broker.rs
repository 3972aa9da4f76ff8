//! The session's broker: tells agents what is attached, and notices when a link's last descriptor is gone.
//!
//! One thread with its own descriptor table. The tool's threads speak to it over a socket pair in the very messages
//! that it relays to agents ([`Client`]); it remembers them ([`Known`]) for agents that connect later.

mod client;
pub mod inspect;
mod known;
mod robust;
mod serve;

/// The tool's own index among the processes of its session.
pub const TOOL_OWNER: u16 = 1;

pub use client::{attach, detach, hold, is_ours, member, perf_slot, running, session, settle};
