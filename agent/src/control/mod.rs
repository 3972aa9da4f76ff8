//! The control thread: the only thread of the agent, and the only one that changes text, sites and sessions.
//!
//! It has its own descriptor table, so the process it lives in neither sees nor inherits nor closes its descriptors;
//! it blocks every signal; its hits on probes are ignored. The process's threads meet it in three places: at start and
//! at dlopen they wait (bounded) until it has caught up, and fork waits until it is between two steps.

mod attach;
mod r#loop;
mod notify;
mod places;
mod semaphore;
mod session;
mod state;

pub(crate) use r#loop::{ask, ask_and_wait};
pub use r#loop::{hold_for_fork, look_into, poke_and_wait, release_after_fork, run, summary, wait_started};
pub use state::Summary;
