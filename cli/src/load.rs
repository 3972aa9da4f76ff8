//! `bpftime load prog.img --attach uprobe:PATH:SYM`: `bpftime-load`, which is a program of its own so that machines without
//! the compiler can have it alone.

use crate::Failure;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Arguments of `bpftime load`.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// As `bpftime-load` takes them; see `bpftime-load --help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Turns into it.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let beside = std::env::current_exe().ok().map(|this| this.with_file_name("bpftime-load"));
    let loader = beside.filter(|loader| loader.is_file()).unwrap_or_else(|| "bpftime-load".into());
    let error = Command::new(&loader).args(&args.args).exec();
    Err(Failure::new(125, format_args!("{}: {error}; put it beside this program", loader.display())))
}
