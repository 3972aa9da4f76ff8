//! Return probes through everything a call can do (tests/targets/shapes.c, throws.cpp).
mod support;
use bpftime_agent::hook::{Want, missed_returns, slots_in_use};
use std::sync::atomic::Ordering::*;
use support::*;

const SHAPED: [&str; 13] = [
    "sh_plain",
    "sh_double",
    "sh_x87",
    "sh_stack",
    "sh_varargs",
    "sh_struct",
    "sh_pair",
    "sh_recurse",
    "sh_tail_a",
    "sh_tail_b",
    "sh_tail_c",
    "sh_ymm",
    "sh_check",
];

#[test]
fn arguments_and_results_of_every_class_survive() {
    let mut engine = engine();
    for want in [Want::ENTRY, Want::RETURN, Want::BOTH] {
        let tallies = SHAPED.map(|n| (n, probe(&mut engine, SHAPES.addr(n), want)));
        assert_eq!(SHAPES.int("sh_check")(0), 1);
        if std::is_x86_feature_detected!("avx") {
            assert_eq!(SHAPES.int("sh_check_ymm")(0), 1);
        }
        for (name, t) in tallies {
            let calls = match name {
                "sh_recurse" => 21,
                "sh_ymm" if !std::is_x86_feature_detected!("avx") => 0,
                _ => 1,
            };
            let seen = (t.entries.load(Relaxed), t.returns.load(Relaxed));
            assert_eq!(seen, (calls * want.entry as u64, calls * want.ret as u64), "{name}");
        }
        clear(&mut engine);
    }
    assert!(slots_in_use() < 100, "{} slots", slots_in_use());
}

#[test]
fn the_return_context_is_the_kernels() {
    let mut engine = engine();
    let t = probe(&mut engine, SHAPES.addr("sh_plain"), Want::BOTH);
    assert_eq!(SHAPES.long("sh_plain")(5, 6), 161);
    assert_eq!(t.ax.load(Relaxed), 161);
    assert_eq!(t.sp.load(Relaxed), t.entry_sp.load(Relaxed) + 8);
    let ip = t.ip.load(Relaxed) as usize;
    let me = the_return_context_is_the_kernels as *const () as usize;
    assert!(ip.abs_diff(me) < 64 << 20, "return address {ip:#x} is in this program, near {me:#x}");
    clear(&mut engine);
}

#[test]
fn tail_calls_return_innermost_first_to_the_real_caller() {
    let mut engine = engine();
    let [a, b, c] =
        ["sh_tail_a", "sh_tail_b", "sh_tail_c"].map(|n| probe(&mut engine, SHAPES.addr(n), Want::RETURN));
    for _ in 0..100 {
        assert_eq!(SHAPES.long("sh_tail_a")(1, 0), 114);
    }
    assert_eq!([a, b, c].map(|t| t.returns.load(Relaxed)), [100; 3]);
    let order = [c, b, a].map(|t| t.order.load(Relaxed));
    assert!(order.is_sorted(), "{order:?}");
    let ips = [a, b, c].map(|t| t.ip.load(Relaxed));
    assert!(ips.iter().all(|ip| *ip == ips[0]), "all return to the same place: {ips:x?}");
    assert!(slots_in_use() < 100, "{} slots", slots_in_use());
    clear(&mut engine);
}

#[test]
fn exceptions_pass_and_leave_no_slots_behind() {
    let mut engine = engine();
    let missed = missed_returns();
    let tallies = ["th_leaf", "th_mid", "th_outer", "th_nest", "th_catch", "th_rethrow", "th_catch_rethrow"]
        .map(|n| probe(&mut engine, THROWS.addr(n), Want::BOTH));
    // SAFETY: int th_catch(int, int).
    let catch: extern "C" fn(i32, i32) -> i32 = unsafe { std::mem::transmute(THROWS.addr("th_catch")) };
    for _ in 0..300 {
        assert_eq!(catch(0, 20), 42);
        for depth in [0, 1, 8] {
            assert_eq!(catch(depth, -1), -1 - 2 - depth);
        }
        assert_eq!(THROWS.int("th_catch_rethrow")(-1), -7);
    }
    assert_eq!(catch(0, 1), 4);
    assert_eq!(tallies[0].entries.load(Relaxed), 300 * 5 + 1);
    assert_eq!(tallies[0].returns.load(Relaxed), 301, "a function left by an exception returns nothing");
    assert_eq!(tallies[4].returns.load(Relaxed), 300 * 4 + 1);
    assert!(slots_in_use() < 100, "{} slots", slots_in_use());
    assert_eq!(missed_returns(), missed);
    clear(&mut engine);
}

