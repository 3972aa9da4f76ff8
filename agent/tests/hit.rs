//! The assembly that runs a probe's programs: nothing of the machine changes, whatever they do.
mod support;

use bpftime_agent::arch::PtRegs;
use bpftime_agent::hook::{Callbacks, Engine};
use bpftime_agent::run::enter::{self, ABANDONED, Entry, Session};
use bpftime_agent::run::image::Program;
use bpftime_vm::image::Needs;
use std::arch::global_asm;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use support::programs::{calling, entry, install, program, remove, session, session_of};

// state_call loads everything from STATE_IN, calls STATE_F, and stores everything to STATE_OUT.
global_asm!(
    ".pushsection .bss",
    ".balign 64",
    "STATE_IN: .zero 768",
    "STATE_OUT: .zero 768",
    "STATE_F: .zero 8",
    ".popsection",
    ".pushsection .text",
    ".p2align 4",
    "state_call:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "fldcw [rip + STATE_IN + 140]",
    "fld qword ptr [rip + STATE_IN + 128]",
    "ldmxcsr [rip + STATE_IN + 136]",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovups ymm\\i, [rip + STATE_IN + 256 + 32 * \\i]",
    ".endr",
    "mov rcx, [rip + STATE_IN + 8]",
    "mov rdx, [rip + STATE_IN + 16]",
    "mov rbx, [rip + STATE_IN + 24]",
    "mov rbp, [rip + STATE_IN + 32]",
    "mov rsi, [rip + STATE_IN + 40]",
    "mov rdi, [rip + STATE_IN + 48]",
    ".irp i, 8,9,10,11,12,13,14,15",
    "mov r\\i, [rip + STATE_IN + 8 * (\\i - 1)]",
    ".endr",
    "push qword ptr [rip + STATE_IN + 120]",
    "popfq",
    "mov rax, [rip + STATE_IN]",
    "call [rip + STATE_F]",
    "mov [rip + STATE_OUT], rax",
    "mov [rip + STATE_OUT + 8], rcx",
    "mov [rip + STATE_OUT + 16], rdx",
    "mov [rip + STATE_OUT + 24], rbx",
    "mov [rip + STATE_OUT + 32], rbp",
    "mov [rip + STATE_OUT + 40], rsi",
    "mov [rip + STATE_OUT + 48], rdi",
    ".irp i, 8,9,10,11,12,13,14,15",
    "mov [rip + STATE_OUT + 8 * (\\i - 1)], r\\i",
    ".endr",
    "pushfq",
    "pop qword ptr [rip + STATE_OUT + 120]",
    "cld",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovups [rip + STATE_OUT + 256 + 32 * \\i], ymm\\i",
    ".endr",
    "vzeroupper",
    "stmxcsr [rip + STATE_OUT + 136]",
    "fnstcw [rip + STATE_OUT + 140]",
    "fstp qword ptr [rip + STATE_OUT + 128]",
    "fninit",
    "push 0x1f80",
    "ldmxcsr [rsp]",
    "pop rax",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    // Does nothing at all, twice; and a leaf that keeps something in its red zone over the second instruction.
    ".p2align 4",
    "state_nop: nop dword ptr [rax + rax]",
    "ret",
    ".p2align 4, 0xcc",
    "state_leaf: mov [rsp - 128], rdi",
    "mov [rsp - 8], rsi",
    "state_inside: nop dword ptr [rax + rax]",
    "mov rax, [rsp - 128]",
    "sub rax, [rsp - 8]",
    "ret",
    ".p2align 4, 0xcc",
    "state_recurse: sub rsp, 8",
    "dec rdi",
    "jle 2f",
    "call state_recurse",
    "2: add rsp, 8",
    "ret",
    ".p2align 4, 0xcc",
    // A program: every vector register is changed.
    "state_dirty: pcmpeqd xmm0, xmm0",
    ".irp i, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "movdqa xmm\\i, xmm0",
    ".endr",
    "xor eax, eax",
    "ret",
    "state_dirty_end:",
    ".popsection",
);

unsafe extern "C" {
    static mut STATE_IN: [u64; 96];
    static STATE_OUT: [u64; 96];
    static mut STATE_F: unsafe extern "C" fn();
    fn state_call();
    fn state_nop();
    fn state_leaf();
    fn state_inside();
    fn state_recurse();
    fn state_dirty();
    fn state_dirty_end();
}

const FLAGS: usize = 15;
const DF: u64 = 0x400;

static ENGINE: LazyLock<Mutex<Engine>> =
    LazyLock::new(|| Mutex::new(Engine::new(Callbacks { entry: enter::on_entry, ret: enter::on_return })));

fn engine() -> MutexGuard<'static, Engine> {
    ENGINE.lock().unwrap_or_else(|e| e.into_inner())
}

fn address(f: unsafe extern "C" fn()) -> usize {
    f as usize
}

/// Code between two labels.
fn code_of(from: unsafe extern "C" fn(), to: unsafe extern "C" fn()) -> Vec<u8> {
    // SAFETY: text of this program.
    unsafe { std::slice::from_raw_parts(from as *const u8, to as usize - from as usize) }.to_vec()
}

