//! Objects of other sessions of this user, found by id: what makes bpftool an inspector.
//!
//! A map comes with its memfd and is then as good as an own one. A program, or BTF, is a copy of what it says of itself;
//! a link is only a description, which keeps nothing attached.

use crate::cmd::{held, prog};
use crate::object::{self, BtfObject, LinkDetail, LinkObject, MapObject, Member, Object, ProgObject};
use crate::stats::OwnRow;
use crate::{broker, fds, holder, wait};
use bpftime_abi::helper;
use bpftime_abi::prog_type::BPF_LINK_TYPE_UPROBE_MULTI;
use bpftime_agent::run::MapHandle;
use bpftime_shm::session::inspect::{self, EventRow, Kind, LinkRow, ProgRow, Reply, Request};
use bpftime_shm::session::page::Page;
use bpftime_shm::session::stats::Runs;
use bpftime_shm::session::wire::{Message, ProgSpec};
use bpftime_shm::session::{dir, sealed, sock};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The sockets of the other sessions.
fn sessions() -> impl Iterator<Item = PathBuf> {
    let mine = format!("{}-", std::process::id());
    let is_mine = move |p: &Path| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&mine));
    dir::candidates().into_iter().flat_map(|d| dir::sockets(&d)).filter(move |p| !is_mine(p))
}

/// How long a session may take to answer, and how long one that did not is left alone: a stopped tool answers nothing.
const LIMIT: Duration = Duration::from_secs(2);
const LEFT_ALONE: Duration = Duration::from_secs(10);

/// Asks one session; `ENOENT` from one that is gone, or that does not answer.
fn ask(path: &Path, request: Request) -> Result<(Reply, Option<OwnedFd>), Errno> {
    static SILENT: Mutex<Vec<(PathBuf, Instant)>> = Mutex::new(Vec::new());
    let silent = || SILENT.lock().unwrap_or_else(PoisonError::into_inner);
    silent().retain(|(_, since)| since.elapsed() < LEFT_ALONE);
    if silent().iter().any(|(p, _)| p == path) {
        return Err(Errno::NOENT);
    }
    let answer = inspect::ask(path, request, None, Some(LIMIT));
    if matches!(answer, Err(Errno::AGAIN)) {
        silent().push((path.into(), Instant::now()));
    }
    answer.map_err(|errno| match errno {
        Errno::AGAIN | Errno::CONNREFUSED | Errno::CONNRESET | Errno::PIPE => Errno::NOENT,
        other => other,
    })
}

/// The ids of all objects of `kind` in other sessions. A session that does not answer has none.
pub fn ids(kind: Kind) -> Vec<u32> {
    let of = |path: PathBuf| match ask(&path, Request::Ids(kind)) {
        Ok((Reply::Ids(ids), _)) => ids,
        _ => Vec::new(),
    };
    sessions().flat_map(of).collect()
}

/// The session that has the object, and what it says of it. That of a tool which only looks at it comes last.
fn find(kind: Kind, id: u32) -> Result<(PathBuf, Reply, Option<OwnedFd>), Errno> {
    let mut viewer = None;
    for path in sessions() {
        match ask(&path, Request::Get(kind, id)) {
            Err(_) | Ok((Reply::Refused(_), _)) => {}
            Ok((reply, fd)) => match &reply {
                Reply::Prog(ProgRow { own: false, .. }) | Reply::Link(LinkRow { own: false, .. }) => {
                    viewer = Some((path, reply, fd));
                }
                _ => return Ok((path, reply, fd)),
            },
        }
    }
    viewer.ok_or(Errno::NOENT)
}

/// A descriptor for the object of another session, which is an object of this process from now on.
pub fn open(kind: Kind, id: u32) -> Result<OwnedFd, Errno> {
    let (path, reply, fd) = find(kind, id)?;
    match reply {
        Reply::Map => map_object(&path, id, fd.ok_or(Errno::PROTO)?).map(|(fd, _)| fd),
        Reply::Prog(row) => {
            let fd = fd.ok_or(Errno::PROTO)?;
            prog_object(&path, row, &fd)?;
            Ok(fd)
        }
        Reply::Btf(name) => {
            let fd = fd.ok_or(Errno::PROTO)?;
            btf_object(id, &name, &fd)?;
            Ok(fd)
        }
        Reply::Link(row) => {
            let (tool, _) = fds::event_pair()?;
            object::insert(&tool, Object::Link(Arc::new(link_object(&path, row)?)))?;
            Ok(tool)
        }
        _ => Err(Errno::PROTO),
    }
}

