//! Answers about this tool's objects, for other tools ([`crate::elsewhere`]).
//!
//! The table keeps objects longer than the tool does, and this thread has a descriptor table of its own. So what lives is
//! read from /proc: an object that the tool has a descriptor of, and what such objects, and events with a program, use.

use super::known::Known;
use crate::fds::FileId;
use crate::object::{self, LinkDetail, LinkObject, Object, PerfKind, PerfObject, ProgObject};
use crate::{cmd, perf, stats};
use bpftime_abi::attr::LinkInfo;
use bpftime_shm::session::inspect::{EventRow, Kind, LinkRow, ProgRow, Reply, Request};
use bpftime_shm::session::wire::LinkSpec;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::sync::PoisonError;

/// The answer, with a descriptor.
pub fn answer(request: Request, known: &Known) -> (Reply, Option<OwnedFd>) {
    let alone = |reply| (reply, None);
    let answered = match request {
        Request::Ids(kind) => Ok(alone(Reply::Ids(ids(kind)))),
        Request::Get(kind, id) => describe(kind, id),
        Request::Event(fd) => event(fd).map(Reply::Event).map(alone),
        Request::Specs(link) => specs(link, known).map(Reply::Specs).map(alone),
        Request::Members(map) => members(map).map(Reply::Members).map(alone),
        // The holder's own socket is for these, and the broker itself for the switch.
        Request::Pin(..) | Request::Pinned(..) | Request::Stats => Err(Errno::PROTO),
    };
    answered.unwrap_or_else(|errno| (Reply::Refused(errno.raw_os_error()), None))
}

/// What a link attaches at this moment.
fn specs(link: u32, known: &Known) -> Result<Vec<LinkSpec>, Errno> {
    let Some((_, Object::Link(link))) = object::by_id(Kind::Link, link) else { return Err(Errno::NOENT) };
    let events = link.event.as_ref().and_then(|e| {
        let state = e.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.attached
    });
    let ids = link.specs.iter().copied().chain(events);
    Ok(ids.filter_map(|id| known.links.get(&id)).map(|l| l.spec.clone()).collect())
}

fn members(map: u32) -> Result<Vec<(Vec<u8>, u32)>, Errno> {
    match object::by_id(Kind::Map, map) {
        Some((_, Object::Map(map))) => Ok(map.held().rows()),
        _ => Err(Errno::NOENT),
    }
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
    ProgRow {
        spec: p.spec.clone(),
        tag: p.tag,
        load_time: p.load_time,
        btf: p.btf,
        ctx_bytes: p.ctx_bytes,
        attach_type: p.attach_type,
        gpl: p.gpl,
        insns: p.insns.clone(),
        runs: stats::runs_here(p),
        own: !p.viewed,
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
    let (points, given) = match &l.detail {
        LinkDetail::UprobeMulti { points, given, .. } => (points.clone(), *given),
        _ => Default::default(),
    };
    let (id, link_type, prog, own) = (l.id, l.link_type, l.prog.spec.prog, !l.viewed);
    Ok(LinkRow { id, link_type, prog, words: info.data, text, points, given, own })
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