const NOTHING: &[u8] = &[0x31, 0xc0, 0xc3]; // xor eax, eax; ret
const FAULT: &[u8] = &[0x31, 0xc0, 0x48, 0x8b, 0x00, 0xc3]; // xor eax, eax; mov rax, [rax]; ret
const NO_FUEL: &[u8] = &[0x49, 0xc7, 0x01, 0xff, 0xff, 0xff, 0xff, 0xc3]; // mov qword [r9], -1; ret

/// Calls helper 5 and then `rest`, without a word about vector registers: the helper has saved them.
fn after_helper(rest: &[u8]) -> Arc<Program> {
    let mut code =
        vec![0x48, 0x83, 0xec, 8, 0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xd0, 0x48, 0x83, 0xc4, 8];
    code.extend(rest);
    program(&code, Needs { calls: true, ..Needs::default() }, Some((6, 5)))
}

fn silent() -> Needs {
    Needs::default()
}

static SEEN: Mutex<Option<PtRegs>> = Mutex::new(None);

unsafe extern "C" fn note(ctx: u64) {
    // SAFETY: the context of a probe's program.
    *SEEN.lock().unwrap() = Some(unsafe { *(ctx as *const PtRegs) });
}

static COUNT: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn count(_: u64) {
    COUNT.fetch_add(1, Relaxed);
}

/// A register file in which no two words are the same.
fn state(flags: u64) -> [u64; 96] {
    let mut s: [u64; 96] = std::array::from_fn(|i| 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(i as u64 + 1));
    s[FLAGS] = flags;
    s[16] = 1.25f64.to_bits();
    s[17] = 0x0e7f_0000_9fc0; // x87: all masked, round to zero; mxcsr: flush to zero, all masked
    s[18..32].fill(0);
    s
}

/// Runs the function under `flags` and compares everything with what it was.
fn unchanged(f: unsafe extern "C" fn(), flags: u64, what: &str) -> [u64; 96] {
    let before = state(flags);
    // SAFETY: under the engine's lock; the function changes nothing.
    let after = unsafe {
        STATE_IN = before;
        STATE_F = f;
        state_call();
        (&raw const STATE_OUT).read_volatile()
    };
    for i in 0..96 {
        assert_eq!(
            after[i], before[i],
            "{what}, flags {flags:#x}: word {i} is {:#x}, was {:#x}",
            after[i], before[i]
        );
    }
    before
}

/// Every combination of the status flags, with the direction flag and without.
fn all_flags() -> impl Iterator<Item = u64> {
    let bits = [0x1, 0x4, 0x10, 0x40, 0x80, 0x800, DF];
    (0..128u64).map(move |n| {
        0x202 | bits.iter().enumerate().filter(|(i, _)| n >> i & 1 == 1).map(|(_, b)| b).sum::<u64>()
    })
}

fn avx() -> bool {
    std::arch::is_x86_feature_detected!("avx")
}

/// Each kind of program, and all of them in a row.
fn kinds(session: &Arc<Session>) -> Vec<(&'static str, Vec<Entry>)> {
    let dirty = code_of(state_dirty, state_dirty_end);
    let on = |p: Arc<Program>| entry(&p, session);
    let nothing = || on(program(NOTHING, silent(), None));
    let by_itself = || on(program(&dirty, Needs { vector: true, ..silent() }, None));
    let after = || on(after_helper(&dirty));
    vec![
        ("nothing", vec![nothing()]),
        ("looks at registers", vec![on(calling(note))]),
        ("vectors by itself", vec![by_itself()]),
        ("vectors after a helper", vec![after()]),
        ("a fault", vec![on(program(FAULT, silent(), None))]),
        ("a fault after a helper", vec![on(after_helper(FAULT))]),
        ("no fuel", vec![on(program(NO_FUEL, silent(), None))]),
        (
            "all",
            vec![
                nothing(),
                after(),
                on(program(FAULT, silent(), None)),
                by_itself(),
                nothing(),
                on(calling(note)),
            ],
        ),
    ]
}

#[test]
fn every_register_and_flag_survives_every_kind_of_program() {
    if !avx() {
        return println!("skipped: needs AVX");
    }
    let (mut engine, session, at) = (engine(), session(), address(state_nop));
    unchanged(state_nop, 0x202, "no probe");
    for side in 0..3 {
        let lists = kinds(&session).into_iter().zip(kinds(&session));
        for ((name, first), (_, second)) in lists {
            let (entry, ret) = match side {
                0 => (first, Vec::new()),
                1 => (Vec::new(), second),
                _ => (first, second),
            };
            install(&mut engine, at, entry, ret);
            for flags in all_flags() {
                unchanged(state_nop, flags, &format!("{name}, side {side}"));
            }
            remove(&mut engine, at);
        }
    }
}

