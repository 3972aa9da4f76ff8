//! `bpftime-agent hold`: the process that keeps pinned objects. Its work is the server library's, which the tool that
//! starts it preloads; here is what makes a background process of it.

use std::ffi::c_int;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};

/// The server's function: see syscall-server/src/exports.rs.
type Serve = extern "C" fn(ready: extern "C" fn()) -> c_int;

/// What the process says once tools can ask it.
const READY: &str = "ready";

/// Starts the process, and ends when it can be asked. It is nobody's child then.
pub fn start() -> ExitCode {
    match started() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "bpftime-agent: hold: {e}");
            ExitCode::FAILURE
        }
    }
}

fn started() -> std::io::Result<()> {
    let mut cmd = Command::new(std::env::current_exe()?);
    cmd.args(["hold", "--serve"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = cmd.spawn()?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    match line.trim_end() {
        READY => Ok(()),
        said => Err(std::io::Error::other(if said.is_empty() { "ended at once" } else { said })),
    }
}

/// Is the process.
pub fn serve() -> ExitCode {
    close_inherited();
    // SAFETY: no arguments; it fails only for the leader of a group, which a fresh child is not.
    unsafe { libc::setsid() };
    // SAFETY: a terminated constant; looks a name up in what is loaded.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"bpftime_hold".as_ptr()) };
    if found.is_null() {
        say("libbpftime-syscall.so is not loaded");
        return ExitCode::FAILURE;
    }
    // SAFETY: the only thing of this name is the server's function, of this signature.
    let serve = unsafe { std::mem::transmute::<*mut libc::c_void, Serve>(found) };
    match serve(ready) {
        0 => ExitCode::SUCCESS,
        errno => {
            say(&std::io::Error::from_raw_os_error(errno).to_string());
            ExitCode::FAILURE
        }
    }
}

/// Whatever the tool had open and did not mark: a pipe that stayed open here would keep its reader waiting.
fn close_inherited() {
    // SAFETY: nothing of this process owns a descriptor above 2 yet.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0) };
    if done != 0 {
        // Before Linux 5.9.
        (3..1024).for_each(|fd| {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        });
    }
}

extern "C" fn ready() {
    say(READY);
}

/// A line to who started this process, the last one.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
    // SAFETY: standard error is /dev/null here.
    unsafe { libc::dup2(2, 1) };
}
