//! `libbpftime-syscall.so`: puts the server in front of the kernel in the process that loads it.
//!
//! Everything is in `bpftime_server`, the functions of the C library that it takes the place of included; this library
//! adds the constructor, the allocator and the compiler.

#[global_allocator]
static MEMORY: bpftime_server::memory::Wiped = bpftime_server::memory::Wiped;

/// Runs when the library is loaded.
#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = init;

extern "C" fn init() {
    bpftime_server::start(bpftime_server::Host::Anybody(bpftime_vm::compile));
}
