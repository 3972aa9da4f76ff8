//! The kernel's bpf(2) and perf_event_open(2) for an unmodified tool: what `libbpftime-syscall.so` (in `preload/`, a folder
//! of its own because a Rust package makes one library) and `bpftime-load` are made of.
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
pub mod memory;
mod object;
mod perf;
mod real;
mod stats;
mod tool;
mod user;
mod wait;

use bpftime_abi::attr::ProgLoad;
use bpftime_vm::verify::Verified;
use bpftime_vm::{CompileError, Image, Options};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::OnceLock;

/// [`bpftime_vm::compile`].
pub type Compile = fn(&Verified, &Options<'_>) -> Result<Image, CompileError>;

/// Whose process this is.
pub enum Host {
    /// A tool's, or that of a program which starts tools: the library is preloaded.
    Anybody(Compile),
    /// A program of ours that loads what was compiled ahead of time and does nothing else. It has no compiler, and is no
    /// target of its own programs: what an agent of its own takes to start is most of the time to the first hit.
    Loader,
}

/// The compiler is behind a pointer, so that a program which names none links none.
static HOST: OnceLock<Host> = OnceLock::new();

/// Begins to answer in this process: called once, before main.
pub fn start(host: Host) {
    real::init();
    let init = match host {
        Host::Anybody(_) => tool::init,
        Host::Loader => tool::init_loader,
    };
    _ = HOST.set(host);
    guard::guard(init, || ());
}

/// Whether this process is traced like any other.
fn traces_itself() -> bool {
    !matches!(HOST.get(), Some(Host::Loader))
}

/// The compiler, if this process has one.
fn compiler() -> Option<Compile> {
    match HOST.get() {
        Some(Host::Anybody(compile)) => Some(*compile),
        _ => None,
    }
}

/// Loads a program that was compiled ahead of time. `attr` is that of BPF_PROG_LOAD, with all maps of the image in
/// `fd_array`; `ctx_bytes` are the bytes of context that the program reads. The image must be one that our compiler made
/// from the instructions in `attr`.
pub fn load_image(attr: &ProgLoad, image: &[u8], ctx_bytes: u32) -> io::Result<OwnedFd> {
    let fd = cmd::prog::load_image(attr, image, ctx_bytes)?;
    // SAFETY: a descriptor that was just made for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
