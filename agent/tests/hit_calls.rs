//! The assembly that reports system calls: nothing of the machine changes but what the call changes, whatever the programs
//! do, and they are told what the kernel tells.
mod support;

use bpftime_agent::hook::{Call, Callbacks, Engine};
use bpftime_agent::run::enter::{self, Entry, Session};
use bpftime_agent::syscalls::{Calls, Listeners, is_direct};
use bpftime_shm::session::wire::{CallContext, Side, SyscallEvent};
use bpftime_vm::image::Needs;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex};
use support::programs::{calling, entry, program, session};
use support::state::{all_flags, avx, compare, dirty, fault, run, state, state_replaced, state_system};

const GETPPID: u32 = libc::SYS_getppid as u32;
/// Words that a system call changes: rax, rcx, r11.
const CHANGED: [usize; 3] = [0, 1, 10];
const RDI: usize = 6;

static SEEN: Mutex<Vec<[u64; 8]>> = Mutex::new(Vec::new());

unsafe extern "C" fn note(ctx: u64) {
    // SAFETY: the context is a record of eight words.
    SEEN.lock().unwrap().push(unsafe { *(ctx as *const [u64; 8]) });
}

static COUNT: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn count(_: u64) {
    COUNT.fetch_add(1, Relaxed);
}

fn event(side: Side, nr: Option<u32>, context: CallContext) -> SyscallEvent {
    SyscallEvent { side, nr, context, cookie: 0 }
}

/// Both sides of getppid, and of all calls.
fn everywhere(listeners: &mut Listeners, entry: impl Fn() -> Entry, nr: Option<u32>, context: CallContext) {
    for side in [Side::Enter, Side::Exit] {
        listeners.add(&event(side, nr, context), entry());
    }
}

/// Each kind of list, and how many times it counts a call.
fn kinds(session: &Arc<Session>) -> Vec<(&'static str, Listeners, u64)> {
    let through = Needs { runs_through: true, ..Needs::default() };
    let nothing = || entry(&program(&[0x31, 0xc0, 0xc3], through, None), session);
    let vectors = || entry(&program(&dirty(), Needs { vector: true, ..Needs::default() }, None), session);
    let faults = || entry(&program(&fault(), Needs::default(), None), session);
    let counts = || entry(&calling(count), session);
    let (record, arguments, number) = (CallContext::Record, CallContext::Arguments, Some(GETPPID));
    let made = |make: &dyn Fn(&mut Listeners)| {
        let mut l = Listeners::default();
        make(&mut l);
        l
    };
    vec![
        ("nothing", made(&|l| everywhere(l, nothing, number, record)), 0),
        ("vectors", made(&|l| everywhere(l, vectors, number, record)), 0),
        ("a fault", made(&|l| everywhere(l, faults, number, record)), 0),
        ("only before", made(&|l| l.add(&event(Side::Enter, number, record), counts())), 1),
        ("only after", made(&|l| l.add(&event(Side::Exit, number, record), counts())), 1),
        ("raw", made(&|l| everywhere(l, counts, number, arguments)), 2),
        ("of all calls", made(&|l| everywhere(l, counts, None, record)), 2),
        ("another", made(&|l| everywhere(l, counts, Some(libc::SYS_getuid as u32), record)), 0),
        (
            "all",
            made(&|l| {
                everywhere(l, counts, None, record);
                everywhere(l, faults, number, record);
                everywhere(l, vectors, number, record);
                everywhere(l, counts, number, record);
                everywhere(l, nothing, number, record);
            }),
            4,
        ),
    ]
}

/// The calls of the two functions, rewritten, and what runs there.
struct Rewritten {
    engine: Engine,
    calls: Calls,
}

impl Rewritten {
    fn new() -> Self {
        // A program with a SIGSYS handler of its own has no calls dispatched, whatever else it runs: those that are rewritten
        // are reported by the assembly.
        extern "C" fn theirs(_: i32) {}
        // SAFETY: a handler that does nothing, for a signal that nobody sends.
        unsafe { libc::signal(libc::SIGSYS, theirs as extern "C" fn(i32) as usize) };
        let mut engine = Engine::new(Callbacks { entry: enter::on_entry, ret: enter::on_return });
        let call =
            |f: unsafe extern "C" fn(), len| Call { from: f as usize, at: f as usize + len, pad: None };
        let both = [call(state_system, 5), call(state_replaced, 3)];
        assert_eq!(engine.attach_calls(&both), both);
        Self { engine, calls: Calls::default() }
    }

    fn set(&mut self, listeners: Listeners) {
        self.calls.set(&mut self.engine, listeners, &[]);
        while !self.engine.quiesce(std::time::Duration::from_secs(1)) {}
        self.calls.collect_garbage();
    }
}

