//! Patching under running threads.
mod support;
use bpftime_agent::hook::{Form, Mute, Want};
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::time::Duration;
use support::*;

const BUSY: [&str; 7] =
    ["sh_plain", "sh_double", "sh_recurse", "sh_tail_a", "sh_tail_b", "sh_tail_c", "sh_pair"];

#[test]
fn threads_calling_while_probes_come_and_go_compute_the_same() {
    let mut engine = engine();
    let before = BUSY.map(|n| SHAPES.text(n, 32));
    assert_eq!(SHAPES.int("sh_crowd_start")(64), 0);
    let mut hits = 0;
    // 150 x 7 = 1050 probes come and go
    for round in 0..150 {
        let want = [Want::ENTRY, Want::BOTH, Want::RETURN][round % 3];
        let t = BUSY.map(|n| probe(&mut engine, SHAPES.addr(n), want));
        if round % 30 == 0 {
            std::thread::sleep(Duration::from_millis(30));
        }
        hits += t.iter().map(|t| t.entries.load(Relaxed) + t.returns.load(Relaxed)).sum::<u64>();
        for n in BUSY {
            engine.detach(SHAPES.addr(n));
        }
        if round % 50 == 0 {
            engine.upgrade();
        }
    }
    clear(&mut engine);
    assert!(engine.quiesce(Duration::from_secs(20)));
    assert_eq!(BUSY.map(|n| SHAPES.text(n, 32)), before, "text is not restored");
    assert_eq!(SHAPES.int("sh_crowd_stop")(0), 0, "a thread computed something wrong");
    assert!(hits > 0);
}

#[test]
fn threads_that_start_and_end_while_patching() {
    let mut engine = engine();
    assert_eq!(SHAPES.int("sh_crowd_start")(4), 0);
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let n = SHAPES.int("sh_mayflies")(2000);
            done.store(true, Relaxed);
            assert_eq!(n, 1);
        });
        let mut rounds = 0;
        while !done.load(Relaxed) {
            for n in BUSY {
                probe(&mut engine, SHAPES.addr(n), Want::BOTH);
            }
            for n in BUSY {
                engine.detach(SHAPES.addr(n));
            }
            rounds += 1;
        }
        assert!(rounds > 0);
    });
    clear(&mut engine);
    assert_eq!(SHAPES.int("sh_crowd_stop")(0), 0);
}

#[test]
fn counts_are_exact_under_many_threads() {
    let mut engine = engine();
    let t = probe(&mut engine, SHAPES.addr("sh_plain"), Want::BOTH);
    const N: u64 = 50_000;
    std::thread::scope(|s| {
        for _ in 0..16 {
            s.spawn(|| (0..N as i64).for_each(|i| assert_eq!(SHAPES.long("sh_plain")(i, 2), i * 31 + 2)));
        }
    });
    assert_eq!((t.entries.load(Relaxed), t.returns.load(Relaxed)), (16 * N, 16 * N));
    clear(&mut engine);
}

#[test]
fn a_muted_thread_is_not_seen() {
    let mut engine = engine();
    let t = probe(&mut engine, SHAPES.addr("sh_plain"), Want::BOTH);
    let quiet = Mute::new();
    assert_eq!(SHAPES.long("sh_plain")(1, 2), 33);
    drop(quiet);
    assert_eq!(SHAPES.long("sh_plain")(1, 2), 33);
    assert_eq!((t.entries.load(Relaxed), t.returns.load(Relaxed)), (1, 1));
    clear(&mut engine);
}

#[test]
fn a_thread_that_blocks_sigtrap_survives() {
    let mut engine = engine();
    assert_eq!(SHAPES.int("sh_deaf_start")(0), 1);
    // The engine believes for some ms what it saw of the threads: here, for the test before this one.
    std::thread::sleep(Duration::from_millis(20));
    let before = SHAPES.text("sh_plain", 32);
    for _ in 0..20 {
        // What can be done without int3 is done; the rest is refused, naming the reason.
        for n in ["sh_plain", "sh_recurse", "sh_double"] {
            match engine.attach(SHAPES.addr(n), Want::BOTH) {
                Ok(_) => assert!(matches!(form_of(&engine, SHAPES.addr(n)), Form::Jump | Form::Short)),
                Err(e) => assert!(e.to_string().contains("SIGTRAP"), "{e}"),
            }
        }
        for n in ["sh_plain", "sh_recurse", "sh_double"] {
            engine.detach(SHAPES.addr(n));
        }
    }
    SHAPES.int("sh_crowd_stop")(0);
    std::thread::sleep(Duration::from_millis(250));
    clear(&mut engine);
    assert_eq!(SHAPES.text("sh_plain", 32), before);
}

#[test]
fn quiesce_waits_for_a_callback_in_progress() {
    use bpftime_agent::hook::ThreadBlock;
    let mut engine = engine();
    static INSIDE: AtomicBool = AtomicBool::new(false);
    let t = std::thread::spawn(|| {
        // Stands for a long callback: the depth word as `enter` and `leave` write it.
        let b = ThreadBlock::current().unwrap();
        b.active.fetch_add(1, SeqCst);
        INSIDE.store(true, SeqCst);
        std::thread::sleep(Duration::from_millis(200));
        b.active.fetch_add(0xffff, SeqCst);
    });
    while !INSIDE.load(SeqCst) {
        std::thread::yield_now();
    }
    assert!(!engine.quiesce(Duration::from_millis(20)), "the callback still runs");
    assert!(engine.quiesce(Duration::from_secs(20)));
    t.join().unwrap();
    assert!(engine.quiesce(Duration::from_secs(1)));
}
