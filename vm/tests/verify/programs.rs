//! Own programs, one rule each (`programs.txt`): the kernel's verdict as recorded, the kernel here if it may
//! be asked, and ours.
//!
//! A block is `## sentence`, the program type (and `nongpl`), the program, `kernel ERRNO REASON` and, where we
//! differ on purpose, `ours ERRNO REASON -- why`. `BLESS=1` records what the kernel here says.

use super::env::{judge, world};
use super::kernel::Kernel;
use bpftime_vm::asm::assemble;
use bpftime_vm::isa::Op;
use bpftime_vm::verify::{Log, Region, StackBytes, Verified};

const FILES: [&str; 4] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/verify/programs.txt"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/verify/helpers.txt"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/verify/maps.txt"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/verify/structure.txt"),
];

pub struct Case {
    pub name: String,
    pub header: String,
    pub source: String,
    pub kernel: Option<String>,
    pub ours: Option<String>,
}

pub fn cases() -> Vec<Case> {
    FILES.iter().flat_map(|file| cases_of(file)).collect()
}

fn cases_of(file: &str) -> Vec<Case> {
    let text = std::fs::read_to_string(file).unwrap();
    let mut cases: Vec<Case> = vec![];
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("## ") {
            let name = name.to_string();
            cases.push(Case { name, header: String::new(), source: String::new(), kernel: None, ours: None });
            continue;
        }
        let Some(case) = cases.last_mut() else { continue };
        if let Some(answer) = line.strip_prefix("kernel ") {
            case.kernel = Some(answer.to_string());
        } else if let Some(answer) = line.strip_prefix("ours ") {
            case.ours = Some(answer.to_string());
        } else if case.header.is_empty() {
            case.header = line.to_string();
        } else if !line.is_empty() {
            case.source += &format!("{line}\n");
        }
    }
    cases
}

fn ours(case: &Case) -> String {
    let insns = assemble(&case.source).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    match judge(&insns, &world(&case.header), &mut Log::new(0)).refusal() {
        None => "0".into(),
        // On a busy machine the time may be over before the instructions are.
        Some((7, reason)) if reason.contains("too complex. Processed") => {
            "7 BPF program is too large. Processed 1000001 insn".into()
        }
        Some((errno, reason)) => format!("{errno} {}", reason.replace('\n', " | ")),
    }
}

#[test]
fn programs_are_judged_as_recorded() {
    let (cases, mut wrong, mut refused, mut differ) = (cases(), 0, 0, 0);
    for case in &cases {
        let recorded = case.kernel.clone().unwrap_or_default();
        let expected = match &case.ours {
            Some(ours) => ours.split(" -- ").next().unwrap_or("").to_string(),
            None => recorded.clone(),
        };
        differ += usize::from(case.ours.is_some());
        let got = ours(case);
        refused += usize::from(got != "0");
        if got != expected {
            wrong += 1;
            println!("{}\n  kernel {recorded}\n  wanted {expected}\n  ours   {got}", case.name);
        }
    }
    println!(
        "{} programs, {refused} refused, {differ} on purpose not as the kernel, {wrong} wrong",
        cases.len()
    );
    assert_eq!(wrong, 0);
}

#[test]
fn the_kernel_here_judges_as_recorded() {
    let Some(kernel) = Kernel::new(&world("kprobe")) else { return };
    let changed: usize = FILES.iter().map(|file| ask_again(&kernel, file)).sum();
    if changed != 0 && std::env::var("BLESS").is_err() {
        // Another kernel may use other words; the recorded ones are what we are held to.
        println!("{changed} answers differ from the recorded ones");
    }
}

/// Asks the kernel about all programs of a file; how many answers are not the recorded ones. Records them with BLESS.
fn ask_again(kernel: &Kernel, file: &str) -> usize {
    let (mut changed, mut text) = (0, String::new());
    for case in cases_of(file) {
        let answer = kernel.judge(&assemble(&case.source).unwrap(), &world(&case.header));
        let answer = format!("{} {}", answer.errno, answer.reason).trim_end().to_string();
        if case.kernel.as_ref() != Some(&answer) {
            changed += 1;
            println!("{}\n  recorded {:?}\n  now      {answer}", case.name, case.kernel);
        }
        text += &format!("## {}\n{}\n{}kernel {answer}\n", case.name, case.header, case.source);
        if let Some(ours) = &case.ours {
            text += &format!("ours {ours}\n");
        }
        text += "\n";
    }
    if std::env::var("BLESS").is_ok() {
        std::fs::write(file, text).unwrap();
    }
    changed
}