fn btf_object(id: u32, name: &[u8], fd: &OwnedFd) -> Result<(), Errno> {
    let name = if name == b"vmlinux" { "vmlinux" } else { "" };
    let btf = BtfObject { name, id, data: sealed::read(fd.as_fd())?, memfd: fds::hidden(fd)? };
    object::insert(fd, Object::Btf(Arc::new(btf)))
}

/// For the holder: keeps the BTF that an object refers to. Without it the object is what it is.
fn keep_btf(path: &Path, id: u32) {
    if id == 0 || !holder::is_this() || object::by_id(Kind::Btf, id).is_some() {
        return;
    }
    if let Ok((Reply::Btf(name), Some(fd))) = ask(path, Request::Get(Kind::Btf, id)) {
        let kept = btf_object(id, &name, &fd);
        tracing::debug!(id, ?kept, "BTF");
    }
}

/// Makes `fd`, which the holder gave, a descriptor of its link `id`.
pub fn adopt_link(id: u32, fd: OwnedFd) -> Result<OwnedFd, Errno> {
    let (path, Reply::Link(row), _) = find(Kind::Link, id)? else { return Err(Errno::PROTO) };
    object::insert(&fd, Object::Link(Arc::new(link_object(&path, row)?)))?;
    Ok(fd)
}

/// For the holder: attaches in this session what another one's link attaches. A descriptor of the link, and the end
/// that is hung up when the last such is closed.
pub fn take_over(id: u32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (path, Reply::Link(row), _) = find(Kind::Link, id)? else { return Err(Errno::PROTO) };
    let (Reply::Specs(specs), _) = ask(&path, Request::Specs(id))? else { return Err(Errno::PROTO) };
    let mut link = link_object(&path, row)?;
    link.specs = specs.iter().map(|spec| spec.link).collect();
    link.viewed = false;
    let (tool, ours) = fds::event_pair()?;
    for spec in specs {
        broker::hold(spec, &link.prog, Some(fds::hidden(&ours)?))?;
    }
    object::insert(&tool, Object::Link(Arc::new(link)))?;
    Ok((tool, ours))
}

/// A map, entered into the table, and a descriptor of it for the tool.
fn map_object(path: &Path, id: u32, fd: OwnedFd) -> Result<(OwnedFd, Arc<MapObject>), Errno> {
    if let Some((_, Object::Map(known))) = object::by_id(Kind::Map, id) {
        let tool = known.events.as_ref().map(|e| rustix::io::fcntl_dupfd_cloexec(&e.tool, 3)).transpose()?;
        return Ok((tool.unwrap_or(fd), known));
    }
    let handle = Arc::new(MapHandle::new(bpftime_shm::Map::open(fd.as_fd())?));
    let memfd = fds::hidden(&fd)?;
    let (fd, events) = match handle.map.ringbuf() {
        Some(_) => crate::cmd::map::waitable()?,
        None => (fd, None),
    };
    let (slots, held, prog_type) = (Mutex::new(BTreeMap::new()), Mutex::default(), OnceLock::new());
    let map = Arc::new(MapObject { id, handle, memfd, events, slots, held, prog_type });
    object::insert(&fd, Object::Map(map.clone()))?;
    keep_btf(path, map.def().btf_id);
    if map.events.is_some() {
        wait::register_foreign(&map);
    }
    if held::is_container(&map) {
        adopt_members(path, &map)?;
    }
    Ok((fd, map))
}

/// The programs or maps that are stored in a map. One that is gone meanwhile is left out.
fn adopt_members(path: &Path, map: &MapObject) -> Result<(), Errno> {
    let (Reply::Members(rows), _) = ask(path, Request::Members(map.id))? else { return Err(Errno::PROTO) };
    for (key, id) in rows {
        let holds_maps = map.def().inner.map_type != 0;
        let member = if holds_maps {
            map_by_id(path, id).map(Member::Map)
        } else {
            prog_by_id(path, id).map(Member::Prog)
        };
        if let Ok(member) = member {
            held::adopt(map, &key, &member);
        }
    }
    Ok(())
}

