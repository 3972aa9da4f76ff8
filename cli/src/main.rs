//! `bpftime`: run tools in userspace, list sessions, explain what stands in the way.
//!
//! One file per subcommand: a `clap::Args` struct and `fn run(&Args) -> Result<ExitCode, Failure>`. Adding one is
//! a module, a variant and an arm. Every failure is one line on stderr: cause; next step.

mod aot;
mod doctor;
mod failure;
mod load;
mod object;
mod ps;
mod run;
mod trace_pipe;
mod verify;

use failure::{Failure, say};
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
    Load(load::Args),
    /// Say what works on this machine, or why a process or program cannot be traced.
    Doctor(doctor::Args),
    /// Print what programs print with bpf_trace_printk, of all sessions of this user, like the kernel's trace_pipe.
    TracePipe(trace_pipe::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Ps(args) => ps::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Compile(args) => aot::compile::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::TracePipe(args) => trace_pipe::run(&args),
    };
    failure::end("bpftime", outcome)
}
