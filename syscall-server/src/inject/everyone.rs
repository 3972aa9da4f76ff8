//! `BPFTIME_INJECT=all`: probes reach every process of the user that maps the probed file, as the kernel's do.
//!
//! Those that run when a probe is attached are injected before the attachment returns; those that come later within a
//! second, by a thread that looks for new processes. Never injected: ourselves, processes that have the agent, and whatever
//! the injector refuses (set-user-id programs, other users' processes, static programs).

use super::ensure;
use bpftime_abi::config;
use bpftime_agent::resolve::{self, Mapping};
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

/// How often new processes are looked for.
const LOOK: Duration = Duration::from_millis(500);

/// Device and inode of every file that was probed.
static FILES: Mutex<Vec<(u64, u64)>> = Mutex::new(Vec::new());

/// Whether it was asked for.
pub fn wanted() -> bool {
    std::env::var_os(config::INJECT).is_some_and(|v| v == "all")
}

/// Injects the processes that map the file, and from now on those that come.
pub fn reach(file: (u64, u64)) {
    let new = {
        let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
        let new = !files.contains(&file);
        if new {
            files.push(file);
        }
        new
    };
    if !new {
        return;
    }
    processes().into_iter().for_each(|pid| consider(pid, &[file]));
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        if bpftime_agent::lifecycle::spawn_quiet("bpftime-inject", watch).is_err() {
            tracing::error!("no thread for BPFTIME_INJECT=all: processes that start later are not traced");
        }
    });
}

fn watch() {
    std::mem::forget(bpftime_agent::hook::Mute::new());
    let mut known: HashSet<i32> = HashSet::new();
    loop {
        let now: HashSet<i32> = processes().into_iter().collect();
        let files = FILES.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Looked at in two rounds: one that has just been started may not have mapped its libraries yet.
        now.iter().filter(|pid| !known.contains(pid)).for_each(|pid| consider(*pid, &files));
        std::thread::sleep(LOOK);
        now.iter().filter(|pid| !known.contains(pid)).for_each(|pid| consider(*pid, &files));
        known = now;
    }
}

/// This user's processes.
fn processes() -> Vec<i32> {
    let uid = rustix::process::getuid().as_raw();
    let dir = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_user = dir.filter(|e| e.metadata().is_ok_and(|m| m.uid() == uid));
    of_user.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

fn consider(pid: i32, files: &[(u64, u64)]) {
    if pid == std::process::id() as i32 {
        return;
    }
    let Ok(maps) = resolve::mappings_of(pid) else { return };
    let probed = |m: &Mapping| m.exec && files.iter().any(|(dev, ino)| resolve::is_file(m, *dev, *ino));
    const OURS: [&str; 3] = ["libbpftime-agent", "libbpftime-syscall", "bpftime-load"];
    let traced = |m: &Mapping| OURS.iter().any(|name| m.path.contains(name));
    if maps.iter().any(probed) && !maps.iter().any(traced) {
        // Why not, if not, is in the log; the attachment holds for the others all the same.
        let _ = ensure(pid);
    }
}
