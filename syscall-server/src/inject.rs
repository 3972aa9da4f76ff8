//! Brings the agent into the process that an event names.

pub mod everyone;

use crate::tool;
use rustix::io::Errno;
use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

static DONE: Mutex<Option<HashSet<i32>>> = Mutex::new(None);

/// Injects the agent into `pid` unless that was done already. The injector is a process of its own, so that the tool
/// never sees the signals of its ptrace stops.
///
/// # Errors
/// `ESRCH` for no such process, `EACCES` for one we may not trace, `EOPNOTSUPP` for one that cannot carry the agent.
pub fn ensure(pid: i32) -> Result<(), Errno> {
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    let done = done.get_or_insert_default();
    if pid <= 0 || pid == std::process::id() as i32 || done.contains(&pid) {
        return Ok(());
    }
    run(pid)?;
    done.insert(pid);
    Ok(())
}

fn run(pid: i32) -> Result<(), Errno> {
    let (Some(injector), Some(agent)) = (tool::injector(), tool::agent_library()) else {
        tracing::warn!(
            pid,
            "bpftime-agent is not installed beside the library: only a preloaded agent traces it"
        );
        return Ok(());
    };
    let mut cmd = Command::new(injector);
    cmd.args(["inject", "--pid", &pid.to_string(), "--library"]).arg(agent).env_remove("LD_PRELOAD");
    if let Ok(dir) = bpftime_shm::session::dir::own() {
        cmd.arg("--runtime-dir").arg(dir);
    }
    let out = cmd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output();
    let out = out.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    if !out.status.success() {
        tracing::warn!(pid, reason = %String::from_utf8_lossy(&out.stderr).trim_end(), "not injected");
    }
    // The injector's documented exit codes.
    match out.status.code() {
        Some(0) => Ok(()),
        Some(3) => Err(Errno::SRCH),
        Some(4) => Err(Errno::ACCESS),
        _ => Err(Errno::OPNOTSUPP),
    }
}