#[test]
fn a_rust_panic_passes_through_a_probed_frame() {
    #[inline(never)]
    extern "C-unwind" fn thrower(x: i32) -> i32 {
        if x < 0 {
            std::panic::panic_any(7i32)
        }
        std::hint::black_box(x) + 1
    }
    let mut engine = engine();
    let t = probe(&mut engine, thrower as *const () as usize, Want::BOTH);
    std::panic::set_hook(Box::new(|_| ()));
    for _ in 0..50 {
        let f: extern "C-unwind" fn(i32) -> i32 = std::hint::black_box(thrower);
        assert_eq!(*std::panic::catch_unwind(|| f(-1)).unwrap_err().downcast_ref::<i32>().unwrap(), 7);
        assert_eq!(f(1), 2);
    }
    let _ = std::panic::take_hook();
    assert_eq!((t.entries.load(Relaxed), t.returns.load(Relaxed)), (100, 50));
    clear(&mut engine);
}

#[test]
fn backtrace_shows_the_callers() {
    let mut engine = engine();
    let plain = SHAPES.int("sh_trace_top")(0);
    // SAFETY: void **sh_frames(void), 64 entries.
    let frames = unsafe {
        std::mem::transmute::<usize, extern "C" fn() -> *const [usize; 64]>(SHAPES.addr("sh_frames"))
    };
    // SAFETY: as above.
    let before = unsafe { *frames() };
    for n in ["sh_trace_leaf", "sh_trace_mid", "sh_trace_top"] {
        probe(&mut engine, SHAPES.addr(n), Want::BOTH);
    }
    let probed = SHAPES.int("sh_trace_top")(0);
    // SAFETY: as above.
    let after = unsafe { *frames() };
    let mut rest = after[..probed as usize].iter();
    // Each return address from before appears in order; stubs come in between. The first two are inside the functions.
    for (i, pc) in before[..plain as usize].iter().enumerate().filter(|(i, _)| *i != 3) {
        assert!(rest.any(|a| a == pc), "frame {i} {pc:#x} is gone: {:x?}", &after[..probed as usize]);
    }
    clear(&mut engine);
}

#[test]
fn longjmp_over_probed_frames_frees_their_slots() {
    let mut engine = engine();
    let missed = missed_returns();
    let t = probe(&mut engine, SHAPES.addr("sh_jump"), Want::BOTH);
    let outer = probe(&mut engine, SHAPES.addr("sh_jumps"), Want::BOTH);
    for _ in 0..10 {
        assert_eq!(SHAPES.int("sh_jumps")(5000), 5000);
    }
    assert_eq!((t.entries.load(Relaxed), t.returns.load(Relaxed)), (50_000, 0));
    assert_eq!(outer.returns.load(Relaxed), 10);
    assert_eq!(missed_returns(), missed);
    assert!(slots_in_use() < 100, "{} slots", slots_in_use());
    clear(&mut engine);
}

#[test]
fn deep_recursion_returns_every_time() {
    let mut engine = engine();
    let missed = missed_returns();
    let t = probe(&mut engine, SHAPES.addr("sh_recurse"), Want::BOTH);
    for depth in [50, 5000, 50, 10_000] {
        t.returns.store(0, Relaxed);
        assert_eq!(SHAPES.long("sh_recurse")(depth, 0), depth);
        assert_eq!(t.returns.load(Relaxed), depth as u64 + 1);
    }
    assert_eq!(missed_returns(), missed);
    clear(&mut engine);
}

#[test]
fn an_empty_pool_loses_events_but_no_call() {
    let mut engine = engine();
    let t = probe(&mut engine, SHAPES.addr("sh_recurse"), Want::BOTH);
    let before = missed_returns();
    let run = SHAPES.long("sh_recurse");
    let depth = std::thread::Builder::new()
        .stack_size(64 << 20)
        .spawn(move || run(40_000, 0))
        .unwrap()
        .join()
        .unwrap();
    assert_eq!(depth, 40_000);
    assert_eq!(t.entries.load(Relaxed), 40_001);
    assert_eq!(t.returns.load(Relaxed) + missed_returns() - before, 40_001);
    assert!(missed_returns() > before);
    t.returns.store(0, Relaxed);
    assert_eq!(SHAPES.long("sh_recurse")(100, 0), 100, "and the pool recovers");
    assert_eq!(t.returns.load(Relaxed), 101);
    clear(&mut engine);
}