/// The end of our log of a program.
fn log_of(source: &str, level: u32) -> Vec<String> {
    let mut log = Log::new(level);
    judge(&assemble(source).unwrap(), &world("kprobe"), &mut log);
    log.text().lines().map(str::to_string).collect()
}

#[test]
fn the_log_has_the_lines_that_libbpf_rewrites() {
    let log = log_of("mov r0, 0; call 195896080; exit", 1);
    let end = &log[log.len() - 3..];
    assert_eq!(end[0], "1: (85) call unknown#195896080");
    assert_eq!(end[1], "invalid func unknown#195896080");
    assert_eq!(
        end[2],
        "processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0"
    );
}

#[test]
fn the_log_has_what_its_level_asks_for() {
    let program = "mov r0, 7; jeq r1, 0, +0; exit";
    assert!(log_of(program, 0).is_empty());
    let log = log_of(program, 4);
    assert!(log[0].starts_with("verification time ") && log[1] == "stack depth 0", "{log:?}");
    assert_eq!((log_of(program, 8).len(), log.len()), (1, 3));
    // A path that ended well is taken back at level 1.
    assert_eq!(log_of(program, 1).len(), 1);
    assert_eq!(log_of("mov r0, r3; exit", 4)[0], "R3 !read_ok");
    let log = log_of(program, 2);
    assert_eq!(log[0], "0: R1=ctx() R10=fp0");
    assert_eq!(log[1], "0: (b7) r0 = 7                        ; R0=7");
    // Of a refused program, only the path that leads there.
    let log = log_of("call 7; mov r6, r1; exit", 1);
    assert_eq!(log[1], "0: (85) call bpf_get_prandom_u32#7    ; R0=scalar()");
    assert_eq!(log[2], "1: (bf) r6 = r1");
    assert_eq!(log[3], "R1 !read_ok");
    let log = log_of("call 7; jeq r0, 0, a; mov r0, 0; exit; a: mov r0, r3; exit", 1);
    let words: Vec<&str> = log.iter().map(|l| l.split(':').next().unwrap()).collect();
    let wanted = ["0", "0", "1", "", "from 1 to 4", "4", "R3 !read_ok"];
    assert_eq!(words[..7], wanted, "{log:#?}");
}

fn proved(source: &str) -> Box<Verified> {
    match judge(&assemble(source).unwrap(), &world("kprobe"), &mut Log::new(0)) {
        super::env::Verdict::Accepted(verified) => verified,
        refused => panic!("{source}: {:?}", refused.refusal()),
    }
}

#[test]
fn what_was_proved_is_handed_out() {
    let verified =
        proved("stdw [r10-24], 0; call 7; mov r1, 1; jeq r1, 1, ok; call 9999; ok: mov r0, 0; exit");
    let access = verified.access(0).unwrap();
    assert_eq!((access.region, access.min, access.max, access.align), (Region::Stack, -24, -16, 8));
    assert_eq!(verified.funcs()[0].stack.reserve, 32);
    assert!(!verified.is_reachable(4));
    assert_eq!((verified.outcome(3), verified.outcome(0)), (Some(true), None));
    assert!(!verified.reads_unwritten_stack());
    assert!(verified.is_proved() && !verified.takes_references());
    assert!(!verified.may_fault(0));
    assert_eq!(verified.helpers_used().collect::<Vec<_>>(), [7]);
}

/// Ranges of stack that must be cleared on entry of the first function.
fn cleared(source: &str) -> Vec<(i32, i32)> {
    proved(source).unwritten(0).ranges().map(|r| (r.start, r.end)).collect()
}

