//! `libbpftime-syscall.so`: the kernel's bpf(2) and perf_event_open(2) for an unmodified tool that preloads it.
//!
//! Rules for a change here:
//! * every BPF object is a real descriptor ([`object`]): a memfd, or one end of a socket pair where it must be waited
//!   on, so close, dup, fork, poll and SCM_RIGHTS work as with the kernel's;
//! * memory the tool names is read and written through the kernel ([`user`]), so a wild pointer is EFAULT;
//! * an export is [`guard`]ed: if ours panics the call goes to the C library as if we were not there;
//! * nothing is printed; BPFTIME_LOG writes to a file or, when asked, to standard error.

mod broker;
mod btf;
mod cmd;
mod elsewhere;
mod exports;
mod fds;
mod files;
mod guard;
mod holder;
mod inject;
mod memory;
mod object;
mod perf;
mod real;
mod stats;
mod tool;
mod user;
mod wait;

#[global_allocator]
static MEMORY: memory::Wiped = memory::Wiped;

/// Runs when the library is loaded.
#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = init;

extern "C" fn init() {
    real::init();
    guard::guard(tool::init, || ());
}