fn map_by_id(path: &Path, id: u32) -> Result<Arc<MapObject>, Errno> {
    let (_, fd) = ask(path, Request::Get(Kind::Map, id))?;
    map_object(path, id, fd.ok_or(Errno::NOENT)?).map(|(_, map)| map)
}

fn prog_by_id(path: &Path, id: u32) -> Result<Arc<ProgObject>, Errno> {
    match ask(path, Request::Get(Kind::Prog, id))? {
        (Reply::Prog(row), Some(fd)) => prog_object(path, row, &fd),
        _ => Err(Errno::NOENT),
    }
}

/// A program, entered into the table.
fn prog_object(path: &Path, row: ProgRow, fd: &OwnedFd) -> Result<Arc<ProgObject>, Errno> {
    let maps = row.spec.maps.iter().map(|id| map_by_id(path, *id)).collect::<Result<_, _>>()?;
    // A map of its own may hold it.
    if let Some((_, Object::Prog(known))) = object::by_id(Kind::Prog, row.spec.prog) {
        return Ok(known);
    }
    keep_btf(path, row.btf);
    let own = OwnRow::take();
    let before = holder::is_this().then(|| page_of(path)).flatten().map(|page| (page, row.spec.stats));
    let prog = Arc::new(ProgObject {
        asks_for_task: prog::asks_for_task(&row.insns),
        overrides: prog::calls(&row.insns, helper::id::override_return),
        spec: ProgSpec { stats: own.number(), ..row.spec },
        maps,
        image: fds::hidden(fd)?,
        tag: row.tag,
        load_time: row.load_time,
        insns: row.insns,
        gpl: row.gpl,
        btf: row.btf,
        ctx_bytes: row.ctx_bytes,
        attach_type: row.attach_type,
        bound: Mutex::default(),
        linked: OnceLock::new(),
        row: own,
        viewed: !holder::is_this(),
        is_elsewhere: AtomicBool::new(true),
        before,
    });
    object::insert(fd, Object::Prog(prog.clone()))?;
    Ok(prog)
}

/// The session page of another session.
fn page_of(path: &Path) -> Option<Page> {
    let sock = sock::connect(path).ok()?;
    sock::send(sock.as_fd(), &Message::Text.encode(), &[]).ok()?;
    let msg = sock::recv(sock.as_fd(), false).ok()?;
    Page::open(msg.fds.first()?).ok()
}

fn link_object(path: &Path, row: LinkRow) -> Result<LinkObject, Errno> {
    let prog = prog_by_id(path, row.prog)?;
    let detail = match row.link_type {
        BPF_LINK_TYPE_UPROBE_MULTI => LinkDetail::UprobeMulti {
            path: row.text,
            points: row.points,
            given: row.given,
            flags: row.words[5] as u32,
            pid: (row.words[5] >> 32) as u32,
        },
        _ => LinkDetail::Elsewhere { words: row.words, text: row.text },
    };
    Ok(LinkObject {
        id: row.id,
        link_type: row.link_type,
        prog,
        event: None,
        detail,
        specs: Vec::new(),
        viewed: true,
    })
}

/// What all other sessions counted of a program's runs.
pub fn runs(prog: u32) -> Runs {
    let of = |path: PathBuf| match ask(&path, Request::Get(Kind::Prog, prog)) {
        Ok((Reply::Prog(row), _)) => row.runs,
        _ => Runs::default(),
    };
    sessions().map(of).fold(Runs::default(), std::ops::Add::add)
}

/// The program at the event behind descriptor `fd` of process `pid`, a tool of this user's.
pub fn event(pid: u32, fd: i32) -> Result<EventRow, Errno> {
    let theirs = format!("{pid}-");
    let is_theirs = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&theirs));
    // A process without a session has no event with a program.
    let path = sessions().find(is_theirs).ok_or(crate::cmd::ENOTSUPP)?;
    match ask(&path, Request::Event(fd))?.0 {
        Reply::Event(row) => Ok(row),
        Reply::Refused(errno) => Err(Errno::from_raw_os_error(errno)),
        _ => Err(Errno::PROTO),
    }
}
