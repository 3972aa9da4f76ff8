//! Functions that defeat naive patching (tests/targets/hazards.S): counted exactly, and still right.
mod support;
use bpftime_agent::hook::{Form, Want};
use std::sync::atomic::Ordering::*;
use support::*;

const ALL: [(&str, u64, u64); 17] = [
    ("hz_ret1", 5, 10),
    ("hz_two", 15, 30),
    ("hz_xor", 5, 10),
    ("hz_loopentry", 11, 20),
    ("hz_rip", 5, 10),
    ("hz_riplea", 5, 10),
    ("hz_jmp", 5, 10),
    ("hz_call1", 5, 10),
    ("hz_endbr", 5, 10),
    ("hz_jcc", 5, 10),
    ("hz_push", 5, 10),
    ("hz_nop5", 5, 10),
    ("hz_mid", 5, 10),
    ("hz_mid_pt", 5, 10),
    ("hz_redzone", 5, 10),
    ("hz_flags", 5, 10),
    ("hz_call_cf", 5, 10),
];

const CALLED: [&str; 14] = [
    "hz_two",
    "hz_xor",
    "hz_loopentry",
    "hz_rip",
    "hz_riplea",
    "hz_jmp",
    "hz_call1",
    "hz_endbr",
    "hz_jcc",
    "hz_push",
    "hz_nop5",
    "hz_mid",
    "hz_redzone",
    "hz_call_cf",
];

/// What hazards_main.c of the oracle case does.
fn run() -> i64 {
    let lib = &*HAZARDS;
    let mut sum = 0;
    for i in 0..5 {
        lib.int("hz_ret1")(i);
        sum += CALLED.iter().map(|name| lib.int(name)(i) as i64).sum::<i64>();
    }
    sum
}

const SUM: i64 = 51131;

fn check(want: Want, order: impl Iterator<Item = (&'static str, u64, u64)>) {
    let mut engine = engine();
    let start = HAZARDS.addr("hz_ret1");
    let len = HAZARDS.addr("hz_call_cf") + 8 - start;
    let before = HAZARDS.text("hz_ret1", len);
    assert_eq!(run(), SUM);
    let tallies: Vec<_> =
        order.map(|(n, c, s)| (n, c, s, probe(&mut engine, HAZARDS.addr(n), want))).collect();
    for round in 0..2 {
        assert_eq!(run(), SUM, "results change under probes");
        for (name, count, sum, t) in &tallies {
            let counted = t.entries.swap(0, Relaxed);
            let form = form_of(&engine, HAZARDS.addr(name));
            if want.entry {
                assert_eq!(
                    (counted, t.arg0.swap(0, Relaxed)),
                    (*count, *sum),
                    "{name} as {form:?}, round {round}"
                );
            }
        }
        settle(&mut engine);
    }
    clear(&mut engine);
    assert_eq!(HAZARDS.text("hz_ret1", len), before, "text is not restored");
    assert_eq!(run(), SUM);
    assert!(tallies.iter().all(|t| t.3.entries.load(Relaxed) == 0), "hits after detach");
}

#[test]
fn all_hazards_at_once_count_as_the_kernel_does() {
    check(Want::ENTRY, ALL.into_iter());
}

#[test]
fn all_hazards_in_reverse_order_of_attaching() {
    check(Want::ENTRY, ALL.into_iter().rev());
}

#[test]
fn each_hazard_alone() {
    for one in ALL {
        check(Want::ENTRY, std::iter::once(one));
    }
}

#[test]
fn return_probes_on_all_functions() {
    let mut engine = engine();
    let names = ALL.iter().filter(|(n, ..)| *n != "hz_mid_pt" && *n != "hz_loopentry");
    let tallies: Vec<_> =
        names.map(|(n, c, _)| (n, *c, probe(&mut engine, HAZARDS.addr(n), Want::BOTH))).collect();
    assert_eq!(run(), SUM);
    for (name, count, t) in tallies {
        assert_eq!((t.entries.load(Relaxed), t.returns.load(Relaxed)), (count, count), "{name}");
    }
    clear(&mut engine);
}

#[test]
fn neighbours_within_five_bytes_stay_exact_whatever_comes_and_goes() {
    let mut engine = engine();
    let before = HAZARDS.text("hz_ret1", 16);
    let two = probe(&mut engine, HAZARDS.addr("hz_two"), Want::ENTRY);
    assert_eq!(HAZARDS.int("hz_two")(4), 4);
    let xor = probe(&mut engine, HAZARDS.addr("hz_xor"), Want::ENTRY);
    let one = probe(&mut engine, HAZARDS.addr("hz_ret1"), Want::ENTRY);
    for i in 0..10 {
        assert_eq!((HAZARDS.int("hz_two")(i), HAZARDS.int("hz_xor")(i)), (i, 0));
        HAZARDS.int("hz_ret1")(i);
    }
    assert_eq!([two, xor, one].map(|t| t.entries.load(Relaxed)), [11, 10, 10]);
    engine.detach(HAZARDS.addr("hz_xor"));
    assert_eq!((HAZARDS.int("hz_two")(5), HAZARDS.int("hz_xor")(5)), (5, 0));
    assert_eq!([two, xor, one].map(|t| t.entries.load(Relaxed)), [12, 10, 10]);
    clear(&mut engine);
    assert_eq!(HAZARDS.text("hz_ret1", 16), before);
}

#[test]
fn a_probe_inside_another_ones_window_does_not_lose_hits() {
    let mut engine = engine();
    let outer = probe(&mut engine, HAZARDS.addr("hz_mid"), Want::ENTRY);
    assert_eq!(HAZARDS.int("hz_mid")(1), 111);
    let inner = probe(&mut engine, HAZARDS.addr("hz_mid_pt"), Want::ENTRY);
    assert_eq!(HAZARDS.int("hz_mid")(2), 112);
    assert_eq!((outer.entries.load(Relaxed), inner.entries.load(Relaxed)), (2, 1));
    clear(&mut engine);
    let inner = probe(&mut engine, HAZARDS.addr("hz_mid_pt"), Want::ENTRY);
    let outer = probe(&mut engine, HAZARDS.addr("hz_mid"), Want::ENTRY);
    assert_eq!(HAZARDS.int("hz_mid")(3), 113);
    assert_eq!((outer.entries.load(Relaxed), inner.entries.load(Relaxed)), (1, 1));
    clear(&mut engine);
}

#[test]
fn inside_an_instruction_is_refused() {
    let mut engine = engine();
    let addr = HAZARDS.addr("hz_endbr");
    probe(&mut engine, addr, Want::ENTRY);
    assert!(matches!(
        engine.attach(addr + 1, Want::ENTRY),
        Err(bpftime_agent::hook::CannotHook::InsideInstruction { .. })
    ));
    clear(&mut engine);
}

#[test]
fn what_is_not_code_is_refused_in_words() {
    let mut engine = engine();
    let data = Box::new(0u64);
    let e = engine.attach(&raw const *data as usize, Want::ENTRY).err().unwrap();
    assert!(e.to_string().contains("executable"), "{e}");
    assert!(engine.attach(8, Want::ENTRY).is_err());
}

#[test]
fn an_ordinary_prologue_is_jumped_from() {
    let mut engine = engine();
    for name in
        ["hz_push", "hz_endbr", "hz_rip", "hz_loopentry", "hz_jmp", "hz_call1", "hz_nop5", "hz_redzone"]
    {
        probe(&mut engine, HAZARDS.addr(name), Want::ENTRY);
        assert_eq!(form_of(&engine, HAZARDS.addr(name)), Form::Jump, "{name}");
    }
    clear(&mut engine);
}