/// One test, since what runs at system calls belongs to the whole process.
#[test]
fn a_reported_system_call_changes_what_the_call_changes_and_nothing_else() {
    if !avx() {
        return println!("skipped: needs AVX");
    }
    let session = session();
    let mut rewritten = Rewritten::new();
    // SAFETY: takes nothing.
    let parent = unsafe { libc::getppid() } as u64;
    for f in [state_system, state_replaced] {
        for (name, listeners, each) in kinds(&session) {
            rewritten.set(listeners);
            assert!(is_direct(), "{name}: reported by the assembly");
            for flags in all_flags() {
                let mut before = state(flags);
                before[0] = 0xffff_ffff_0000_0000 | u64::from(GETPPID);
                let counted = COUNT.load(Relaxed);
                // SAFETY: getppid.
                let after = unsafe { run(f, &before) };
                compare(&after, &before, &CHANGED, name);
                assert_eq!(
                    (after[0], COUNT.load(Relaxed) - counted),
                    (parent, each),
                    "{name}, flags {flags:#x}"
                );
            }
            rewritten.set(Listeners::default());
        }
    }
    the_record_is_the_kernels(&mut rewritten, &session, parent);
    a_helper_that_reads_registers_finds_them(&mut rewritten, &session);
    threads_call_while_lists_come_and_go(&mut rewritten, &session);
}

fn the_record_is_the_kernels(rewritten: &mut Rewritten, session: &Arc<Session>, parent: u64) {
    let mut listeners = Listeners::default();
    everywhere(&mut listeners, || entry(&calling(note), session), Some(GETPPID), CallContext::Record);
    rewritten.set(listeners);
    let mut before = state(0x202);
    before[0] = u64::from(GETPPID);
    for _ in 0..3 {
        SEEN.lock().unwrap().clear();
        // SAFETY: getppid.
        unsafe { run(state_system, &before) };
        // SAFETY: takes nothing.
        let head = (unsafe { libc::gettid() } as u64) << 32;
        // rdi, rsi, rdx, r10, r8, r9
        let args = [RDI, 5, 2, 9, 7, 8].map(|i| before[i]);
        let [a, b, c, d, e, f] = args;
        let nr = u64::from(GETPPID);
        let want = [[head, nr, a, b, c, d, e, f], [head, nr, parent, 0, 0, 0, 0, 0]];
        assert_eq!(*SEEN.lock().unwrap(), want);
    }
    rewritten.set(Listeners::default());
}

static STACK_POINTER: AtomicU64 = AtomicU64::new(0);

/// Notes the sp that the registers of helper 175, task_pt_regs, have.
fn asks_for_registers() -> Vec<u8> {
    let mut code =
        vec![0x48, 0x83, 0xec, 8, 0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xd0, 0x48, 0x83, 0xc4, 8];
    code.extend([0x48, 0x8b, 0x88, 0x98, 0, 0, 0, 0x48, 0xba]); // mov rcx, [rax + 152]; mov rdx, imm64
    code.extend((&raw const STACK_POINTER as u64).to_le_bytes());
    code.extend([0x48, 0x89, 0x0a, 0x31, 0xc0, 0xc3]); // mov [rdx], rcx; xor eax, eax; ret
    code
}

fn a_helper_that_reads_registers_finds_them(rewritten: &mut Rewritten, session: &Arc<Session>) {
    let needs = Needs { calls: true, ..Needs::default() };
    for side in [Side::Enter, Side::Exit] {
        let mut listeners = Listeners::default();
        let program = program(&asks_for_registers(), needs, Some((6, 175)));
        listeners.add(&event(side, Some(GETPPID), CallContext::Record), entry(&program, session));
        rewritten.set(listeners);
        STACK_POINTER.store(0, Relaxed);
        let mut before = state(0x202);
        before[0] = u64::from(GETPPID);
        // SAFETY: getppid.
        unsafe { run(state_system, &before) };
        let here = &raw const before as u64;
        let sp = STACK_POINTER.load(Relaxed);
        assert!((here - 16384..here).contains(&sp), "{side:?}: sp was {sp:#x}, this frame has {here:#x}");
        rewritten.set(Listeners::default());
    }
}

fn threads_call_while_lists_come_and_go(rewritten: &mut Rewritten, session: &Arc<Session>) {
    let stop = std::sync::atomic::AtomicBool::new(false);
    // SAFETY: takes nothing.
    let parent = unsafe { libc::getppid() } as u64;
    let calls = || {
        // SAFETY: a function that takes its system call's number in rax; getppid clobbers what the call does.
        let ask = |f: unsafe extern "C" fn()| unsafe {
            let result: u64;
            std::arch::asm!("call {f}", f = in(reg) f as usize, inout("rax") u64::from(GETPPID) => result,
                out("rcx") _, out("r11") _);
            result
        };
        while !stop.load(Relaxed) {
            assert_eq!((ask(state_system), ask(state_replaced)), (parent, parent));
        }
    };
    std::thread::scope(|s| {
        (0..3).for_each(|_| drop(s.spawn(calls)));
        for _ in 0..6 {
            for (_, listeners, _) in kinds(session) {
                rewritten.set(listeners);
            }
            rewritten.set(Listeners::default());
        }
        stop.store(true, Relaxed);
    });
}
