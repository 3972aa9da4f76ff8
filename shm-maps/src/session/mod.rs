//! A session: what one tool shares with the processes it traces.
//!
//! The tool's broker listens on a socket in the runtime directory ([`dir`]); an agent connects and receives, as messages
//! with descriptors ([`wire`], [`sock`]), the session page ([`page`]), maps, program images and links. Rules:
//! * an agent trusts a session of its own user (as it would trust the kernel); the tool trusts nothing an agent sends;
//! * everything is announced before it is used: page, then maps, then programs, then links, then `Sync`;
//! * messages are idempotent by id, so that a forked child can ask again and end in the same state.

pub mod dir;
pub mod ids;
pub mod inspect;
pub mod page;
pub mod sealed;
pub mod sock;
pub mod stats;
pub mod text;
pub mod wire;