#[test]
fn coroutines_return_in_any_order() {
    let mut engine = engine();
    let y = probe(&mut engine, SHAPES.addr("sh_yield"), Want::BOTH);
    let m = probe(&mut engine, SHAPES.addr("sh_main_side"), Want::BOTH);
    for _ in 0..20 {
        assert_eq!(SHAPES.long("sh_coroutines")(0, 0), 5050);
    }
    assert_eq!((y.returns.load(Relaxed), m.returns.load(Relaxed)), (2000, 2020));
    assert!(slots_in_use() < 100, "{} slots", slots_in_use());
    clear(&mut engine);
}

#[test]
fn threads_that_end_inside_a_probed_function() {
    let mut engine = engine();
    probe(&mut engine, SHAPES.addr("sh_exits"), Want::BOTH);
    probe(&mut engine, SHAPES.addr("sh_sleeps"), Want::BOTH);
    probe(&mut engine, SHAPES.addr("sh_plain"), Want::BOTH);
    for _ in 0..50 {
        assert_eq!(SHAPES.int("sh_thread_ends")(0), 1);
        assert_eq!(SHAPES.int("sh_mayflies")(5), 1);
    }
    assert!(slots_in_use() < 100, "{} slots", slots_in_use());
    clear(&mut engine);
}

#[test]
fn a_signal_handler_calls_probed_functions() {
    let mut engine = engine();
    let plain = probe(&mut engine, SHAPES.addr("sh_plain"), Want::BOTH);
    let tick = probe(&mut engine, SHAPES.addr("sh_tick"), Want::BOTH);
    let n = 3_000_000;
    let ticks = SHAPES.long("sh_timed")(n, 0);
    assert!(ticks > 0, "{ticks}");
    assert_eq!([plain.entries.load(Relaxed), plain.returns.load(Relaxed)], [n as u64; 2]);
    assert_eq!([tick.entries.load(Relaxed), tick.returns.load(Relaxed)], [ticks as u64; 2]);
    assert!(slots_in_use() < 100, "{} slots", slots_in_use());
    clear(&mut engine);
}

#[test]
fn fork_and_vfork_inside_a_probed_function() {
    let mut engine = engine();
    for n in ["sh_forks", "sh_fork_inside", "sh_vforked", "sh_plain"] {
        probe(&mut engine, SHAPES.addr(n), Want::BOTH);
    }
    for _ in 0..20 {
        assert_eq!(SHAPES.int("sh_fork_inside")(0), 9);
        let argv = [c"true".as_ptr(), std::ptr::null()];
        // SAFETY: int sh_vforked(char *const *).
        let f: extern "C" fn(*const *const i8) -> i32 =
            unsafe { std::mem::transmute(SHAPES.addr("sh_vforked")) };
        assert_eq!(f(argv.as_ptr()), 0);
    }
    assert!(slots_in_use() < 100, "{}", slots_in_use());
    clear(&mut engine);
}

#[test]
fn an_overridden_call_returns_what_the_program_says() {
    let mut engine = engine();
    for want in [Want::ENTRY, Want::BOTH] {
        let t = probe(&mut engine, SHAPES.addr("sh_plain"), want);
        t.override_with.store(1 + 4242, Relaxed);
        assert_eq!(SHAPES.long("sh_plain")(1, 1), 4242);
        t.override_with.store(0, Relaxed);
        assert_eq!(SHAPES.long("sh_plain")(1, 1), 32);
        clear(&mut engine);
    }
}

#[test]
fn wants_change_in_place() {
    let mut engine = engine();
    let addr = SHAPES.addr("sh_plain");
    let f = SHAPES.long("sh_plain");
    let t = probe(&mut engine, addr, Want::ENTRY);
    f(1, 1);
    engine.attach(addr, Want::RETURN).unwrap();
    f(1, 1);
    engine.attach(addr, Want::BOTH).unwrap();
    f(1, 1);
    assert_eq!((t.entries.load(Relaxed), t.returns.load(Relaxed)), (2, 2));
    clear(&mut engine);
}
