//! `bpftime-agent inject --pid N`: load the agent into a process that is already running. `bpftime-agent hold`: keep pinned
//! objects.

mod hold;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use bpftime_agent::inject::{Options, Report, Route};
use clap::{Args, Parser, Subcommand};

const EXIT_CODES: &str = "\
Exit codes:
  0  the agent runs in the process
  1  an unexpected system error
  2  wrong usage
  3  no such process, or it ended meanwhile
  4  not permitted: another user's process, setuid program, ptrace forbidden
  5  the process can never carry the agent: static, 32-bit, kernel thread, strict seccomp
  6  not now: stopped, traced by a debugger, stuck in the kernel; try again
  7  the agent library is missing or the process cannot load it
  8  it took too long and was abandoned; the process goes on
  9  the agent was loaded but refused to start";

/// Load bpftime's agent into a running process.
#[derive(Parser)]
#[command(name = "bpftime-agent", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load the agent into a process; print nothing unless it fails.
    #[command(after_help = EXIT_CODES)]
    Inject(Inject),
    /// Keep what tools pin, in the background, until nothing is pinned any more. Tools start it by themselves.
    Hold(Hold),
}

#[derive(Args)]
struct Hold {
    /// Be that process, and not what starts it.
    #[arg(long, hide = true)]
    serve: bool,
}

#[derive(Args)]
struct Inject {
    /// The process.
    #[arg(long, short, value_name = "PID")]
    pid: i32,
    /// The agent library [default: libbpftime-agent.so in BPFTIME_LIB_DIR or beside this program].
    #[arg(long, value_name = "PATH")]
    library: Option<PathBuf>,
    /// Where tools and agents meet [default: BPFTIME_RUNTIME_DIR, else XDG_RUNTIME_DIR/bpftime, else
    /// /tmp/bpftime-UID].
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// Say what was done and how long it took.
    #[arg(long, short)]
    verbose: bool,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Inject(args) => inject(args),
        Command::Hold(Hold { serve: false }) => hold::start(),
        Command::Hold(Hold { serve: true }) => hold::serve(),
    }
}

fn inject(args: Inject) -> ExitCode {
    let opts = Options { library: args.library, runtime_dir: args.runtime_dir, ..Options::default() };
    match bpftime_agent::inject::inject(args.pid, &opts) {
        Ok(report) => {
            if args.verbose {
                // A closed stdout is no reason to call a successful injection failed.
                let _ = writeln!(std::io::stdout(), "{}", describe(&report));
            }
            ExitCode::SUCCESS
        }
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "bpftime-agent: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

fn describe(r: &Report) -> String {
    let how = match r.route {
        Route::AlreadyLoaded => "was loaded already; started again",
        Route::Path => "loaded by its path",
        Route::Memfd => "loaded as a memory file",
    };
    let ms = r.elapsed.as_secs_f64() * 1e3;
    format!("process {}: {} {how} in {ms:.1} ms (thread {})", r.pid, r.library.display(), r.tid)
}
