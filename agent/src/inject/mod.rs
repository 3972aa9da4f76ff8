//! Loading the agent into a process that is already running, with ptrace(2) (x86-64).
//!
//! The walk: refuse what cannot work (`check`), find the C library in the target's memory (`runtime`, `image`),
//! stop one thread where it may call dlopen (`safe_point`; the others go on), borrow it (`call`, `stub`), load
//! the library (`library`) and call its entry, give the thread back.
//!
//! Rules for changes:
//!  - Every path out of here detaches. The work runs on a thread of its own, whose end makes the kernel detach
//!    as a last resort; and the code that runs in the target finds its way home without us.
//!  - The borrowed thread notices nothing: registers, vector state, errno, signal mask, pending signals and the
//!    system call it was in are as before. One thing cannot be kept: epoll_wait, sigtimedwait, semtimedop and
//!    sockets with a receive timeout begin a finite wait anew, because the kernel has forgotten the rest.
//!  - No message ends without the user's next step.

mod call;
pub mod check;
mod image;
mod library;
mod procfs;
mod ptrace;
mod runtime;
mod safe_point;
mod stub;

use std::ffi::CStr;
use std::fs;
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bpftime_shm::session::dir;
use call::{Borrowed, Places};
use check::{Finding, Kind};
use image::Image;
use library::Library;
pub use library::{LIBRARY, locate};
use procfs::{Mapping, Memory, Status};
use ptrace::TraceError;
use runtime::Runtime;

/// `int bpftime_agent_start(const char *runtime_dir)`: 0, or a negative errno.
const ENTRY: &CStr = c"bpftime_agent_start";
/// The longest dlerror() text that we copy.
const MAX_MESSAGE: usize = 1024;

/// How to inject.
#[derive(Debug, Clone)]
pub struct Options {
    /// The agent library; None: the one installed with this program.
    pub library: Option<PathBuf>,
    /// Where the agent finds the tools' sessions; None: `default_runtime_dir()`.
    pub runtime_dir: Option<PathBuf>,
    /// The whole injection ends after this time, successful or not.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { library: None, runtime_dir: None, timeout: Duration::from_secs(3) }
    }
}

/// How the library got into the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// It was there; only its entry was called.
    AlreadyLoaded,
    /// By its path.
    Path,
    /// As a memory file, because the target does not see the path.
    Memfd,
}

/// A successful injection.
#[derive(Debug, Clone)]
pub struct Report {
    /// The process (thread group) id.
    pub pid: i32,
    /// The thread that was borrowed.
    pub tid: i32,
    /// How the library got there.
    pub route: Route,
    /// The library on our side.
    pub library: PathBuf,
    /// From the call of `inject` to the thread given back.
    pub elapsed: Duration,
}

impl Report {
    /// The agent was in the process before.
    #[must_use]
    pub fn already(&self) -> bool {
        self.route == Route::AlreadyLoaded
    }
}

