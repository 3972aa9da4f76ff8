//! `bpftime trace-pipe`: what programs print with bpf_trace_printk and bpf_trace_vprintk.
//!
//! Reads the text rings of all sessions of this user, those that begin later too. A line goes to one reader only, as with
//! the kernel's trace_pipe.

use bpftime_shm::session::page::Page;
use bpftime_shm::session::text::{Next, Patience};
use bpftime_shm::session::wire::Message;
use bpftime_shm::session::{dir, sock};
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::Failure;

/// Arguments of `bpftime trace-pipe`.
#[derive(clap::Args)]
pub struct Args {
    /// Stop after this many lines.
    #[arg(short = 'n', long)]
    lines: Option<u64>,
    /// Print what is there now, and stop.
    #[arg(long)]
    dump: bool,
}

/// How often new sessions are looked for.
const RESCAN: Duration = Duration::from_millis(500);
/// Lines of a session before the next one's are looked at.
const TURN: usize = 256;
/// Longest sleep; with several sessions each waits its turn.
const NAP: Duration = Duration::from_millis(50);

/// Open sessions by the path of their socket.
type Sessions = BTreeMap<PathBuf, (Page, Patience)>;

/// Prints lines until it is interrupted, the limit is reached or standard output is gone.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut sessions = Sessions::new();
    let mut left = args.lines.unwrap_or(u64::MAX);
    let mut scanned: Option<Instant> = None;
    while left > 0 {
        if scanned.is_none_or(|at| at.elapsed() > RESCAN) {
            rescan(&mut sessions);
            scanned = Some(Instant::now());
        }
        let printed = drain(&mut sessions, &mut left)?;
        if args.dump {
            break;
        }
        if !printed {
            rest(&sessions);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Opens the text of sessions that are new, and forgets those that have ended once their lines are out.
fn rescan(sessions: &mut Sessions) {
    let sockets: Vec<_> = dir::candidates().iter().flat_map(|d| dir::sockets(d)).collect();
    sessions.retain(|path, (page, _)| sockets.contains(path) || !page.text().is_empty());
    for path in sockets {
        if !sessions.contains_key(&path)
            && let Ok(page) = open(&path)
        {
            sessions.insert(path, (page, Patience::default()));
        }
    }
}

fn open(path: &Path) -> Result<Page, Errno> {
    let sock = sock::connect(path)?;
    sock::set_timeout(&sock, Duration::from_secs(2))?;
    sock::send(sock.as_fd(), &Message::Text.encode(), &[])?;
    let reply = sock::recv(sock.as_fd(), false)?;
    let (Message::Text, Some(fd)) = (Message::decode(&reply.bytes)?, reply.fds.first()) else {
        return Err(Errno::PROTO);
    };
    Page::open(fd)
}

/// Prints what is there; whether there was anything.
fn drain(sessions: &mut Sessions, left: &mut u64) -> Result<bool, Failure> {
    let mut printed = false;
    for (page, patience) in sessions.values_mut() {
        for _ in 0..TURN {
            if *left == 0 {
                break;
            }
            let bytes = match page.text().next(patience) {
                Next::Line(line) => line.to_bytes(),
                Next::Lost(n) => format!("CPU:0 [LOST {n} EVENTS]\n").into_bytes(),
                Next::Unfinished | Next::Empty => break,
            };
            *left -= 1;
            printed = true;
            let mut out = std::io::stdout();
            let written = out.write_all(&bytes).and_then(|()| out.flush());
            written.map_err(|e| Failure::new(1, format_args!("standard output: {e}")))?;
        }
    }
    Ok(printed)
}

/// Sleeps until there may be something: in the kernel if there is one session only.
fn rest(sessions: &Sessions) {
    match sessions.values().next() {
        Some((page, _)) if sessions.len() == 1 => page.text().doze(RESCAN),
        _ => std::thread::sleep(NAP),
    }
}
