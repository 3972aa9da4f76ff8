//! What end-to-end tests share: the built libraries, C programs compiled on the spot, processes that end with the test.
//!
//! Every test uses a runtime directory of its own, so tests never see each other's sessions, nor a user's.

pub mod many;
pub mod tools;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The repository; `BPFTIME_TREE` is a copy of its tests/ and dist/ for a user who may not read it.
pub fn root() -> PathBuf {
    if let Some(copy) = std::env::var_os("BPFTIME_TREE") {
        return copy.into();
    }
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("repository")
}

/// A file of the build: `scripts/build` must have run.
pub fn dist(path: &str) -> PathBuf {
    let p = root().join("dist").join(path);
    assert!(p.exists(), "{} is missing: run scripts/build first", p.display());
    p
}

/// Whether the kernel runs BPF for us, so that its answers can be compared.
pub fn kernel_is_oracle() -> bool {
    // SAFETY: geteuid has no failure.
    let root = unsafe { libc::geteuid() } == 0;
    root && Path::new("/sys/bus/event_source/devices/uprobe/type").exists()
}

/// Keeps the calling thread, and what it starts, on one CPU. A system call and nothing else, so that a child may do it after a fork.
pub fn pin_to(cpu: usize) -> std::io::Result<()> {
    // SAFETY: a set of our own for the kernel to read, of the size that is given; zeros are an empty one.
    let failed = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set) != 0
    };
    if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// A directory that goes with the test.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A fresh one.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("bpftime-test-{}-{n}", std::process::id()));
        std::fs::create_dir_all(dir.join("run")).expect("scratch directory");
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(dir.join("run"), private).expect("mode");
        Self(dir)
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Compiles `source` (below tests/) with `flags` to `name`.
    pub fn compile(&self, source: &str, name: &str, flags: &[&str]) -> PathBuf {
        let src = root().join("tests").join(source);
        let cc = if source.ends_with(".cpp") { "g++" } else { "gcc" };
        let out = self.path(name);
        if out.exists() {
            // A running process may be using it, and a probe means this very file.
            return out;
        }
        let mut cmd = Command::new(cc);
        cmd.args(["-O2", "-g", "-Wall"]).args(flags).arg("-o").arg(&out).arg(&src).arg("-lpthread");
        assert!(cmd.status().expect("compiler").success(), "{} does not compile", src.display());
        out
    }

    /// Compiles a BPF program (below tests/) to an object file.
    pub fn compile_bpf(&self, source: &str) -> PathBuf {
        let src = root().join("tests").join(source);
        let name = src.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let out = self.path(&(name + ".o"));
        let mut cmd = Command::new("clang");
        cmd.args(["-target", "bpf", "-O2", "-g", "-Wall", "-D__TARGET_ARCH_x86"]);
        cmd.arg("-I/usr/include/x86_64-linux-gnu").arg("-c").arg(&src).arg("-o").arg(&out);
        assert!(cmd.status().expect("clang").success(), "{} does not compile", src.display());
        out
    }

    /// A command that uses this scratch directory's sessions; nothing preloaded.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut cmd = Command::new(program);
        cmd.env("BPFTIME_RUNTIME_DIR", self.path("run")).env_remove("LD_PRELOAD");
        cmd.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        cmd
    }

    /// A tool on bpftime.
    pub fn tool(&self, program: impl AsRef<OsStr>) -> Command {
        let mut cmd = self.command(program);
        cmd.env("LD_PRELOAD", dist("lib/libbpftime-syscall.so"));
        cmd
    }

    /// A target with the agent.
    pub fn target(&self, program: impl AsRef<OsStr>) -> Command {
        let mut cmd = self.command(program);
        cmd.env("LD_PRELOAD", dist("lib/libbpftime-agent.so"));
        cmd
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running process whose output is read line by line. Killed, by pid, when dropped.
pub struct Running {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Running {
    /// Starts `cmd`.
    pub fn start(mut cmd: Command) -> Self {
        let mut child = cmd.spawn().unwrap_or_else(|e| panic!("{cmd:?}: {e}"));
        let out = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self { child, out }
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The next line, without its end; empty at the end of the output.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("output");
        line.trim_end().to_string()
    }

    /// Reads lines up to one that starts with `prefix`; panics with the error output when the output ends first.
    pub fn wait_for(&mut self, prefix: &str) -> String {
        loop {
            let line = self.line();
            if line.starts_with(prefix) {
                return line;
            }
            assert!(!line.is_empty(), "no line starts with {prefix:?}; stderr: {}", self.stderr());
        }
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        if let Some(e) = self.child.stderr.as_mut() {
            let _ = e.read_to_string(&mut text);
        }
        text
    }

    /// Writes a line to its input.
    pub fn say(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("stdin is piped");
        writeln!(input, "{line}").and_then(|()| input.flush()).expect("input");
    }

    /// Writes a line to its input; the line it answers with.
    pub fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.line()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the child is ours and not yet waited for.
        unsafe { libc::kill(self.pid(), signal) };
    }

    /// Whether it has come to its end.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_some()
    }

    /// Closes its input and waits for the end; the rest of its output, its error output and its exit status.
    pub fn finish(mut self, limit: Duration) -> Finished {
        drop(self.child.stdin.take());
        let end = Instant::now() + limit;
        let mut rest = String::new();
        let watchdog = {
            let pid = self.pid();
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            let thread = std::thread::spawn(move || {
                let left = end.saturating_duration_since(Instant::now());
                if stopped.recv_timeout(left) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    // SAFETY: the child is ours and not yet waited for.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                }
            });
            (stop, thread)
        };
        let _ = self.out.read_to_string(&mut rest);
        let stderr = self.stderr();
        let status = self.child.wait().expect("wait");
        drop(watchdog.0);
        let _ = watchdog.1.join();
        Finished { stdout: rest, stderr, status }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is the case; panics with what it is when it is not within a minute.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "not so after a minute: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How a process ended.
#[derive(Debug)]
pub struct Finished {
    /// Output not read before.
    pub stdout: String,
    /// Error output.
    pub stderr: String,
    /// Exit status.
    pub status: std::process::ExitStatus,
}

/// Bytes that are this process's own, by mapping: (executable, of a file), (executable, anonymous), the others.
pub fn private_bytes(pid: i32) -> [f64; 3] {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut bytes = [0.0; 3];
    let mut kind = 2;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [range, perms, _, _, inode, ..] if range.contains('-') => {
                kind = if !perms.contains('x') { 2 } else { usize::from(*inode == "0") };
            }
            ["Private_Dirty:", kib, ..] => bytes[kind] += kib.parse::<f64>().unwrap_or(0.0) * 1024.0,
            _ => {}
        }
    }
    bytes
}