/// Why there was no injection. Every message is one line: cause; next step.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// The process cannot be traced. Nothing was touched.
    #[error("{0}")]
    Refused(Finding),
    /// The agent library on our side.
    #[error("library {path}: {why}; {next}", path = .path.display())]
    Library {
        /// The file.
        path: PathBuf,
        /// The cause.
        why: String,
        /// The next step.
        next: String,
    },
    /// No thread was outside malloc and the loader.
    #[error("process {pid} never left its memory allocator or loader long enough; try again")]
    NoSafePoint {
        /// The process.
        pid: i32,
    },
    /// Another injector is at work there.
    #[error("another injector works on process {pid}; try again")]
    NoTurn {
        /// The process.
        pid: i32,
    },
    /// A thread did not stop.
    #[error("thread {tid} of process {pid} does not stop: it is stuck in the kernel; try again later")]
    Unresponsive {
        /// The process.
        pid: i32,
        /// The thread.
        tid: i32,
    },
    /// A call in the target took too long and was abandoned.
    #[error("{during} in the target took too long and was abandoned; try again, or preload the agent")]
    TimedOut {
        /// Which call.
        during: &'static str,
    },
    /// The process ended meanwhile.
    #[error("process {pid} exited during injection; nothing is left to do")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// The target's dlopen refused the library.
    #[error("the target cannot load the agent: {message}; check the library and its dependencies there")]
    Dlopen {
        /// dlerror() in the target.
        message: String,
    },
    /// The library that is mapped is no agent.
    #[error("{path} in the target does not export bpftime_agent_start; restart the target", path = .path)]
    NoEntry {
        /// Its path in the target.
        path: String,
    },
    /// The agent itself refused to start.
    #[error("the agent did not start: {}; check the runtime directory and its owner", start_failure(*.code))]
    Start {
        /// What bpftime_agent_start returned.
        code: i32,
    },
    /// Anything else that the system refused.
    #[error("{doing}: {source}; run `bpftime doctor PID` for more")]
    Os {
        /// What we did.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn start_failure(code: i32) -> String {
    if (-4095..0).contains(&code) {
        io::Error::from_raw_os_error(-code).to_string()
    } else {
        format!("it returned {code}")
    }
}

impl InjectError {
    fn os(doing: &'static str, source: io::Error) -> Self {
        Self::Os { doing, source }
    }

    fn trace(during: &'static str, e: TraceError) -> Self {
        match e {
            TraceError::Timeout => Self::TimedOut { during },
            TraceError::Gone => Self::os(during, io::Error::from_raw_os_error(libc::ESRCH)),
            TraceError::Os { doing, source } => Self::Os { doing, source },
        }
    }

    /// The errno that perf_event_open(2) would give to a tool for this.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Refused(f) => match f.kind {
                Kind::NoProcess => libc::ESRCH,
                Kind::NotPermitted => libc::EPERM,
                Kind::Busy => libc::EBUSY,
                Kind::Unsupported | Kind::Fine => libc::EOPNOTSUPP,
            },
            Self::Gone { .. } => libc::ESRCH,
            Self::Library { .. } => libc::ENOENT,
            Self::NoSafePoint { .. } | Self::NoTurn { .. } | Self::Unresponsive { .. } => libc::EBUSY,
            Self::TimedOut { .. } => libc::ETIMEDOUT,
            Self::Dlopen { .. } | Self::NoEntry { .. } => libc::ELIBACC,
            Self::Start { code } if (-4095..0).contains(code) => -code,
            Self::Start { .. } => libc::EIO,
            Self::Os { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        }
    }

    /// The exit code of `bpftime-agent inject`, as its help lists them.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(f) => match f.kind {
                Kind::NoProcess => 3,
                Kind::NotPermitted => 4,
                Kind::Unsupported => 5,
                Kind::Busy => 6,
                Kind::Fine => 1,
            },
            Self::Gone { .. } => 3,
            Self::NoSafePoint { .. } | Self::NoTurn { .. } | Self::Unresponsive { .. } => 6,
            Self::Library { .. } | Self::Dlopen { .. } | Self::NoEntry { .. } => 7,
            Self::TimedOut { .. } => 8,
            Self::Start { .. } => 9,
            Self::Os { .. } => 1,
        }
    }
}

/// Where a tool of this user with this environment has its sessions: BPFTIME_RUNTIME_DIR, else
/// XDG_RUNTIME_DIR/bpftime, else /tmp/bpftime-UID; the first that exists.
#[must_use]
pub fn default_runtime_dir() -> PathBuf {
    let mut all = dir::candidates();
    let found = all.iter().position(|d| dir::check(d).is_ok()).unwrap_or(0);
    if all.is_empty() { PathBuf::new() } else { all.swap_remove(found) }
}

