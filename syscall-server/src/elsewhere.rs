//! Objects of other sessions of this user, found by id: what makes bpftool an inspector.
//!
//! A map comes with its memfd and is then as good as an own one. A program, or BTF, is a copy of what it says of itself;
//! a link is only a description, which keeps nothing attached.

use crate::cmd::prog;
use crate::fds;
use crate::object::{self, BtfObject, LinkDetail, LinkObject, MapObject, Object, ProgObject};
use bpftime_abi::helper;
use bpftime_agent::run::MapHandle;
use bpftime_shm::session::inspect::{EventRow, Kind, LinkRow, ProgRow, Reply, Request};
use bpftime_shm::session::wire::Message;
use bpftime_shm::session::{dir, sealed, sock};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

/// The sockets of the other sessions.
fn sessions() -> impl Iterator<Item = PathBuf> {
    let mine = format!("{}-", std::process::id());
    let is_mine = move |p: &Path| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&mine));
    dir::candidates().into_iter().flat_map(|d| dir::sockets(&d)).filter(move |p| !is_mine(p))
}

/// Asks one session.
fn ask(path: &Path, request: Request) -> Result<(Reply, Option<OwnedFd>), Errno> {
    let sock = sock::connect(path)?;
    sock::send(sock.as_fd(), &Message::Inspect(request).encode(), &[])?;
    let msg = sock::recv(sock.as_fd(), false)?;
    let Message::Inspected(reply) = Message::decode(&msg.bytes)? else { return Err(Errno::PROTO) };
    Ok((reply, msg.fds.into_iter().next()))
}

/// The ids of all objects of `kind` in other sessions. A session that does not answer has none.
pub fn ids(kind: Kind) -> Vec<u32> {
    let of = |path: PathBuf| match ask(&path, Request::Ids(kind)) {
        Ok((Reply::Ids(ids), _)) => ids,
        _ => Vec::new(),
    };
    sessions().flat_map(of).collect()
}

/// A descriptor for the object of another session, which is an object of this process from now on.
pub fn open(kind: Kind, id: u32) -> Result<OwnedFd, Errno> {
    let found = sessions().find_map(|path| {
        let (reply, fd) = ask(&path, Request::Get(kind, id)).ok()?;
        (!matches!(reply, Reply::Refused(_))).then_some((path, reply, fd))
    });
    let (path, reply, fd) = found.ok_or(Errno::NOENT)?;
    adopt(&path, id, reply, fd)
}

fn adopt(path: &Path, id: u32, reply: Reply, fd: Option<OwnedFd>) -> Result<OwnedFd, Errno> {
    let (fd, object) = match reply {
        Reply::Map => {
            let fd = fd.ok_or(Errno::PROTO)?;
            let map = map_object(id, &fd)?;
            (fd, Object::Map(map))
        }
        Reply::Prog(row) => {
            let fd = fd.ok_or(Errno::PROTO)?;
            let prog = prog_object(path, row, &fd)?;
            (fd, Object::Prog(prog))
        }
        Reply::Btf(name) => {
            let fd = fd.ok_or(Errno::PROTO)?;
            let name = if name == b"vmlinux" { "vmlinux" } else { "" };
            let btf = BtfObject { name, id, data: sealed::read(fd.as_fd())?, memfd: fds::hidden(&fd)? };
            (fd, Object::Btf(Arc::new(btf)))
        }
        Reply::Link(row) => {
            let (fd, link) = link_object(path, row)?;
            (fd, Object::Link(Arc::new(link)))
        }
        Reply::Refused(errno) => return Err(Errno::from_raw_os_error(errno)),
        Reply::Ids(_) | Reply::Event(_) => return Err(Errno::PROTO),
    };
    object::insert(&fd, object)?;
    Ok(fd)
}

fn map_object(id: u32, fd: &OwnedFd) -> Result<Arc<MapObject>, Errno> {
    if let Some((_, Object::Map(known))) = object::by_id(Kind::Map, id) {
        return Ok(known);
    }
    Ok(Arc::new(MapObject {
        id,
        handle: Arc::new(MapHandle::new(bpftime_shm::Map::open(fd.as_fd())?)),
        memfd: fds::hidden(fd)?,
        events: None,
        slots: Mutex::new(BTreeMap::new()),
        held: Mutex::default(),
        prog_type: OnceLock::new(),
    }))
}

fn prog_object(path: &Path, row: ProgRow, fd: &OwnedFd) -> Result<Arc<ProgObject>, Errno> {
    let map = |id: &u32| -> Result<Arc<MapObject>, Errno> {
        let (_, fd) = ask(path, Request::Get(Kind::Map, *id))?;
        map_object(*id, &fd.ok_or(Errno::PROTO)?)
    };
    let maps = row.spec.maps.iter().map(map).collect::<Result<_, _>>()?;
    Ok(Arc::new(ProgObject {
        asks_for_task: prog::asks_for_task(&row.insns),
        overrides: prog::calls(&row.insns, helper::id::override_return),
        spec: row.spec,
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
    }))
}

fn link_object(path: &Path, row: LinkRow) -> Result<(OwnedFd, LinkObject), Errno> {
    let (reply, fd) = ask(path, Request::Get(Kind::Prog, row.prog))?;
    let (Reply::Prog(prog), Some(fd)) = (reply, fd) else { return Err(Errno::NOENT) };
    let prog = prog_object(path, prog, &fd)?;
    let (tool, _) = fds::event_pair()?;
    let detail = LinkDetail::Elsewhere { words: row.words, text: row.text };
    Ok((tool, LinkObject { id: row.id, link_type: row.link_type, prog, event: None, detail }))
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
