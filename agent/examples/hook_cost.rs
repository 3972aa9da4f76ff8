//! What a probe costs: nanoseconds per call of `long f(long, long)`, unprobed and with empty callbacks.
//!
//! `cargo run --release -p bpftime-agent --example hook_cost`

use bpftime_agent::arch::PtRegs;
use bpftime_agent::hook::{Callbacks, Carried, Engine, Form, Site, Want};
use std::time::Instant;

unsafe extern "C" fn entry(_: *const Site, _: *mut PtRegs, _: &mut Carried) -> u64 {
    0
}
unsafe extern "C" fn ret(_: *const Site, _: *mut PtRegs, _: &mut Carried) {}

// Prologues as compilers write them, and a chain of eight callers.
std::arch::global_asm!(
    ".pushsection .text.cost,\"ax\",@progbits",
    ".p2align 4",
    ".irp f, lea, push, endbr, add, ret, chain1, chain2, chain3, chain4, chain5, chain6, chain7, chain8",
    ".globl cost_\\f",
    ".hidden cost_\\f",
    ".endr",
    "cost_lea: lea rax, [rdi + rsi + 7]",
    "ret",
    ".p2align 4, 0xcc",
    "cost_push: push rbp",
    "mov rbp, rsp",
    "lea rax, [rdi + rsi]",
    "pop rbp",
    "ret",
    ".p2align 4, 0xcc",
    "cost_endbr: endbr64",
    "push rbx",
    "mov rbx, rdi",
    "lea rax, [rbx + rsi]",
    "pop rbx",
    "ret",
    ".p2align 4, 0xcc",
    "cost_add: mov rax, rdi",
    "add rax, rsi",
    "ret",
    ".p2align 4, 0xcc",
    "cost_ret: ret",
    ".p2align 4, 0xcc",
    "cost_chain0: ret",
    ".macro COST_CHAIN n, inner",
    ".p2align 4, 0xcc",
    "cost_chain\\n: sub rsp, 8",
    "call cost_chain\\inner",
    "add rsp, 8",
    "ret",
    ".endm",
    "COST_CHAIN 1, 0",
    "COST_CHAIN 2, 1",
    "COST_CHAIN 3, 2",
    "COST_CHAIN 4, 3",
    "COST_CHAIN 5, 4",
    "COST_CHAIN 6, 5",
    "COST_CHAIN 7, 6",
    "COST_CHAIN 8, 7",
    ".popsection",
);

type F = extern "C" fn(i64, i64) -> i64;
unsafe extern "C" {
    fn cost_lea();
    fn cost_push();
    fn cost_endbr();
    fn cost_add();
    fn cost_ret();
    fn cost_chain8();
}

/// The best of 21 runs, ns per call: other load on the machine only adds.
fn measure(f: F, n: u32) -> f64 {
    let mut runs: Vec<f64> = (0..21)
        .map(|_| {
            let start = Instant::now();
            for i in 0..n as i64 {
                std::hint::black_box(f)(i, 1);
            }
            start.elapsed().as_nanos() as f64 / n as f64
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    runs[0]
}

fn main() {
    let mut engine = Engine::new(Callbacks { entry, ret });
    let targets: [(&str, unsafe extern "C" fn()); 6] = [
        ("lea", cost_lea),
        ("push rbp", cost_push),
        ("endbr64", cost_endbr),
        ("mov, add", cost_add),
        ("1-byte ret", cost_ret),
        ("chain of 8", cost_chain8),
    ];
    println!("{:<12}{:>8}{:>10}{:>10}{:>10}  form", "target", "plain", "entry", "return", "both");
    for (name, f) in targets {
        let addr = f as *const () as usize;
        // SAFETY: long (long, long), or one that ignores them.
        let f: F = unsafe { std::mem::transmute(addr) };
        let plain = measure(f, 400_000);
        let mut form = Form::Bare;
        let costs = [Want::ENTRY, Want::RETURN, Want::BOTH].map(|want| {
            let probed: Vec<usize> = if name == "chain of 8" { chain() } else { vec![addr] };
            for a in &probed {
                if let Err(e) = engine.attach(*a, want) {
                    println!("{name}: {e}");
                }
            }
            while engine.upgrade() > 0 {}
            form = engine.sites().next().map_or(Form::Bare, |(_, f)| f);
            let cost = measure(f, if form == Form::Trap { 20_000 } else { 400_000 });
            for a in probed {
                engine.detach(a);
            }
            while engine.upgrade() > 0 {}
            cost
        });
        println!("{name:<12}{plain:>8.2}{:>10.2}{:>10.2}{:>10.2}  {form:?}", costs[0], costs[1], costs[2]);
    }
    let addr = cost_push as *const () as usize;
    let start = Instant::now();
    const ROUNDS: u32 = 2000;
    for _ in 0..ROUNDS {
        let _ = engine.attach(addr, Want::BOTH);
        engine.detach(addr);
    }
    println!(
        "attach + detach of one function: {:.1} us",
        start.elapsed().as_nanos() as f64 / 1e3 / ROUNDS as f64
    );
}

/// The eight functions of the chain, outermost last.
fn chain() -> Vec<usize> {
    unsafe extern "C" {
        fn cost_chain1();
        fn cost_chain2();
        fn cost_chain3();
        fn cost_chain4();
        fn cost_chain5();
        fn cost_chain6();
        fn cost_chain7();
    }
    let all: [unsafe extern "C" fn(); 8] = [
        cost_chain1,
        cost_chain2,
        cost_chain3,
        cost_chain4,
        cost_chain5,
        cost_chain6,
        cost_chain7,
        cost_chain8,
    ];
    all.map(|f| f as *const () as usize).to_vec()
}
