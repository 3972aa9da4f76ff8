//! What kind of process this is. The library is also loaded by the shell that starts the tool and by what the tool
//! starts; only the tool itself may be told that it is root, and its children get the agent instead of this library.

use bpftime_abi::config;
use std::ffi::{CStr, CString, OsStr, OsString, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// Programs that ask geteuid() before they try anything, by the name of their executable or script.
const DEMAND_ROOT: &[&str] = &["bpftrace", "bpftrace-aotrt", "exitsnoop-bpfcc"];

static BECAME: Once = Once::new();
static FAKE_ROOT: AtomicBool = AtomicBool::new(false);
/// Whether the user left it to us, so that bcc's library decides too.
static FAKE_ROOT_FOR_BCC: AtomicBool = AtomicBool::new(false);
static SECURE: AtomicBool = AtomicBool::new(false);

/// Runs at load, in any process.
pub fn init() {
    if bpftime_agent::lifecycle::secure_execution() {
        SECURE.store(true, Ordering::Relaxed);
        return;
    }
    log_panics();
    let known = names().any(|n| DEMAND_ROOT.iter().any(|d| n == OsStr::new(d)));
    let wish = std::env::var_os(config::FAKE_ROOT).map(|v| v == "1");
    FAKE_ROOT.store(wish.unwrap_or(known), Ordering::Relaxed);
    FAKE_ROOT_FOR_BCC.store(wish.is_none(), Ordering::Relaxed);
    if known {
        become_tool();
    }
}

/// Set-user-id programs: everything passes through.
pub fn is_inert() -> bool {
    SECURE.load(Ordering::Relaxed)
}

/// Whether this process has shown to be a tool: by a call, or by bcc's library, which reads the kernel's symbols before
/// it calls.
pub fn is_tool() -> bool {
    BECAME.is_completed() || has_bcc()
}

/// By name, without the dynamic linker: dlopen searches every directory for a library that is not there.
fn has_bcc() -> bool {
    unsafe extern "C" fn is_it(info: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
        // SAFETY: the C library passes a valid structure.
        let name = unsafe { (*info).dlpi_name };
        if name.is_null() {
            return 0;
        }
        // SAFETY: a terminated string.
        let path = unsafe { CStr::from_ptr(name) }.to_bytes();
        let file = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
        let rest = file.strip_prefix(b"libbcc.so");
        c_int::from(rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'.'))
    }
    // SAFETY: the function takes no data.
    unsafe { libc::dl_iterate_phdr(Some(is_it), std::ptr::null_mut()) != 0 }
}

/// Whether geteuid() answers 0. libbcc looks for the kernel's symbols, and so for the names of functions that tools put
/// kprobes on, only as root.
pub fn fakes_root() -> bool {
    FAKE_ROOT.load(Ordering::Relaxed) || FAKE_ROOT_FOR_BCC.load(Ordering::Relaxed) && has_bcc()
}

/// The executable's name, and what an interpreter was given to run.
fn names() -> impl Iterator<Item = OsString> {
    let command = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    let script = command.split(|b| *b == 0).nth(1).map(|p| PathBuf::from(OsStr::from_bytes(p)));
    let files = [std::fs::read_link("/proc/self/exe").ok(), script];
    files.into_iter().flatten().filter_map(|p| Some(p.file_name()?.to_os_string()))
}

fn log_panics() {
    std::panic::set_hook(Box::new(|info| tracing::error!(%info, "internal error")));
}

/// Runs at the start of a program of ours, instead: what makes a process a tool need not be looked for, and what it starts
/// is no target.
pub fn init_loader() {
    log_panics();
    BECAME.call_once(start_log);
}

/// From the first BPF call on this process is a tool: programs it starts are targets, so they get the agent.
pub fn become_tool() {
    BECAME.call_once(|| {
        start_log();
        if let Some(value) = childrens_preload() {
            set_env("LD_PRELOAD", &value);
        }
    });
}

fn set_env(name: &str, value: &OsStr) {
    let (Ok(name), Ok(value)) = (CString::new(name), CString::new(value.as_bytes())) else { return };
    // SAFETY: terminated strings. The C library's setenv, so that its execve and system() see it.
    unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 1) };
}

/// LD_PRELOAD for children: the agent in this library's place, everything else as it was.
fn childrens_preload() -> Option<OsString> {
    let me = own_path()?;
    let agent = agent_path(&me);
    let old = std::env::var_os("LD_PRELOAD").unwrap_or_default();
    let is_server = |p: &[u8]| Path::new(OsStr::from_bytes(p)).file_name() == me.file_name();
    let is_agent = |p: &[u8]| OsStr::from_bytes(p).to_string_lossy().contains("libbpftime-agent");
    let mut parts: Vec<&[u8]> = old
        .as_bytes()
        .split(|b| *b == b':' || *b == b' ')
        .filter(|p| !p.is_empty() && !is_server(p))
        .collect();
    if let Some(agent) = agent.as_ref().filter(|_| !parts.iter().any(|p| is_agent(p))) {
        parts.insert(0, agent.as_os_str().as_bytes());
    }
    Some(OsStr::from_bytes(&parts.join(&b':')).to_os_string())
}

/// Path of this library as the dynamic linker loaded it.
pub fn own_path() -> Option<PathBuf> {
    // SAFETY: Dl_info is plain data that dladdr fills; our own function is in our own library.
    let info = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        (libc::dladdr(own_path as *const _, &mut info) != 0).then_some(info)?
    };
    // SAFETY: dladdr returns a terminated string that lives as long as the library.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    std::fs::canonicalize(OsStr::from_bytes(name.to_bytes())).ok()
}

fn agent_path(me: &Path) -> Option<PathBuf> {
    let beside = me.parent()?;
    let dirs = match std::env::var_os(config::LIB_DIR) {
        Some(dir) => vec![PathBuf::from(dir)],
        // Of a library, and of a program that has the server in it.
        None => vec![beside.to_path_buf(), beside.join("../lib")],
    };
    dirs.into_iter().map(|dir| dir.join("libbpftime-agent.so")).find(|p| p.exists())
}

/// The agent library that belongs to this one.
pub fn agent_library() -> Option<PathBuf> {
    agent_path(&own_path()?)
}

/// The injector that belongs to this library: `../bin/bpftime-agent`.
pub fn injector() -> Option<PathBuf> {
    let me = own_path()?;
    let beside = me.parent()?;
    let candidates = [beside.join("../bin/bpftime-agent"), beside.join("bpftime-agent")];
    candidates.into_iter().find(|p| p.exists())
}

/// Whether the agent is preloaded beside this library, so that this process traces itself already.
pub fn agent_is_loaded() -> bool {
    // SAFETY: a terminated constant.
    unsafe { !libc::dlsym(libc::RTLD_DEFAULT, c"bpftime_agent_start".as_ptr()).is_null() }
}

fn start_log() {
    let Some(filter) = std::env::var_os(config::LOG).filter(|v| !v.is_empty()) else { return };
    let filter = tracing_subscriber::EnvFilter::new(filter.to_string_lossy());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    let file = std::env::var_os(config::LOG_FILE)
        .and_then(|p| std::fs::OpenOptions::new().create(true).append(true).open(p).ok());
    let _ = match file {
        Some(f) => builder.with_writer(std::sync::Mutex::new(f)).try_init(),
        None => builder.with_writer(std::io::stderr).try_init(),
    };
}
