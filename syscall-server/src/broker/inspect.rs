//! Answers about this tool's objects, for other tools ([`crate::elsewhere`]).
//!
//! The table keeps objects longer than the tool does, and this thread has a descriptor table of its own. So what lives is
//! read from /proc: an object that the tool has a descriptor of, and what such objects, and events with a program, use.

use crate::fds::FileId;
use crate::object::{self, LinkDetail, LinkObject, Object, PerfKind, PerfObject, ProgObject};
use crate::{cmd, perf};
use bpftime_abi::attr::LinkInfo;
use bpftime_shm::session::inspect::{EventRow, Kind, LinkRow, ProgRow, Reply, Request};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::sync::PoisonError;

/// The answer, with a descriptor.
pub fn answer(request: Request) -> (Reply, Option<OwnedFd>) {
    let answered = match request {
        Request::Ids(kind) => Ok((Reply::Ids(ids(kind)), None)),
        Request::Get(kind, id) => describe(kind, id),
        Request::Event(fd) => event(fd).map(|row| (Reply::Event(row), None)),
    };
    answered.unwrap_or_else(|errno| (Reply::Refused(errno.raw_os_error()), None))
}

/// Where the tool's descriptors are: this thread's own are others.
fn tools_fds() -> String {
    format!("/proc/{}/fd", std::process::id())
}

/// The files behind the tool's descriptors, but for those that we hide.
fn open_files() -> HashSet<FileId> {
    let hidden = object::hidden_fds();
    let entries = std::fs::read_dir(tools_fds()).into_iter().flatten().flatten();
    let shown = entries.filter(|e| {
        let number = e.file_name().to_str().and_then(|n| n.parse::<i32>().ok());
        number.is_some_and(|n| !hidden.contains(&n))
    });
    shown.filter_map(|e| std::fs::metadata(e.path()).ok()).map(|m| (m.dev(), m.ino())).collect()
}

/// Ids of what is alive, by kind.
#[derive(Default)]
struct Living([BTreeSet<u32>; 4]);

impl Living {
    fn add(&mut self, object: &Object) {
        let Some((kind, id)) = object.id() else { return };
        self.0[kind as usize].insert(id);
        match object {
            Object::Prog(p) => self.add_prog(p),
            Object::Link(l) => {
                self.add(&Object::Prog(l.prog.clone()));
            }
            Object::Map(m) => {
                self.0[Kind::Btf as usize].extend(Some(m.def().btf_id).filter(|id| *id != 0));
            }
            Object::Btf(_) | Object::Perf(_) => {}
        }
    }

    fn add_prog(&mut self, p: &ProgObject) {
        self.0[Kind::Btf as usize].extend(Some(p.btf).filter(|id| *id != 0));
        p.all_maps().into_iter().for_each(|m| self.add(&Object::Map(m)));
    }
}

fn living() -> Living {
    let (open, mut living) = (open_files(), Living::default());
    for (_, object) in object::all().into_iter().filter(|(file, _)| open.contains(file)) {
        match &object {
            Object::Perf(event) => {
                if let Some(prog) = program_of(event) {
                    living.add(&Object::Prog(prog));
                }
            }
            other => living.add(other),
        }
    }
    living
}

fn program_of(event: &PerfObject) -> Option<std::sync::Arc<ProgObject>> {
    event.state.lock().unwrap_or_else(PoisonError::into_inner).prog.clone()
}

fn ids(kind: Kind) -> Vec<u32> {
    living().0[kind as usize].iter().copied().collect()
}

/// Opens one of the tool's descriptors again, in this thread's table.
fn reopen(fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = format!("{}/{}", tools_fds(), fd.as_raw_fd());
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}

fn describe(kind: Kind, id: u32) -> Result<(Reply, Option<OwnedFd>), Errno> {
    let (_, object) = object::by_id(kind, id).ok_or(Errno::NOENT)?;
    Ok(match object {
        Object::Map(m) => (Reply::Map, Some(reopen(&m.memfd, OFlags::RDWR)?)),
        Object::Prog(p) => (Reply::Prog(prog_row(&p)), Some(reopen(&p.image, OFlags::RDONLY)?)),
        Object::Link(l) => (Reply::Link(link_row(&l)?), None),
        Object::Btf(b) => (Reply::Btf(b.name.as_bytes().to_vec()), Some(reopen(&b.memfd, OFlags::RDONLY)?)),
        Object::Perf(_) => return Err(Errno::NOENT),
    })
}

fn prog_row(p: &ProgObject) -> ProgRow {
    /// What fits into a message with room for the rest.
    const INSNS_MAX: usize = 128 * 1024;
    ProgRow {
        spec: p.spec.clone(),
        tag: p.tag,
        load_time: p.load_time,
        btf: p.btf,
        ctx_bytes: p.ctx_bytes,
        attach_type: p.attach_type,
        gpl: p.gpl,
        insns: p.insns.iter().take(INSNS_MAX).copied().collect(),
    }
}

fn link_row(l: &LinkObject) -> Result<LinkRow, Errno> {
    let info = cmd::link_info::of(l, &LinkInfo::default())?;
    let text = match &l.detail {
        LinkDetail::UprobeMulti { path, .. } => path.clone(),
        LinkDetail::RawTracepoint { name, .. } => name.clone(),
        LinkDetail::Elsewhere { text, .. } => text.clone(),
        LinkDetail::Event => l.event.as_ref().map(|e| perf::described(&e.kind).name).unwrap_or_default(),
    };
    Ok(LinkRow { id: l.id, link_type: l.link_type, prog: l.prog.spec.prog, words: info.data, text })
}

/// The program at the event behind one of the tool's descriptors: EBADF for no descriptor, ENOTSUPP for another file, as
/// the kernel.
fn event(fd: i32) -> Result<EventRow, Errno> {
    let meta = std::fs::metadata(format!("{}/{fd}", tools_fds())).map_err(|_| Errno::BADF)?;
    match object::of_file((meta.dev(), meta.ino())) {
        Some(Object::Perf(event)) => event_row(&event),
        _ => Err(cmd::ENOTSUPP),
    }
}

/// What BPF_TASK_FD_QUERY tells of an event; ENOENT where it has no program.
pub fn event_row(event: &PerfObject) -> Result<EventRow, Errno> {
    if matches!(event.kind, PerfKind::BpfOutput | PerfKind::Clock { .. } | PerfKind::Counter { .. }) {
        return Err(cmd::ENOTSUPP);
    }
    let prog = program_of(event).ok_or(Errno::NOENT)?.spec.prog;
    let perf::Described { fd_type, offset, addr, name } = perf::described(&event.kind);
    Ok(EventRow { prog, fd_type, offset, addr, name })
}
