//! `libbpftime-agent.so`: starts the agent in the process that loads it.
//!
//! Everything is in `bpftime_agent`; this library adds the constructor, the entry point for an injector, and the
//! functions of the C library that must know about our signal handlers.

mod signals;

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

#[global_allocator]
static MEMORY: bpftime_agent::memory::Reserve = bpftime_agent::memory::Reserve;

/// Runs when the library is loaded, before main, or inside a dlopen.
#[used]
#[unsafe(link_section = ".init_array")]
static INIT: unsafe extern "C" fn(c_int, Strings, Strings) = init;

/// `argv` and `envp`.
type Strings = *const *const c_char;

/// # Safety
/// Called by the dynamic linker, which passes what `main` gets.
unsafe extern "C" fn init(_argc: c_int, argv: Strings, envp: Strings) {
    let _ = std::panic::catch_unwind(|| {
        // What starting takes is not the program's doing.
        let quiet = bpftime_agent::hook::Mute::new();
        let waits = bpftime_agent::lifecycle::start(None) && preloaded();
        if waits {
            bpftime_agent::lifecycle::wait_ready();
            // SAFETY: passed on.
            unsafe { bpftime_agent::syscalls::report_exec(argv, envp) };
        }
        drop(quiet);
        if waits {
            bpftime_agent::syscalls::arrive();
        }
    });
}

/// Whether the dynamic linker loaded us before main. Inside somebody's dlopen nothing may wait for the control thread:
/// the caller holds the dynamic linker's lock, which a starting thread needs.
fn preloaded() -> bool {
    let list = std::env::var_os("LD_PRELOAD").unwrap_or_default();
    list.as_bytes().windows(SONAME.len()).any(|w| w == SONAME)
}

/// What the file is called wherever it is installed.
const SONAME: &[u8] = b"libbpftime-agent";

/// Called by `bpftime-agent inject` after dlopen: starts the agent if the constructor did not, and looks for sessions in
/// `runtime_dir` too (null: only in the usual places). 0 when the agent runs.
///
/// # Safety
/// `runtime_dir` is null or a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bpftime_agent_start(runtime_dir: *const c_char) -> c_int {
    // SAFETY: see above.
    let dir = (!runtime_dir.is_null()).then(|| unsafe { CStr::from_ptr(runtime_dir) });
    let dir = dir.filter(|d| !d.is_empty()).map(|d| OsStr::from_bytes(d.to_bytes()).into());
    let start = || {
        let quiet = bpftime_agent::hook::Mute::new();
        let started = bpftime_agent::lifecycle::start(dir);
        bpftime_agent::lifecycle::wait_ready();
        // The thread is the injector's until it is given back: what it does before is not the program's, so that its calls
        // are watched from its first call through a library on, like those of the other threads.
        drop(quiet);
        started
    };
    let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(start)).unwrap_or(false);
    if started { 0 } else { 1 }
}