#[test]
fn a_program_that_looks_at_the_registers_sees_all_of_them() {
    if !avx() {
        return println!("skipped: needs AVX");
    }
    let (mut engine, session, at) = (engine(), session(), address(state_nop));
    for ret in [false, true] {
        let list = vec![entry(&calling(note), &session)];
        let (on_entry, on_return) = if ret { (Vec::new(), list) } else { (list, Vec::new()) };
        install(&mut engine, at, on_entry, on_return);
        for flags in all_flags() {
            let s = unchanged(state_nop, flags, "note");
            let r = SEEN.lock().unwrap().take().expect("the program ran");
            assert_eq!([r.ax, r.cx, r.dx, r.bx, r.bp, r.si, r.di], s[..7]);
            assert_eq!([r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15], s[7..15]);
            assert_eq!((r.flags, r.cs, r.ss, r.orig_ax), (flags, 0x33, 0x2b, u64::MAX));
            let returns_to = address(state_call)..address(state_nop);
            assert!(if ret { returns_to.contains(&(r.ip as usize)) } else { r.ip == at as u64 });
        }
        remove(&mut engine, at);
    }
}

#[test]
fn the_red_zone_of_a_leaf_is_not_touched() {
    let (mut engine, session, at) = (engine(), session(), address(state_inside));
    // SAFETY: long (long, long).
    let leaf: extern "C" fn(i64, i64) -> i64 = unsafe { std::mem::transmute(state_leaf as *const ()) };
    for (name, list) in kinds(&session) {
        install(&mut engine, at, list, Vec::new());
        for i in 0..100 {
            assert_eq!(leaf(i * 1000, 1), i * 1000 - 1, "{name}");
        }
        remove(&mut engine, at);
    }
}

#[test]
fn what_faults_or_runs_out_of_fuel_runs_once() {
    let (mut engine, session, at) = (engine(), session(), address(state_nop));
    for code in [FAULT, NO_FUEL] {
        let list = vec![entry(&program(code, silent(), None), &session), entry(&calling(count), &session)];
        install(&mut engine, at, list, Vec::new());
        let (abandoned, counted) = (ABANDONED.load(Relaxed), COUNT.load(Relaxed));
        for _ in 0..10 {
            // SAFETY: a function that does nothing.
            unsafe { state_nop() };
        }
        assert_eq!(ABANDONED.load(Relaxed), abandoned + 1);
        assert_eq!(COUNT.load(Relaxed), counted + 10, "the next program on the probe runs all the same");
        remove(&mut engine, at);
    }
    // All CPU slots were given back.
    let me = bpftime_shm::session::page::OwnerWord::new(9, 9);
    assert!(
        (0..session.page.slots()).all(|cpu| session.page.acquire(cpu, me, |_| true, || false) == Some(cpu))
    );
}

#[test]
fn a_run_that_finds_no_cpu_slot_is_counted_and_the_others_happen() {
    let (mut engine, at) = (engine(), address(state_nop));
    let (full, free) = (session_of(1), session());
    // SAFETY: takes nothing, cannot fail.
    let tid = unsafe { libc::gettid() } as u32;
    let me = bpftime_shm::session::page::OwnerWord::new(1, tid);
    assert_eq!(full.page.acquire(0, me, |_| true, || false), Some(0));
    let list = vec![entry(&calling(count), &full), entry(&calling(count), &free)];
    install(&mut engine, at, list, Vec::new());
    let (missed, counted) = (full.page.missed(), COUNT.load(Relaxed));
    for _ in 0..10 {
        // SAFETY: a function that does nothing.
        unsafe { state_nop() };
    }
    assert_eq!((full.page.missed() - missed, COUNT.load(Relaxed) - counted), (10, 10));
    full.page.release(0);
    // SAFETY: as above.
    unsafe { state_nop() };
    assert_eq!((full.page.missed() - missed, COUNT.load(Relaxed) - counted), (10, 12));
    remove(&mut engine, at);
}

#[test]
fn entries_and_returns_of_a_deep_recursion_are_all_counted() {
    let (mut engine, session, at) = (engine(), session(), address(state_recurse));
    let list = || vec![entry(&calling(count), &session)];
    install(&mut engine, at, list(), list());
    // SAFETY: void (long).
    let recurse: extern "C" fn(i64) = unsafe { std::mem::transmute(state_recurse as *const ()) };
    for depth in [1, 15, 16, 17, 33, 500] {
        let before = COUNT.load(Relaxed);
        recurse(depth);
        assert_eq!(COUNT.load(Relaxed) - before, 2 * depth as u64);
    }
    assert_eq!(bpftime_agent::hook::slots_in_use(), 0);
    remove(&mut engine, at);
}

#[test]
fn a_program_for_one_process_runs_in_no_other() {
    let (mut engine, session, at) = (engine(), session(), address(state_nop));
    let only = |pid| {
        let switch = Arc::new(std::sync::atomic::AtomicBool::new(true));
        Entry::new(calling(count), session.clone(), 0, switch, pid, 0)
    };
    install(&mut engine, at, vec![only(std::process::id()), only(1)], Vec::new());
    let before = COUNT.load(Relaxed);
    // SAFETY: a function that does nothing.
    unsafe { state_nop() };
    assert_eq!(COUNT.load(Relaxed) - before, 1);
    remove(&mut engine, at);
}
