//! `libbpftime-agent.so`: starts the agent in the process that loads it.
//!
//! Everything is in `bpftime_agent`; this library adds the constructor, the entry point for an injector, and the
//! functions of the C library that must know about our signal handlers.

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

/// Runs when the library is loaded, before main, or inside the injector's dlopen.
#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = init;

extern "C" fn init() {
    let _ = std::panic::catch_unwind(|| bpftime_agent::lifecycle::start(None));
}

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
    let started = std::panic::catch_unwind(|| bpftime_agent::lifecycle::start(dir)).unwrap_or(false);
    if started { 0 } else { 1 }
}
