//! The assembly that runs a probe's programs: nothing of the machine changes, whatever they do.
mod support;

use bpftime_agent::arch::PtRegs;
use bpftime_agent::hook::{Callbacks, Engine, Mute, ThreadBlock, Want};
use bpftime_agent::run::enter::{self, ABANDONED, Entry, Programs, Session};
use bpftime_agent::run::image::Program;
use bpftime_vm::image::Needs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::Duration;
use support::programs::{calling, entry, install, program, remove, session, session_of};
use support::state::{
    all_flags, avx, dirty, fault, state_call, state_inside, state_leaf, state_nop, state_recurse, unchanged,
};

static ENGINE: LazyLock<Mutex<Engine>> =
    LazyLock::new(|| Mutex::new(Engine::new(Callbacks { entry: enter::on_entry, ret: enter::on_return })));

fn engine() -> MutexGuard<'static, Engine> {
    ENGINE.lock().unwrap_or_else(|e| e.into_inner())
}

fn address(f: unsafe extern "C" fn()) -> usize {
    f as usize
}

const NOTHING: &[u8] = &[0x31, 0xc0, 0xc3]; // xor eax, eax; ret
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

/// As the image of a program says it that nothing can end early.
fn through() -> Needs {
    Needs { runs_through: true, ..Needs::default() }
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

/// Each kind of program, and all of them in a row.
fn kinds(session: &Arc<Session>) -> Vec<(&'static str, Vec<Entry>)> {
    let (dirty, fault) = (dirty(), fault());
    let off = |p: Arc<Program>| Entry::new(p, session.clone(), 0, Arc::new(AtomicBool::new(false)), 0, 0);
    let on = |p: Arc<Program>| entry(&p, session);
    let nothing = || on(program(NOTHING, silent(), None));
    let bare = || program(NOTHING, through(), None);
    let bare_looks = || on(program(NOTHING, Needs { ctx_words: 1, ..through() }, None));
    let by_itself = || on(program(&dirty, Needs { vector: true, ..silent() }, None));
    let after = || on(after_helper(&dirty));
    vec![
        ("nothing", vec![nothing()]),
        ("runs through", vec![on(bare())]),
        ("run through, but one that is off", vec![on(bare()), off(bare()), bare_looks()]),
        ("looks at registers", vec![on(calling(note))]),
        ("vectors by itself", vec![by_itself()]),
        ("vectors after a helper", vec![after()]),
        ("a fault", vec![on(program(&fault, silent(), None))]),
        ("a fault after a helper", vec![on(after_helper(&fault))]),
        ("no fuel", vec![on(program(NO_FUEL, silent(), None))]),
        (
            "all",
            vec![
                on(bare()),
                nothing(),
                after(),
                on(program(&fault, silent(), None)),
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
    for code in [fault(), NO_FUEL.to_vec()] {
        let list = vec![entry(&program(&code, silent(), None), &session), entry(&calling(count), &session)];
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
        let switch = Arc::new(AtomicBool::new(true));
        Entry::new(calling(count), session.clone(), 0, switch, pid, 0)
    };
    install(&mut engine, at, vec![only(std::process::id()), only(1)], Vec::new());
    let before = COUNT.load(Relaxed);
    // SAFETY: a function that does nothing.
    unsafe { state_nop() };
    assert_eq!(COUNT.load(Relaxed) - before, 1);
    remove(&mut engine, at);
}

static DEPTH: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn once_more(_: u64) {
    if DEPTH.fetch_add(1, Relaxed) == 0 {
        // SAFETY: a function that does nothing.
        unsafe { state_nop() };
    }
    DEPTH.fetch_sub(1, Relaxed);
    COUNT.fetch_add(1, Relaxed);
}

#[test]
fn a_hit_inside_of_a_hit_is_one_and_the_next_is_as_before() {
    let (mut engine, session, at) = (engine(), session(), address(state_nop));
    let list =
        || vec![entry(&calling(once_more), &session), entry(&program(NOTHING, through(), None), &session)];
    for (on_entry, on_return, each) in [(list(), Vec::new(), 2), (Vec::new(), list(), 2), (list(), list(), 6)]
    {
        install(&mut engine, at, on_entry, on_return);
        for _ in 0..10 {
            let before = COUNT.load(Relaxed);
            unchanged(state_nop, 0x202, "nested");
            assert_eq!(COUNT.load(Relaxed) - before, each);
            assert_eq!(ThreadBlock::existing().map(|b| b.depth()), Some(0));
        }
        remove(&mut engine, at);
    }
    assert_eq!(bpftime_agent::hook::slots_in_use(), 0);
}

#[test]
fn a_muted_thread_is_not_counted_whatever_was_known_of_it() {
    let (mut engine, session, at) = (engine(), session(), address(state_nop));
    let list = || vec![entry(&calling(count), &session)];
    install(&mut engine, at, list(), list());
    for _ in 0..3 {
        let before = COUNT.load(Relaxed);
        unchanged(state_nop, 0x202, "heard");
        let mute = Mute::new();
        unchanged(state_nop, 0x202, "muted");
        drop(mute);
        unchanged(state_nop, 0x202, "heard again");
        assert_eq!(COUNT.load(Relaxed) - before, 4);
    }
    remove(&mut engine, at);
}

static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_alarm(_: i32) {
    // SAFETY: a function that does nothing.
    unsafe { state_nop() };
    HANDLED.fetch_add(1, Relaxed);
}

#[test]
fn signal_handlers_hit_the_probe_that_they_interrupt_and_all_is_counted() {
    let (mut engine, session, at) = (engine(), session(), address(state_nop));
    let list = || vec![entry(&calling(count), &session), entry(&program(NOTHING, through(), None), &session)];
    for side in 0..3 {
        let (e, r) =
            [(list(), Vec::new()), (Vec::new(), list()), (list(), list())].into_iter().nth(side).unwrap();
        let each = 1 + u64::from(side == 2);
        install(&mut engine, at, e, r);
        let (before, handled) = (COUNT.load(Relaxed), HANDLED.load(Relaxed));
        // SAFETY: a handler that calls nothing but a function that does nothing; the calling thread's own id.
        let me = unsafe {
            libc::signal(libc::SIGALRM, on_alarm as extern "C" fn(i32) as usize);
            libc::pthread_self()
        };
        let stop = AtomicBool::new(false);
        let mut calls = 0;
        std::thread::scope(|s| {
            s.spawn(|| {
                while !stop.load(Relaxed) {
                    // SAFETY: a thread that waits for this one to end.
                    unsafe { libc::pthread_kill(me, libc::SIGALRM) };
                    std::thread::sleep(Duration::from_micros(50));
                }
            });
            while HANDLED.load(Relaxed) < handled + 500 {
                unchanged(state_nop, 0x202, "under signals");
                calls += 1;
            }
            stop.store(true, Relaxed);
        });
        let handled = HANDLED.load(Relaxed) - handled;
        assert_eq!(COUNT.load(Relaxed) - before, each * (calls + handled));
        remove(&mut engine, at);
    }
    assert_eq!(bpftime_agent::hook::slots_in_use(), 0);
}

#[test]
fn lists_come_and_go_under_threads_that_run_them() {
    let (mut engine, session, at) = (engine(), session(), address(state_nop));
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                while !stop.load(Relaxed) {
                    // SAFETY: a function that does nothing.
                    unsafe { state_nop() };
                }
            });
        }
        for round in 0..60 {
            let (_, first) = kinds(&session).swap_remove(round % kinds(&session).len());
            let (_, second) = kinds(&session).swap_remove(round * 7 % kinds(&session).len());
            let list = Arc::new(Programs::new(first.into(), second.into(), false));
            let site = engine.attach(at, Want::BOTH).expect("probed before");
            let mut old = vec![Programs::publish(Some(list), site)];
            if round % 3 == 0 {
                engine.detach(at);
                old.push(Programs::publish(None, site));
            }
            while !engine.quiesce(Duration::from_secs(1)) {}
            drop(old); // code and all
        }
        let site = engine.attach(at, Want::BOTH).expect("probed before");
        engine.detach(at);
        let last = Programs::publish(None, site);
        while !engine.quiesce(Duration::from_secs(1)) {}
        drop(last);
        stop.store(true, Relaxed);
    });
    assert_eq!(bpftime_agent::hook::slots_in_use(), 0);
}