#[test]
fn only_stack_that_may_be_read_before_it_is_written_must_be_cleared() {
    assert_eq!(cleared("stdw [r10-8], 1; ldxdw r0, [r10-8]; exit"), []);
    assert_eq!(cleared("stw [r10-8], 1; ldxdw r0, [r10-8]; exit"), [(-4, 0)]);
    // On one path, of which the other was walked first or cut short.
    assert_eq!(cleared("call 7; jeq r0, 0, a; stdw [r10-8], 1; a: ldxdw r0, [r10-8]; exit"), [(-8, 0)]);
    assert_eq!(cleared("call 7; jne r0, 0, a; stdw [r10-8], 1; a: ldxdw r0, [r10-8]; exit"), [(-8, 0)]);
    // A helper reads it, here the last four bytes of a key.
    let lookup = "mov r2, r10; add r2, -8; lddw r1, map 112; call 1; mov r0, 0; exit";
    assert_eq!(cleared(&format!("stw [r10-8], 1; {lookup}")), [(-4, 0)]);
    // Memory that a helper fills for certain, and a string, which may be short.
    let read = "mov r1, r10; add r1, -16; mov r2, 16; mov r3, 0";
    assert_eq!(cleared(&format!("{read}; call 113; ldxdw r0, [r10-8]; exit")), []);
    assert_eq!(cleared(&format!("{read}; call 115; ldxdw r0, [r10-8]; exit")), [(-8, 0)]);
    // One of several bytes is written.
    let one = "call 7; and r0, 7; mov r1, r10; add r1, -8; add r1, r0; stb [r1], 1; ldxdw r0, [r10-8]; exit";
    assert_eq!(cleared(one), [(-8, 0)]);
    // The caller's, read by what it calls.
    let deep = "mov r1, r10; add r1, -8; call local f; mov r0, 0; exit; f: ldxdw r0, [r1]; exit";
    assert_eq!(cleared(deep), [(-8, 0)]);
}

#[test]
fn constants_and_references_are_handed_out() {
    let verified = proved("lddw r1, value 102+8; ldxb r2, [r1+0]; ldxsb r0, [r1+0]; ldxdw r3, [r1+8]; exit");
    assert_eq!([2, 3, 4].map(|slot| verified.known(slot)), [Some(5), Some(5), Some(0)]);
    let varies = proved(
        "lddw r1, value 102+8; call 7; lddw r1, value 102+8; jeq r0, 0, a; add r1, 1; a: ldxb r0, [r1]; exit",
    );
    let load = varies.ops().iter().position(|op| matches!(op, Op::Load { .. })).unwrap();
    assert_eq!(varies.known(load), None);
    let record = proved(
        "lddw r1, map 103; mov r2, 16; mov r3, 0; call 131; jeq r0, 0, out
         mov r1, r0; mov r2, 0; call 132; out: mov r0, 0; exit",
    );
    assert!(record.takes_references());
    let held: Vec<_> = (0..record.ops().len()).map(|slot| record.held(slot).unwrap()).collect();
    assert_eq!(held, [0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0]);
}

#[test]
fn of_a_program_that_nobody_verified_nothing_is_proved() {
    let verified = proved("stdw [r10-8], 0; mov r0, 0; exit");
    // SAFETY: it was verified.
    let trusted = unsafe { Verified::unchecked(verified.into_program()) };
    assert!(!trusted.is_proved() && trusted.takes_references() && trusted.may_fault(0));
    assert_eq!((trusted.access(0), trusted.held(0), trusted.known(0)), (None, None, None));
    assert_eq!(trusted.unwritten(0), StackBytes::below(16));
}

/// What the kernel says of each helper in each program type: for who maintains `helper::allowed`.
#[test]
fn print_helpers_by_program_type() {
    let Some(kernel) = Kernel::new(&world("kprobe")) else { return };
    for (id, name) in bpftime_abi::helper::NAMES {
        let insns = assemble(&format!("call {id}; mov r0, 0; exit")).unwrap();
        let answers = ["socket", "kprobe", "tracepoint", "perf", "raw"].map(|t| {
            let reason = kernel.judge(&insns, &world(t)).reason;
            if reason.contains("cannot use helper") || reason.contains("not supported for") {
                '-'
            } else {
                '+'
            }
        });
        println!("{id} {name} {}", String::from_iter(answers));
    }
}
