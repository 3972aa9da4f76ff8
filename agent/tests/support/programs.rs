//! Programs made of machine code, on probes, without a tool: what the assembly of the probe path runs.

use bpftime_agent::hook::{Engine, Want};
use bpftime_agent::run::enter::{Entry, Programs, Session};
use bpftime_agent::run::image::Program;
use bpftime_agent::run::process;
use bpftime_shm::session::page::Page;
use bpftime_vm::Image;
use bpftime_vm::image::{Needs, Parts, Reloc, Symbol};
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32};

/// What the agent finds out when it starts.
pub fn start() {
    static START: Once = Once::new();
    START.call_once(|| {
        process::init().unwrap();
        // SAFETY: glibc's symbol is a ptrdiff_t.
        unsafe {
            let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>();
            process::set_rseq_offset(*offset.as_ref().expect("a glibc that registers rseq"));
        }
        assert!(process::is_known());
    });
}

/// A session with as many CPU slots as there may be CPUs.
pub fn session() -> Arc<Session> {
    session_of(64)
}

pub fn session_of(slots: u32) -> Arc<Session> {
    start();
    let (_, page) = Page::create(slots).unwrap();
    Arc::new(Session { page, owner: AtomicU32::new(1) })
}

/// Machine code of the BPF calling convention. `helper` is the place of a helper's address, and its number.
pub fn program(code: &[u8], needs: Needs, helper: Option<(u32, u32)>) -> Arc<Program> {
    let reloc = |(offset, id)| Reloc { offset, symbol: Symbol::Helper(id), addend: 0 };
    let parts = Parts {
        needs,
        relocs: helper.map(reloc).into_iter().collect(),
        code: code.to_vec(),
        ..Parts::default()
    };
    let image = Image::build(parts).unwrap();
    Arc::new(Program::link(&image.to_bytes(), Vec::new()).unwrap())
}

/// Calls a function of the test's own, which may do what compiled Rust does.
pub fn calling(f: unsafe extern "C" fn(u64)) -> Arc<Program> {
    let mut code = vec![0x48, 0xb8]; // mov rax, imm64; jmp rax
    code.extend((f as usize as u64).to_le_bytes());
    code.extend([0xff, 0xe0]);
    program(&code, Needs { ctx_escapes: true, vector: true, calls: true, ..Needs::default() }, None)
}

/// The program on a link of its own.
pub fn entry(program: &Arc<Program>, session: &Arc<Session>) -> Entry {
    Entry::new(program.clone(), session.clone(), 7, Arc::new(AtomicBool::new(true)), 0, 0)
}

/// Puts lists on a probe. They stay for good.
pub fn install(engine: &mut Engine, addr: usize, entry: Vec<Entry>, ret: Vec<Entry>) {
    let want = Want { entry: !entry.is_empty(), ret: !ret.is_empty() };
    let site = engine.attach(addr, want).unwrap_or_else(|e| panic!("{addr:#x}: {e}"));
    std::mem::forget(Programs::publish(Some(Arc::new(Programs::new(entry.into(), ret.into(), false))), site));
    assert!(site.is_direct(), "run by the assembly");
}

/// Takes the lists off again; nobody may be in the function.
pub fn remove(engine: &mut Engine, addr: usize) {
    let site = engine.sites().find(|(s, _)| s.addr == addr).map(|(s, _)| s);
    engine.detach(addr);
    if let Some(site) = site {
        std::mem::forget(Programs::publish(None, site));
    }
}
