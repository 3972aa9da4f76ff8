//! `bpftime run [--] CMD...`: CMD with libbpftime-syscall.so preloaded.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use bpftime_agent::inject::check::{Kind, Severity, diagnose_binary};
use bpftime_agent::inject::locate;

use crate::Failure;

/// The library's name as installed, and as cargo builds it.
pub(crate) const SERVER: [&str; 2] = ["libbpftime-syscall.so", "libbpftime_syscall.so"];

/// Exit codes as env(1) and the shell have them.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// What env(1) gives for its own failures.
const OWN_FAILURE: u8 = 125;

const EXIT_CODES: &str = "\
Exit codes: the command's own; 125 bpftime's library is missing; 126 the command cannot be run with it; 127 no such
command. The library is looked for in BPFTIME_LIB_DIR, ../lib beside this program, and beside this program.";

#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// The tool and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    match exec(args) {
        Ok(never) => match never {},
        Err(failure) => Err(failure),
    }
}

fn exec(args: &Args) -> Result<Infallible, Failure> {
    let preload = preload_server()?;
    // clap has made sure that there is one.
    let (name, rest) = args.command.split_first().ok_or_else(|| Failure::new(2, "no command; give one"))?;
    if let Some(file) = resolve(name) {
        fit(&file)?;
    }
    let error = Command::new(name).args(rest).env("LD_PRELOAD", preload).exec();
    let code = if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
    Err(Failure::new(code, format!("{}: {error}; check its name and PATH", name.display())))
}

/// The value of LD_PRELOAD that puts the library in front of what the user preloads already.
fn preload_server() -> Result<OsString, Failure> {
    let server = locate(&SERVER).ok_or_else(|| {
        let next = "build it with scripts/build, or give its directory in BPFTIME_LIB_DIR";
        Failure::new(OWN_FAILURE, format!("{} not found beside this program; {next}", SERVER[0]))
    })?;
    preload(&server, std::env::var_os("LD_PRELOAD").as_deref())
}

/// The library in front of what the user preloads already.
fn preload(server: &Path, existing: Option<&OsStr>) -> Result<OsString, Failure> {
    // ld.so(8): the list is separated by spaces or colons, and there is no escaping.
    if server.as_os_str().as_bytes().iter().any(|b| b" :".contains(b)) {
        let next = "install bpftime in a directory without spaces and colons";
        return Err(Failure::new(OWN_FAILURE, format!("{} cannot be preloaded; {next}", server.display())));
    }
    let mut value = server.as_os_str().to_owned();
    if let Some(existing) = existing.filter(|e| !e.is_empty()) {
        value.push(":");
        value.push(existing);
    }
    Ok(value)
}

/// The file that execvp(3) would run.
pub(crate) fn resolve(name: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok())
}

/// Refuses programs whose loader ignores LD_PRELOAD: they would silently ask the kernel.
fn fit(file: &Path) -> Result<(), Failure> {
    let findings = diagnose_binary(file).unwrap_or_default();
    let blocking = |f: &&bpftime_agent::inject::check::Finding| {
        f.severity == Severity::Refusal && matches!(f.kind, Kind::NotPermitted | Kind::Unsupported)
    };
    match findings.iter().find(blocking) {
        Some(finding) => Err(Failure::new(CANNOT_RUN, finding)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_library_comes_before_the_users() {
        let both = preload(Path::new("/l/s.so"), Some(OsStr::new("/x.so:/y.so"))).unwrap();
        assert_eq!(both, "/l/s.so:/x.so:/y.so");
        assert_eq!(preload(Path::new("/l/s.so"), Some(OsStr::new(""))).unwrap(), "/l/s.so");
    }

    #[test]
    fn a_path_that_ld_so_would_split_is_refused() {
        assert!(preload(Path::new("/my libs/s.so"), None).unwrap_err().message.contains("spaces"));
    }

    #[test]
    fn a_bare_name_is_looked_up_in_path() {
        assert!(resolve(OsStr::new("sh")).is_some_and(|p| p.is_absolute()));
        assert_eq!(resolve(OsStr::new("no-such-command-here")), None);
        assert_eq!(resolve(OsStr::new("./x")), Some("./x".into()));
    }
}
