//! How commands of ours end and talk. Also part of `bpftime-load`, which is a program of its own.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

/// The end of a command that did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    /// Exit code; 1 unless a subcommand documents another.
    pub code: u8,
    /// "cause; next step", without a line end.
    pub message: String,
}

impl Failure {
    /// A failure with this exit code.
    pub fn new(code: u8, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }
}

/// The exit code of the program with this name; failures are told first.
pub fn end(program: &str, outcome: Result<ExitCode, Failure>) -> ExitCode {
    outcome.unwrap_or_else(|failure| {
        let _ = writeln!(std::io::stderr(), "{program}: {}", failure.message);
        ExitCode::from(failure.code)
    })
}

/// Prints a line; a reader that has gone (`bpftime doctor | head -1`) is no error.
pub fn say(line: impl fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
