//! `bpftime`: run tools in userspace, list sessions, explain what stands in the way.
//!
//! One file per subcommand: a `clap::Args` struct and `fn run(&Args) -> Result<ExitCode, Failure>`. Adding one is
//! a module, a variant and an arm. Every failure is one line on stderr: cause; next step.

mod aot;
mod doctor;
mod object;
mod ps;
mod run;
mod trace_pipe;
mod verify;

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Userspace eBPF: run bpftrace, bcc and libbpf tools without the kernel's eBPF and without root.
#[derive(Parser)]
#[command(name = "bpftime", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a tool with its eBPF in userspace.
    Run(run::Args),
    /// List the sessions of this user: programs, links, maps and traced processes.
    Ps(ps::Args),
    /// Say whether the programs of an object file are safe, and if not, why.
    Verify(verify::Args),
    /// Verify and compile the programs of an object file, for machines without a compiler.
    Compile(aot::compile::Args),
    /// Run programs that were compiled before, and print their maps at the end.
    Load(aot::load::Args),
    /// Say what works on this machine, or why a process or program cannot be traced.
    Doctor(doctor::Args),
    /// Print what programs print with bpf_trace_printk, of all sessions of this user, like the kernel's trace_pipe.
    TracePipe(trace_pipe::Args),
}

/// The end of a command that did not do what was asked.
#[derive(Debug)]
struct Failure {
    /// Exit code; 1 unless a subcommand documents another.
    code: u8,
    /// "cause; next step", without a line end.
    message: String,
}

impl Failure {
    fn new(code: u8, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Ps(args) => ps::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Compile(args) => aot::compile::run(&args),
        Command::Load(args) => aot::load::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::TracePipe(args) => trace_pipe::run(&args),
    };
    outcome.unwrap_or_else(|failure| {
        let _ = writeln!(std::io::stderr(), "bpftime: {}", failure.message);
        ExitCode::from(failure.code)
    })
}

/// Prints a line; a reader that has gone (`bpftime doctor | head -1`) is no error.
fn say(line: impl fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
