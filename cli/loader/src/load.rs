//! From the file to running programs, and to what their maps hold at the end.

use crate::failure::{Failure, say};
use crate::maps;
use crate::probe::Probe;
use bpftime_abi::attr::ProgLoad;
use bpftime_vm::CpuFeatures;
use bpftime_vm::aot::{Compiled, Container};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs programs that `bpftime compile` compiled until it is interrupted, then prints what is in their maps.
#[derive(clap::Parser)]
#[command(name = "bpftime-load", version)]
pub struct Args {
    /// File that `bpftime compile` wrote.
    image: PathBuf,
    /// Where to attach: uprobe:PATH:SYMBOL, uretprobe:PATH:SYMBOL or tracepoint:CATEGORY:NAME, with PROGRAM= in front
    /// if there are several of that kind. Without any, where the sections of the programs say.
    #[arg(short, long, value_name = "PLACE")]
    attach: Vec<String>,
    /// Only in this process.
    #[arg(short, long)]
    pid: Option<i32>,
}

/// Runs until SIGINT or SIGTERM.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let name = args.image.display();
    let file = std::fs::read(&args.image)
        .map_err(|e| Failure::new(1, format_args!("{name}: {e}; check the path")))?;
    let container = Container::parse(&file, CpuFeatures::detect())
        .map_err(|e| Failure::new(1, format_args!("{name}: {e}")))?;
    let places = places(args, &container)?;
    let signals = block_signals();
    let fds = container.maps.iter().map(maps::create).collect::<Result<Vec<_>, _>>()?;
    let mut attached = vec![];
    for (program, places) in places {
        let fd = load(&container, program, &fds)?;
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
                format_args!(
                    "{text}: no place; give uprobe:PATH:SYMBOL, uretprobe:... or tracepoint:CATEGORY:NAME"
                ),
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
    let fits = |program: &&Compiled| name.is_none_or(|name| name == program.name);
    let mut fitting: Vec<&Compiled> = container.programs.iter().filter(fits).collect();
    if fitting.len() > 1 {
        fitting.retain(|program| place.is_for(&program.section));
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

fn load(container: &Container, program: &Compiled, maps: &[OwnedFd]) -> Result<OwnedFd, Failure> {
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
    bpftime_server::load_image(&attr, image, program.ctx_bytes)
        .map_err(|e| Failure::new(1, format_args!("program {}: {e}; compile it again", program.name)))
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
