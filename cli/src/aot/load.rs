//! `bpftime load prog.img --attach uprobe:PATH:SYM`: runs compiled programs until it is interrupted, then prints what is
//! in their maps. Nothing is verified or compiled here; the server library that it preloads into itself carries a
//! compiler, but never calls it.

use super::probe::Probe;
use super::{Compiled, Container, maps};
use crate::run::preload_server;
use crate::{Failure, say};
use bpftime_abi::attr::ProgLoad;
use bpftime_vm::CpuFeatures;
use std::ffi::{CString, c_long};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Arguments of `bpftime load`.
#[derive(clap::Args)]
pub struct Args {
    /// File that `bpftime compile` wrote.
    image: PathBuf,
    /// Where to attach: uprobe:PATH:SYMBOL or uretprobe:PATH:SYMBOL, with PROGRAM= in front if there are several
    /// of that kind. Without any, where the sections of the programs say.
    #[arg(short, long, value_name = "PLACE")]
    attach: Vec<String>,
    /// Only in this process.
    #[arg(short, long)]
    pid: Option<i32>,
}

/// Set for the process that has the library: the one that this one turns into.
const LOADED: &str = "BPFTIME_LOAD_PRELOADED";

/// The server's function: see syscall-server/src/exports.rs.
type LoadImage = unsafe extern "C" fn(*const ProgLoad, *const u8, usize, u32) -> c_long;

/// Runs until SIGINT or SIGTERM.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let name = args.image.display();
    let file = std::fs::read(&args.image)
        .map_err(|e| Failure::new(1, format_args!("{name}: {e}; check the path")))?;
    let container = Container::parse(&file, CpuFeatures::detect())
        .map_err(|e| Failure::new(1, format_args!("{name}: {e}")))?;
    let places = places(args, &container)?;
    let Some(load_image) = load_image() else { return Err(again()) };
    let signals = block_signals();
    let fds = container.maps.iter().map(maps::create).collect::<Result<Vec<_>, _>>()?;
    let mut attached = vec![];
    for (program, places) in places {
        let fd = load(&container, program, &fds, load_image)?;
        for place in places {
            attached.push(place.attach(&fd, args.pid)?);
        }
    }
    say(format_args!("attached {} probes; Ctrl-C ends", attached.len()));
    wait(&signals);
    drop(attached);
    container.maps.iter().zip(&fds).for_each(|(map, fd)| maps::print(map, fd));
    Ok(ExitCode::SUCCESS)
}

/// Each program that is attached, and where.
fn places<'c>(args: &Args, container: &'c Container) -> Result<Vec<(&'c Compiled, Vec<Probe>)>, Failure> {
    let mut places: Vec<(&Compiled, Vec<Probe>)> = vec![];
    if args.attach.is_empty() {
        let of = |program: &'c Compiled| Some((program, vec![Probe::parse(&program.section)?]));
        places.extend(container.programs.iter().filter_map(of));
    }
    for text in &args.attach {
        let (program, place) = match text.split_once('=') {
            Some((name, place)) if !name.contains([':', '/']) => (Some(name), place),
            _ => (None, text.as_str()),
        };
        let place = Probe::parse(place).ok_or_else(|| {
            Failure::new(
                2,
                format_args!("{text}: no place; give uprobe:PATH:SYMBOL or uretprobe:PATH:SYMBOL"),
            )
        })?;
        let program = chosen(container, program, &place)
            .ok_or_else(|| Failure::new(2, format_args!("{text}: {}", which(container))))?;
        match places.iter_mut().find(|(known, _)| known.name == program.name) {
            Some((_, more)) => more.push(place),
            None => places.push((program, vec![place])),
        }
    }
    if places.is_empty() {
        let next = "say where with --attach";
        return Err(Failure::new(2, format_args!("no section says where to attach; {next}")));
    }
    Ok(places)
}

/// The program with this name, or the only one, or the only one of this kind.
fn chosen<'c>(container: &'c Container, name: Option<&str>, place: &Probe) -> Option<&'c Compiled> {
    let kind = |program: &Compiled| {
        let section = program.section.trim_start_matches('?');
        (section.contains("ret")) == place.is_return
    };
    let fits = |program: &&Compiled| name.is_none_or(|name| name == program.name);
    let mut fitting: Vec<&Compiled> = container.programs.iter().filter(fits).collect();
    if fitting.len() > 1 {
        fitting.retain(|program| kind(program));
    }
    match fitting[..] {
        [program] => Some(program),
        _ => None,
    }
}

fn which(container: &Container) -> String {
    let names: Vec<_> = container.programs.iter().map(|program| program.name.as_str()).collect();
    format!("not clear which program; put one of these and = in front: {}", names.join(" "))
}

/// The function, if the library is in this process.
fn load_image() -> Option<LoadImage> {
    // SAFETY: looks a name up in what is loaded.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"bpftime_prog_load_image".as_ptr()) };
    // SAFETY: the only thing of this name is the server's function, of this signature.
    (!found.is_null()).then(|| unsafe { std::mem::transmute::<*mut libc::c_void, LoadImage>(found) })
}

/// This command again, with the library. Returns if that does not work.
fn again() -> Failure {
    if std::env::var_os(LOADED).is_some() {
        return Failure::new(125, "the library does not load into this program; see `bpftime doctor`");
    }
    let preload = match preload_server() {
        Ok(preload) => preload,
        Err(failure) => return failure,
    };
    let this = match std::env::current_exe() {
        Ok(this) => this,
        Err(e) => return Failure::new(125, format_args!("/proc/self/exe: {e}; mount /proc")),
    };
    let args = std::env::args_os().skip(1);
    let error = Command::new(this).args(args).env("LD_PRELOAD", preload).env(LOADED, "1").exec();
    Failure::new(125, format_args!("cannot start again: {error}; check the program's file"))
}

fn load(
    container: &Container,
    program: &Compiled,
    maps: &[OwnedFd],
    load_image: LoadImage,
) -> Result<OwnedFd, Failure> {
    let fds: Vec<i32> = maps.iter().map(AsRawFd::as_raw_fd).collect();
    let license = CString::new(container.license.as_str()).unwrap_or_default();
    let mut attr = ProgLoad {
        prog_type: program.prog_type,
        insns: program.insns.as_ptr() as u64,
        insn_cnt: program.insns.len() as u32,
        license: license.as_ptr() as u64,
        fd_array: fds.as_ptr() as u64,
        fd_array_cnt: fds.len() as u32,
        ..ProgLoad::default()
    };
    let name = program.name.bytes().take(15);
    attr.prog_name.iter_mut().zip(name).for_each(|(place, byte)| *place = byte);
    let image = program.image.as_bytes();
    // SAFETY: the attribute, and all that it points to, live until the call returns.
    let fd = unsafe { load_image(&raw const attr, image.as_ptr(), image.len(), program.ctx_bytes) };
    if fd < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Failure::new(1, format_args!("program {}: {error}; compile it again", program.name)));
    }
    // SAFETY: a descriptor that was just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Blocks the signals that end the command, in all threads that come.
fn block_signals() -> libc::sigset_t {
    // SAFETY: a set of our own; zeros are an empty one.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        set
    }
}

fn wait(signals: &libc::sigset_t) {
    let mut signal = 0;
    // SAFETY: a valid set, blocked by `block_signals`.
    unsafe { libc::sigwait(signals, &raw mut signal) };
}
