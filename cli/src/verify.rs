//! `bpftime verify prog.bpf.o`: what the verifier says of each program of an object, with the source lines of
//! the path that a refusal is about.

use crate::object::{Object, ObjectEnv, Prog};
use crate::{Failure, say};
use bpftime_abi::helper;
use bpftime_abi::prog_type::{self, *};
use bpftime_vm::verify::{Log, Refusal, Verified, hint, verify};
use bpftime_vm::{DecodeOptions, UnknownHelpers, decode_with, disasm};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Program types whose context the verifier knows.
const TYPES: &[u32] = &[
    BPF_PROG_TYPE_KPROBE,
    BPF_PROG_TYPE_TRACEPOINT,
    BPF_PROG_TYPE_PERF_EVENT,
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_SOCKET_FILTER,
    BPF_PROG_TYPE_SYSCALL,
];
/// Source lines of a refused path that are shown, the last ones.
const PATH_LINES: usize = 24;
/// Exit code when a program is refused.
const REFUSED: u8 = 3;

/// Arguments of `bpftime verify`.
#[derive(clap::Args)]
pub struct Args {
    /// Object file, as `clang -g -target bpf` makes it.
    object: PathBuf,
    /// Only the program with this name.
    #[arg(short, long)]
    prog: Option<String>,
    /// The verifier's log too: 1 instructions and what changes, on the path that is refused; 2 everything; 4 statistics.
    #[arg(short, long, default_value_t = 0)]
    log_level: u32,
}

/// Judges every program. Exit code 3 if one is refused.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let object = Object::open(&args.object)
        .map_err(|e| Failure::new(1, format_args!("{e}; see `llvm-readelf -S {}`", args.object.display())))?;
    let wanted = |p: &&Prog| args.prog.as_ref().is_none_or(|name| *name == p.name);
    let programs: Vec<_> = object.programs.iter().filter(wanted).collect();
    if programs.is_empty() {
        let names: Vec<_> = object.programs.iter().map(|p| p.name.as_str()).collect();
        let message = format!("no such program in {}; it has: {}", args.object.display(), names.join(" "));
        return Err(Failure::new(1, message));
    }
    let mut refused = 0;
    for prog in programs {
        refused += usize::from(!judge(&object, prog, args.log_level));
    }
    Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

/// One program; false if it is refused.
fn judge(object: &Object, prog: &Prog, level: u32) -> bool {
    let title = format!("{} ({})", prog.name, prog.section);
    if !TYPES.contains(&prog.prog_type) {
        let kind = prog_type::short_name(prog.prog_type);
        say(format_args!("not judged  {title}: programs of type {kind} do not run in userspace"));
        return true;
    }
    let mut env = ObjectEnv::new(object, prog);
    let mut log = Log::new(level | 4);
    let start = Instant::now();
    let options = DecodeOptions { unknown_helpers: UnknownHelpers::AcceptAll, ..DecodeOptions::default() };
    let verdict = match decode_with(&prog.insns, &mut env, options) {
        Ok(program) => verify(program, &env, &mut log),
        Err(e) => {
            say(format_args!("refused     {title}"));
            explain(prog, e.insn, &e.to_string());
            return false;
        }
    };
    let time = start.elapsed();
    match &verdict {
        Ok(verified) => {
            say(format_args!("ok          {title}"));
            say(format_args!("            {}; {:.2} ms", facts(verified), time.as_secs_f64() * 1e3));
        }
        Err(refusal) => {
            say(format_args!("refused     {title}"));
            show_path(prog, refusal);
            explain(prog, refusal.insn, &refusal.reason);
            if !refusal.state.is_empty() {
                say(format_args!("    registers: {}", refusal.state));
            }
        }
    }
    if level != 0 {
        say(log.text().trim_end());
    }
    verdict.is_ok()
}

/// What was proved, in a line.
fn facts(verified: &Verified) -> String {
    let stack: u32 = verified.funcs().iter().map(|f| f.stack.reserve).max().unwrap_or(0);
    let cleared: usize = (0..verified.funcs().len())
        .flat_map(|f| verified.unwritten(f).ranges().map(|r| r.len()).collect::<Vec<_>>())
        .sum();
    let helpers: std::collections::BTreeSet<_> =
        verified.helpers_used().map(|id| helper::full_name(id).unwrap_or("?")).collect();
    let helpers: Vec<_> = helpers.into_iter().collect();
    format!(
        "{} instructions, {stack} bytes of stack ({cleared} cleared), {} bytes of context, helpers: {}",
        verified.ops().len(),
        verified.ctx_bytes(),
        if helpers.is_empty() { "none".into() } else { helpers.join(" ") }
    )
}

/// The source lines on the way to the refusal.
fn show_path(prog: &Prog, refusal: &Refusal) {
    let mut lines: Vec<(&str, &str, u32, &str)> = vec![];
    for slot in &refusal.path {
        // Line 0 is what no line asked for.
        let Some(line) = prog.line(*slot).filter(|line| line.number != 0) else { continue };
        let shown = (prog.function(*slot), line.file.as_str(), line.number, line.text.trim());
        if lines.last() != Some(&shown) {
            lines.push(shown);
        }
    }
    if lines.is_empty() {
        return;
    }
    let left_out = lines.len().saturating_sub(PATH_LINES);
    if left_out > 0 {
        say(format_args!("    ... {left_out} lines before"));
    }
    let mut function = "";
    for (inside, file, number, text) in &lines[left_out..] {
        if *inside != function {
            say(format_args!("    in {inside}, {file}:"));
            function = inside;
        }
        say(format_args!("    {number:5}  {text}"));
    }
}

/// The instruction, the reason and what to do about it.
fn explain(prog: &Prog, slot: usize, reason: &str) {
    let text = disasm::line_with(&prog.insns, slot, &helper::full_name);
    say(format_args!("    {slot}: {text}"));
    for line in reason.lines() {
        say(format_args!("    {line}"));
    }
    if let Some(hint) = hint(reason) {
        say(format_args!("    hint: {hint}"));
    }
}