/// File offset of a symbol of an ELF file, as nm and readelf tell it.
pub fn symbol_offset(file: &Path, symbol: &str) -> u64 {
    let text = |tool: &str, args: &[&str]| {
        let out = Command::new(tool).args(args).arg(file).output().expect(tool);
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let nm = text("nm", &[]) + &text("nm", &["-D", "--without-symbol-versions"]);
    let line = nm.lines().find(|l| l.split_whitespace().last() == Some(symbol));
    let addr = line.and_then(|l| l.split_whitespace().next()).and_then(|a| u64::from_str_radix(a, 16).ok());
    let addr = addr.unwrap_or_else(|| panic!("{symbol} is not in {}", file.display()));
    let headers = text("readelf", &["-lW"]);
    let hex = |s: &str| u64::from_str_radix(s.trim_start_matches("0x"), 16).unwrap_or(0);
    for l in headers.lines().filter(|l| l.trim_start().starts_with("LOAD")) {
        let f: Vec<&str> = l.split_whitespace().collect();
        let (off, vaddr, size) = (hex(f[1]), hex(f[2]), hex(f[4]));
        if (vaddr..vaddr + size).contains(&addr) {
            return addr - vaddr + off;
        }
    }
    panic!("{symbol} is in no segment of {}", file.display());
}
