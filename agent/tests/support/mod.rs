//! What the hook tests share: the one engine, counting callbacks, and C functions built on the spot.
#![allow(dead_code)]

pub mod programs;
pub mod state;

use bpftime_agent::arch::PtRegs;
pub use bpftime_agent::hook::Detached;
use bpftime_agent::hook::{Callbacks, Carried, Engine, Form, Site, Want};
use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::sync::{LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What the callbacks note per site.
#[derive(Default)]
pub struct Tally {
    pub entries: AtomicU64,
    pub returns: AtomicU64,
    pub arg0: AtomicU64,
    pub ax: AtomicU64,
    pub ip: AtomicU64,
    pub sp: AtomicU64,
    pub order: AtomicU64,
    pub entry_sp: AtomicU64,
    /// When not 0, the entry callback answers "override" with this minus 1 in ax.
    pub override_with: AtomicU64,
}

static CLOCK: AtomicU64 = AtomicU64::new(1);

unsafe extern "C" fn on_entry(site: *const Site, regs: *mut PtRegs, _: &mut Carried) -> u64 {
    // SAFETY: the engine's arguments; programs is null or a leaked Tally.
    let (site, regs) = unsafe { (&*site, &mut *regs) };
    // SAFETY: as above.
    let Some(t) = (unsafe { (site.programs.load(Acquire) as *const Tally).as_ref() }) else { return 0 };
    assert_ip(regs.ip, site.addr);
    t.entries.fetch_add(1, Relaxed);
    t.arg0.fetch_add(regs.di as u32 as u64, Relaxed);
    t.entry_sp.store(regs.sp, Relaxed);
    let o = t.override_with.load(Relaxed);
    if o != 0 {
        regs.ax = o - 1;
        return 1;
    }
    0
}

fn assert_ip(got: u64, want: usize) {
    if got != want as u64 {
        std::process::abort();
    }
}

unsafe extern "C" fn on_return(site: *const Site, regs: *mut PtRegs, _: &mut Carried) {
    // SAFETY: as above.
    let (site, regs) = unsafe { (&*site, &*regs) };
    // SAFETY: as above.
    let Some(t) = (unsafe { (site.programs.load(Acquire) as *const Tally).as_ref() }) else { return };
    t.returns.fetch_add(1, Relaxed);
    t.ax.store(regs.ax, Relaxed);
    t.ip.store(regs.ip, Relaxed);
    t.sp.store(regs.sp, Relaxed);
    t.order.store(CLOCK.fetch_add(1, Relaxed), Relaxed);
}

pub const CALLBACKS: Callbacks = Callbacks { entry: on_entry, ret: on_return };

static ENGINE: LazyLock<Mutex<Engine>> = LazyLock::new(|| Mutex::new(Engine::new(CALLBACKS)));

/// The engine; tests take turns.
pub fn engine() -> MutexGuard<'static, Engine> {
    ENGINE.lock().unwrap_or_else(|e| e.into_inner())
}

/// Attaches and gives a fresh tally.
pub fn probe(engine: &mut Engine, addr: usize, want: Want) -> &'static Tally {
    let tally: &'static Tally = Box::leak(Box::default());
    let site = engine.attach(addr, want).unwrap_or_else(|e| panic!("attach {addr:#x}: {e}"));
    site.programs.store(std::ptr::from_ref(tally) as *mut (), Release);
    tally
}

/// Detaches everything and waits until the text is whole again.
pub fn clear(engine: &mut Engine) {
    let all: Vec<_> = engine.sites().map(|(s, _)| s.addr).collect();
    for addr in all {
        assert_ne!(engine.detach(addr), Detached::Absent);
    }
    settle(engine);
}

/// Calls upgrade until nothing waits.
pub fn settle(engine: &mut Engine) {
    let start = Instant::now();
    while engine.upgrade() > 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "upgrade never ends");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn form_of(engine: &Engine, addr: usize) -> Form {
    engine.sites().find(|(s, _)| s.addr == addr).map_or(Form::Bare, |(_, f)| f)
}

/// A shared object made from `tests/targets/<source>`.
pub struct Lib(*mut libc::c_void);

// SAFETY: a dlopen handle may be used from any thread.
unsafe impl Send for Lib {}
// SAFETY: as above.
unsafe impl Sync for Lib {}

impl Lib {
    pub fn build(source: &str, flags: &[&str]) -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/targets").join(source);
        let out =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{source}-{}.so", std::process::id()));
        let cc = if source.ends_with("cpp") { "g++" } else { "gcc" };
        let built = Command::new(cc)
            .args(["-shared", "-fPIC", "-O2", "-g", "-w"])
            .args(flags)
            .arg(&root)
            .arg("-o")
            .arg(&out)
            .arg("-lpthread")
            .status();
        assert!(built.is_ok_and(|s| s.success()), "{cc} cannot build {source}");
        let path = CString::new(out.to_str().unwrap()).unwrap();
        // SAFETY: a library of ours without constructors.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        // SAFETY: dlerror gives a string after a failure.
        assert!(!handle.is_null(), "{:?}", unsafe { CStr::from_ptr(libc::dlerror()) });
        let _ = std::fs::remove_file(out);
        Self(handle)
    }

    pub fn addr(&self, name: &str) -> usize {
        let c = CString::new(name).unwrap();
        // SAFETY: a valid handle and string.
        let p = unsafe { libc::dlsym(self.0, c.as_ptr()) };
        assert!(!p.is_null(), "no {name}");
        p as usize
    }

    /// `int name(int)`.
    pub fn int(&self, name: &str) -> extern "C" fn(i32) -> i32 {
        // SAFETY: the targets declare it so.
        unsafe { std::mem::transmute(self.addr(name)) }
    }

    /// `long name(long, long)`.
    pub fn long(&self, name: &str) -> extern "C" fn(i64, i64) -> i64 {
        // SAFETY: the targets declare it so; surplus arguments are ignored.
        unsafe { std::mem::transmute(self.addr(name)) }
    }

    /// The bytes of a function, for comparing text.
    pub fn text(&self, name: &str, len: usize) -> Vec<u8> {
        // SAFETY: inside the library's text.
        unsafe { std::slice::from_raw_parts(self.addr(name) as *const u8, len) }.to_vec()
    }
}

pub static HAZARDS: LazyLock<Lib> =
    LazyLock::new(|| Lib::build("hazards.S", &["-nostdlib", "-Wl,-Bsymbolic"]));
pub static SHAPES: LazyLock<Lib> = LazyLock::new(|| Lib::build("shapes.c", &["-Wl,-Bsymbolic"]));
pub static THROWS: LazyLock<Lib> = LazyLock::new(|| Lib::build("throws.cpp", &["-Wl,-Bsymbolic"]));
