//! The program as a user calls it.
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A private directory, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bpftime-cli-{}-{n}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// An empty library under the server's name: preloading it does nothing.
    fn with_server(self) -> Self {
        self.cc("", "libbpftime-syscall.so", &["-shared"]);
        self
    }

    fn cc(&self, code: &str, name: &str, flags: &[&str]) -> PathBuf {
        let source = self.0.join(format!("{name}.c"));
        fs::write(&source, code).unwrap();
        let out = self.0.join(name);
        let status = Command::new("gcc").args(flags).arg("-o").arg(&out).arg(&source).status().unwrap();
        assert!(status.success());
        out
    }

    fn bpftime(&self, args: &[&str]) -> Command {
        let mut cmd = Command::new(env!("CARGO_BIN_EXE_bpftime"));
        cmd.args(args).env("BPFTIME_LIB_DIR", &self.0).env("BPFTIME_RUNTIME_DIR", self.0.join("run"));
        cmd.env_remove("LD_PRELOAD").stdin(Stdio::null());
        cmd
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One line on stderr that holds these words, this exit code, nothing on stdout.
fn fails(out: &Output, code: i32, words: &str) {
    let stderr = text(&out.stderr);
    assert_eq!((out.status.code(), stderr.lines().count()), (Some(code), 1), "{stderr}");
    assert!(stderr.starts_with("bpftime: ") && stderr.contains("; ") && stderr.contains(words), "{stderr}");
    assert!(out.stdout.is_empty());
}

#[test]
fn run_preloads_the_server_in_front_and_passes_the_exit_code() {
    let dir = Dir::new().with_server();
    let script = "echo $LD_PRELOAD; exit 7";
    let other = dir.cc("", "other.so", &["-shared"]);
    let out = dir.bpftime(&["run", "--", "sh", "-c", script]).env("LD_PRELOAD", &other).output().unwrap();
    let want = format!("{}:{}\n", dir.0.join("libbpftime-syscall.so").display(), other.display());
    assert_eq!((text(&out.stdout), out.status.code()), (want, Some(7)));
}

#[test]
fn run_passes_options_of_the_tool_without_a_double_dash() {
    let dir = Dir::new().with_server();
    let out = dir.bpftime(&["run", "echo", "-e", "--help"]).output().unwrap();
    assert_eq!(text(&out.stdout), "--help\n");
}

#[test]
fn run_of_a_missing_command_is_127() {
    let dir = Dir::new().with_server();
    fails(&dir.bpftime(&["run", "no-such-command-here"]).output().unwrap(), 127, "no-such-command-here");
}

#[test]
fn run_without_the_library_is_125() {
    let dir = Dir::new();
    let copy = dir.0.join("alone");
    fs::create_dir(&copy).unwrap();
    let program = copy.join("bpftime");
    fs::copy(env!("CARGO_BIN_EXE_bpftime"), &program).unwrap();
    let out =
        Command::new(program).args(["run", "true"]).env("BPFTIME_LIB_DIR", "/nonexistent").output().unwrap();
    fails(&out, 125, "scripts/build");
}

#[test]
fn run_of_a_static_program_is_refused_because_preloading_would_do_nothing() {
    let dir = Dir::new().with_server();
    let program = dir.cc("int main(void) { return 0; }", "static", &["-static"]);
    fails(&dir.bpftime(&["run", program.to_str().unwrap()]).output().unwrap(), 126, "statically linked");
}

#[test]
fn doctor_reports_every_check_of_the_machine() {
    let dir = Dir::new().with_server();
    let out = dir.bpftime(&["doctor"]).output().unwrap();
    let report = text(&out.stdout);
    for name in
        ["kernel", "memory files", "membarrier", "ptrace", "tool library", "agent library", "bpftrace"]
    {
        assert!(report.lines().any(|l| l.contains(name)), "{name} in\n{report}");
    }
    // This directory has no agent library, unless one stands beside the program.
    let complete = !report.contains("FAIL");
    assert_eq!(out.status.code(), Some(if complete { 0 } else { 1 }), "{report}");
}

#[test]
fn doctor_explains_a_process() {
    let dir = Dir::new();
    let out = dir.bpftime(&["doctor", "1073741809"]).output().unwrap();
    assert_eq!(out.status.code(), Some(3));
    assert!(text(&out.stdout).contains("there is no such process"));
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let out = dir.bpftime(&["doctor", &child.id().to_string()]).output().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stdout));
}

#[test]
fn doctor_explains_a_program() {
    let dir = Dir::new();
    let program = dir.cc("int main(void) { return 0; }", "static", &["-static", "-s"]);
    let out = dir.bpftime(&["doctor", program.to_str().unwrap()]).output().unwrap();
    assert_eq!(out.status.code(), Some(5));
    assert!(text(&out.stdout).contains("statically linked") && text(&out.stdout).contains("stripped"));
    fails(&dir.bpftime(&["doctor", "/nonexistent"]).output().unwrap(), 1, "/nonexistent");
}

#[test]
fn doctor_calls_itself_fine() {
    let dir = Dir::new();
    let out = dir.bpftime(&["doctor", env!("CARGO_BIN_EXE_bpftime")]).output().unwrap();
    assert_eq!(out.status.code(), Some(0));
    assert!(Path::new(env!("CARGO_BIN_EXE_bpftime")).exists());
}
