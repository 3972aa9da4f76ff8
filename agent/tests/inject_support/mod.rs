//! Targets compiled with the machine's C compiler, and stand-ins for the agent library.
#![allow(dead_code, missing_docs)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bpftime_agent::inject::{InjectError, Options, Report, inject};

/// Long enough for a loaded machine; only a hang reaches it.
pub const WATCHDOG: Duration = Duration::from_secs(60);

/// A private directory, removed at the end.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bpftime-inject-{}-{n}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Compiles tests/targets/SOURCE to a file of this directory.
    pub fn cc(&self, compiler: &str, source: &str, output: &str, flags: &[&str]) -> Option<PathBuf> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets").join(source);
        let out = self.path(output);
        let mut cmd = Command::new(compiler);
        cmd.args(["-O2", "-g", "-pthread", "-o"]).arg(&out).arg(&source).args(flags);
        let result = cmd.output().ok()?;
        if !result.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&result.stderr));
        }
        result.status.success().then_some(out)
    }

    pub fn target(&self, name: &str) -> PathBuf {
        self.cc("gcc", &format!("{name}.c"), name, &[]).expect("gcc compiles the target")
    }

    /// A library with bpftime_agent_start; `mode` as in inject_agent.c.
    pub fn agent(&self, mode: &str) -> PathBuf {
        self.agent_with("gcc", mode, &[]).expect("gcc compiles the agent")
    }

    pub fn agent_with(&self, compiler: &str, mode: &str, flags: &[&str]) -> Option<PathBuf> {
        let define = format!("-DMODE={mode}");
        let flags = [&["-shared", "-fPIC", &define], flags].concat();
        self.cc(compiler, "inject_agent.c", &format!("libinject_{}.so", mode.to_lowercase()), &flags)
    }

    pub fn options(&self, library: &Path) -> Options {
        Options { library: Some(library.to_owned()), runtime_dir: Some(self.0.clone()), ..Options::default() }
    }

    /// How often a stand-in agent has started.
    pub fn starts(&self) -> usize {
        fs::read_to_string(self.path("started")).map_or(0, |s| s.lines().count())
    }

    pub fn inject(&self, pid: i32, library: &Path) -> Result<Report, InjectError> {
        inject(pid, &self.options(library))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running target. Killed when dropped.
pub struct Target {
    pub child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Target {
    pub fn start(program: &Path, args: &[&str]) -> Self {
        Self::spawn(Command::new(program).args(args))
    }

    /// Starts a command and waits until it has said "ready".
    pub fn spawn(cmd: &mut Command) -> Self {
        let mut child = cmd.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { child, stdin, stdout }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn kill(&self, signal: i32) {
        // SAFETY: a plain system call on our own child.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// State letter in /proc/PID/stat.
    pub fn state(&self) -> char {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    }

    pub fn await_state(&self, wanted: &str) {
        until(|| wanted.contains(self.state()));
    }

    pub fn tracer(&self) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        status.lines().find_map(|l| l.strip_prefix("TracerPid:\t")).unwrap().to_owned()
    }

    /// Closes its input, and gives what it says until it exits with 0.
    pub fn finish(mut self) -> String {
        drop(self.stdin.take());
        let end = Instant::now() + WATCHDOG;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "the target hangs in state {}", self.state());
            std::thread::sleep(Duration::from_millis(2));
        };
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!((status.code(), status.signal()), (Some(0), None), "the target said: {rest}");
        rest
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn until(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + WATCHDOG;
    while !condition() {
        assert!(Instant::now() < end, "waited too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The program under test.
pub fn bpftime_agent(args: &[&str]) -> Command {
    let mut cmd = Command::new(env!("CARGO_BIN_EXE_bpftime-agent"));
    cmd.args(args);
    cmd
}

pub fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}