/// Loads the agent into a running process and starts it; returns when it runs.
///
/// `pid` may be any thread of the process. The target goes on unharmed in every case. The kernel sends
/// SIGCHLD to the caller for each stop of the target; a caller that counts its children with it should run
/// `bpftime-agent inject` as a child instead.
///
/// Errors: see `InjectError`.
pub fn inject(pid: i32, opts: &Options) -> Result<Report, InjectError> {
    let began = Instant::now();
    let _turn = take_turn(pid, began + opts.timeout)?;
    if let Some(finding) = check::refusal(pid) {
        return Err(InjectError::Refused(finding));
    }
    let library = Library::find(opts.library.as_deref())?;
    let runtime_dir = opts.runtime_dir.clone().unwrap_or_else(default_runtime_dir);
    let deadline = began + opts.timeout;
    let session = move || Session::open(pid, library, deadline)?.run(&runtime_dir, began);
    let worker = std::thread::Builder::new()
        .name("bpftime-inject".into())
        .spawn(session)
        .map_err(|e| InjectError::os("starting a thread", e))?;
    let panicked = |_| Err(InjectError::os("injecting", io::Error::other("internal error")));
    worker.join().unwrap_or_else(panicked)
}

/// Waits until no other injector works on this process. An abstract socket name is the lock: it belongs to one
/// holder, and goes away with it however it ends.
fn take_turn(pid: i32, deadline: Instant) -> Result<Option<UnixListener>, InjectError> {
    let tgid = Status::read(&pid.to_string()).map_or(pid, |s| s.tgid);
    let name = SocketAddr::from_abstract_name(format!("bpftime-inject-{tgid}"))
        .map_err(|e| InjectError::os("naming a lock", e))?;
    loop {
        match UnixListener::bind_addr(&name) {
            Ok(turn) => return Ok(Some(turn)),
            Err(e) if e.kind() != io::ErrorKind::AddrInUse => return Ok(None),
            Err(_) if Instant::now() >= deadline => return Err(InjectError::NoTurn { pid }),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// One injection.
struct Session {
    pid: i32,
    library: Library,
    mem: Memory,
    maps: Vec<Mapping>,
    runtime: Runtime,
    deadline: Instant,
}

impl Session {
    fn open(pid: i32, library: Library, deadline: Instant) -> Result<Self, InjectError> {
        let gone = |e: io::Error| match e.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => InjectError::Gone { pid },
            _ => InjectError::os("reading the target", e),
        };
        let pid = Status::read(&pid.to_string()).map_err(gone)?.tgid;
        let maps = procfs::maps(pid).map_err(gone)?;
        let mem = Memory::open(pid).map_err(gone)?;
        // `check` has looked before; only an exec in between brings us here.
        let runtime = Runtime::discover(&mem, &maps).ok_or(InjectError::Gone { pid })?;
        Ok(Self { pid, library, mem, maps, runtime, deadline })
    }

    fn run(self, runtime_dir: &Path, began: Instant) -> Result<Report, InjectError> {
        // Half of the time for finding a thread, so that the call has the other half.
        let half = Instant::now() + self.deadline.saturating_duration_since(Instant::now()) / 2;
        let tracee = safe_point::acquire(self.pid, &self.mem, &self.runtime.text, half)?;
        let tid = tracee.tid();
        let places = Places { padding: self.runtime.padding, syscall_insn: self.runtime.syscall_insn };
        let mut thread = Borrowed::take(tracee, &self.mem, self.pid, places, self.deadline)?;
        let outcome = self.load_and_start(&mut thread, runtime_dir);
        let given_back = thread.give_back();
        let route = outcome?;
        given_back?;
        Ok(Report { pid: self.pid, tid, route, library: self.library.path, elapsed: began.elapsed() })
    }

    fn load_and_start(&self, thread: &mut Borrowed, runtime_dir: &Path) -> Result<Route, InjectError> {
        if let Some(location) = self.runtime.errno_location {
            thread.keep_errno(location)?;
        }
        let (route, entry) = match self.library.mapped(&self.maps) {
            Some(mapping) => (Route::AlreadyLoaded, self.entry_of(mapping)?),
            None => self.load(thread)?,
        };
        let dir = thread.put_str(runtime_dir.as_os_str().as_bytes())?;
        // The result is a C int: the upper half of the register means nothing.
        match thread.call("starting the agent", entry, [dir, 0, 0])? as i32 {
            0 => Ok(route),
            code => Err(InjectError::Start { code }),
        }
    }

    /// The entry of an agent that is there already. Its file may be deleted or replaced: memory has it.
    fn entry_of(&self, mapping: &Mapping) -> Result<u64, InjectError> {
        Image::at(&self.mem, mapping.start)
            .and_then(|image| image.function(ENTRY.to_str().ok()?))
            .map(|f| f.addr)
            .ok_or_else(|| InjectError::NoEntry { path: mapping.path.clone() })
    }

    fn load(&self, thread: &mut Borrowed) -> Result<(Route, u64), InjectError> {
        if self.library.visible_to(self.pid)
            && let Ok(handle) = self.dlopen(thread, self.library.path.as_os_str().as_bytes())?
        {
            return Ok((Route::Path, self.dlsym(thread, handle)?));
        }
        // Not visible, on a noexec file system, or in a directory that the target's user cannot enter.
        let handle = self.dlopen_memfd(thread)?;
        Ok((Route::Memfd, self.dlsym(thread, handle)?))
    }

    fn dlopen_memfd(&self, thread: &mut Borrowed) -> Result<u64, InjectError> {
        let name = thread.put_str(&self.library.name())?;
        let fd = memfd(thread, name)?;
        let filled = self.library.bytes().and_then(|bytes| {
            fs::File::options()
                .write(true)
                .open(format!("/proc/{}/fd/{fd}", self.pid))
                .and_then(|mut file| file.write_all(&bytes))
                .map_err(|e| InjectError::os("copying the library", e))
        });
        let opened = filled.and_then(|()| self.dlopen(thread, format!("/proc/self/fd/{fd}").as_bytes()));
        thread.syscall(libc::SYS_close, [fd, 0, 0, 0, 0, 0])?.ok();
        opened?.map_err(|message| InjectError::Dlopen { message })
    }

    /// Err(message) inside when the target's loader refused.
    fn dlopen(&self, thread: &mut Borrowed, path: &[u8]) -> Result<Result<u64, String>, InjectError> {
        let path = thread.put_str(path)?;
        let handle = thread.call("dlopen", self.runtime.dlopen, [path, self.runtime.dlopen_mode, 0])?;
        if handle != 0 {
            return Ok(Ok(handle));
        }
        let Some(dlerror) = self.runtime.dlerror else { return Ok(Err("dlopen failed".into())) };
        let text = thread.call("dlerror", dlerror, [0; 3])?;
        Ok(Err(if text == 0 { "dlopen failed".into() } else { self.mem.read_str(text, MAX_MESSAGE) }))
    }

    fn dlsym(&self, thread: &mut Borrowed, handle: u64) -> Result<u64, InjectError> {
        let name = thread.put_str(ENTRY.to_bytes())?;
        match thread.call("dlsym", self.runtime.dlsym, [handle, name, 0])? {
            0 => Err(InjectError::NoEntry { path: self.library.path.display().to_string() }),
            entry => Ok(entry),
        }
    }
}

/// memfd_create in the target, executable also where vm.memfd_noexec is set.
fn memfd(thread: &mut Borrowed, name: u64) -> Result<u64, InjectError> {
    /// `linux/memfd.h`, since Linux 6.3.
    const MFD_EXEC: u64 = 0x10;
    const MFD_CLOEXEC: u64 = 1;
    let mut create = |flags| thread.syscall(libc::SYS_memfd_create, [name, flags, 0, 0, 0, 0]);
    let fd = match create(MFD_CLOEXEC | MFD_EXEC)? {
        Err(libc::EINVAL) => create(MFD_CLOEXEC)?,
        other => other,
    };
    fd.map_err(|errno| InjectError::os("memfd_create in the target", io::Error::from_raw_os_error(errno)))
}
