//! `bpftime-load`: runs programs that were compiled before, on machines that have no compiler.
//!
//! The server is part of this program and answers its bpf(2) and perf_event_open(2), as it does for tools that preload it;
//! it is not told of a compiler, so that none is linked. A package of its own because of that.

#[path = "../../src/failure.rs"]
mod failure;
mod load;
mod maps;
mod probe;

use clap::Parser;
use std::process::ExitCode;

/// Runs before main, as in the library.
#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = init;

extern "C" fn init() {
    bpftime_server::start(bpftime_server::Host::Loader);
}

fn main() -> ExitCode {
    failure::end("bpftime-load", load::run(&load::Args::parse()))
}
