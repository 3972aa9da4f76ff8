//! The agent: everything that runs inside a traced process, and the injector that puts it there.
//!
//! Rules for a change here:
//! * a bug of ours loses a probe; it never kills, blocks, unwinds or prints into the host;
//! * code on the probe path ([`run`], thunks) takes no lock, allocates nothing and calls no C library ([`arch::sys`]);
//! * text and sites change on the control thread only ([`control`]); others ask it and wait, bounded;
//! * `unsafe` stands where memory or control flow of the host is touched, with a reason a reader can check there.

pub mod arch;
pub mod control;
pub mod fds;
pub mod hook;
pub mod inject;
pub mod lifecycle;
pub mod memory;
pub mod program;
pub mod resolve;
pub mod run;
pub mod sample;
pub mod signals;
pub mod syscalls;
