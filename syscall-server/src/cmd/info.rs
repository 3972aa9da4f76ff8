//! Objects by id and what is known about them.

use super::Attr;
use crate::fds::Access;
use crate::object::{self, Object};
use crate::{broker, elsewhere, fds, user};
use bpftime_abi::attr::{BtfInfo, GetId, Info, MapInfo, ProgInfo, TaskFdQuery};
use bpftime_shm::session::inspect::Kind;
use bpftime_shm::session::sealed;
use rustix::fd::{AsFd, OwnedFd, RawFd};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

/// BPF_OBJ_GET_INFO_BY_FD.
pub fn by_fd(attr: &Attr) -> Result<i64, Errno> {
    let a: Info = attr.get();
    let bytes = match object::find(a.bpf_fd as RawFd)? {
        Object::Map(m) => map_info(&m).as_bytes().to_vec(),
        Object::Prog(p) => prog_info(&p, &a)?,
        Object::Link(l) => super::link_info::of(&l, &theirs(&a)?)?.as_bytes().to_vec(),
        Object::Btf(b) => btf_info(&b, &a)?,
        Object::Perf(_) => return Err(Errno::INVAL),
    };
    check_rest(&a, bytes.len())?;
    let len = bytes.len().min(a.info_len as usize);
    user::write(a.info, &bytes[..len])?;
    attr.put(std::mem::offset_of!(Info, info_len), &(len as u32).to_ne_bytes())?;
    Ok(0)
}

/// A longer buffer than we fill must be zero behind it (`bpf_check_uarg_tail_zero`).
fn check_rest(a: &Info, known: usize) -> Result<(), Errno> {
    let Some(rest) = (a.info_len as usize).checked_sub(known) else { return Ok(()) };
    if rest > 4096 {
        return Err(Errno::TOOBIG);
    }
    let rest = user::read(a.info + known as u64, rest)?;
    if rest.iter().any(|b| *b != 0) { Err(Errno::TOOBIG) } else { Ok(()) }
}

fn map_info(m: &object::MapObject) -> MapInfo {
    let d = m.def();
    MapInfo {
        map_type: d.map_type,
        id: m.id,
        key_size: d.key_size,
        value_size: d.value_size,
        max_entries: d.max_entries,
        map_flags: d.map_flags,
        name: d.name,
        btf_id: d.btf_id,
        btf_key_type_id: d.btf_key_type_id,
        btf_value_type_id: d.btf_value_type_id,
        map_extra: d.map_extra,
        ..MapInfo::default()
    }
}

/// The tool's own struct says how much room its arrays have.
fn theirs<T: FromBytes + IntoBytes>(a: &Info) -> Result<T, Errno> {
    let mut v = T::new_zeroed();
    let len = size_of::<T>().min(a.info_len as usize);
    user::read_into(&mut v.as_mut_bytes()[..len], a.info)?;
    Ok(v)
}

fn prog_info(p: &object::ProgObject, a: &Info) -> Result<Vec<u8>, Errno> {
    let asked: ProgInfo = theirs(a)?;
    let ids: Vec<u8> = p.all_maps().iter().flat_map(|m| m.id.to_ne_bytes()).collect();
    if asked.map_ids != 0 {
        let room = ids.len().min(asked.nr_map_ids as usize * 4);
        user::write(asked.map_ids, &ids[..room])?;
    }
    // Instructions go out whole or not at all, as the kernel's.
    let jited = jited_code(p);
    if asked.xlated_prog_insns != 0 && asked.xlated_prog_len as usize >= p.insns.len() {
        user::write(asked.xlated_prog_insns, &p.insns)?;
    }
    if asked.jited_prog_insns != 0 && asked.jited_prog_len as usize >= jited.len() {
        user::write(asked.jited_prog_insns, &jited)?;
    }
    let runs = crate::stats::runs_of(p);
    let mut name = [0; 16];
    name[..p.spec.name.len().min(15)].copy_from_slice(&p.spec.name[..p.spec.name.len().min(15)]);
    let info = ProgInfo {
        prog_type: p.spec.prog_type,
        id: p.spec.prog,
        tag: p.tag,
        jited_prog_len: jited.len() as u32,
        jited_prog_insns: asked.jited_prog_insns,
        xlated_prog_len: p.insns.len() as u32,
        xlated_prog_insns: asked.xlated_prog_insns,
        load_time: p.load_time,
        created_by_uid: rustix::process::getuid().as_raw(),
        nr_map_ids: ids.len() as u32 / 4,
        map_ids: asked.map_ids,
        name,
        gpl_compatible: p.gpl.into(),
        btf_id: p.btf,
        verified_insns: p.insns.len() as u32 / 8,
        run_time_ns: runs.nanos,
        run_cnt: runs.count,
        recursion_misses: runs.missed,
        ..ProgInfo::default()
    };
    Ok(info.as_bytes().to_vec())
}

/// The machine code of the image, as it is before a process links it.
fn jited_code(p: &object::ProgObject) -> Vec<u8> {
    let bytes = sealed::read(p.image.as_fd()).unwrap_or_default();
    bpftime_vm::ImageRef::parse(&bytes).map(|image| image.code().to_vec()).unwrap_or_default()
}

fn btf_info(b: &object::BtfObject, a: &Info) -> Result<Vec<u8>, Errno> {
    let asked: BtfInfo = theirs(a)?;
    if asked.btf != 0 {
        let room = b.data.len().min(asked.btf_size as usize);
        user::write(asked.btf, &b.data[..room])?;
    }
    if asked.name != 0 && asked.name_len as usize > b.name.len() {
        user::write(asked.name, &[b.name.as_bytes(), b"\0"].concat())?;
    }
    let info = BtfInfo {
        btf: asked.btf,
        btf_size: b.data.len() as u32,
        id: b.id,
        name: asked.name,
        name_len: b.name.len() as u32,
        kernel_btf: (!b.name.is_empty()).into(),
    };
    Ok(info.as_bytes().to_vec())
}

/// The least id above the one given, in this process and in all sessions of the user.
fn next(attr: &Attr, kind: Kind) -> Result<i64, Errno> {
    let a: GetId = attr.get();
    let own = object::all().into_iter().filter_map(|(_, o)| o.id()).filter(|(k, _)| *k == kind);
    let all = own.map(|(_, id)| id).chain(elsewhere::ids(kind));
    let id = all.filter(|id| *id > a.id).min().ok_or(Errno::NOENT)?;
    attr.put(std::mem::offset_of!(GetId, next_id), &id.to_ne_bytes())?;
    Ok(0)
}

/// BPF_PROG_GET_NEXT_ID.
pub fn next_prog(attr: &Attr) -> Result<i64, Errno> {
    next(attr, Kind::Prog)
}

/// BPF_MAP_GET_NEXT_ID.
pub fn next_map(attr: &Attr) -> Result<i64, Errno> {
    next(attr, Kind::Map)
}

/// BPF_LINK_GET_NEXT_ID.
pub fn next_link(attr: &Attr) -> Result<i64, Errno> {
    next(attr, Kind::Link)
}

/// BPF_BTF_GET_NEXT_ID: the kernel's BTF and tools' own; kernel modules have none here.
pub fn next_btf(attr: &Attr) -> Result<i64, Errno> {
    super::btf::offer_kernel();
    next(attr, Kind::Btf)
}

/// A new descriptor of an object: of this process, else of another session.
pub fn descriptor(kind: Kind, id: u32, access: Access) -> Result<OwnedFd, Errno> {
    match object::by_id(kind, id) {
        // BTF that no descriptor of the tool's stands for: the kernel's.
        Some((_, Object::Btf(b))) => rustix::io::fcntl_dupfd_cloexec(&b.memfd, 3),
        Some((_, Object::Map(m))) => match &m.events {
            Some(events) => rustix::io::fcntl_dupfd_cloexec(&events.tool, 3),
            None => fds::open_as(&m.memfd, access),
        },
        Some((_, Object::Prog(p))) => rustix::io::fcntl_dupfd_cloexec(&p.image, 3),
        // Closed here, it may be kept elsewhere.
        Some((file, _)) => fds::another(file).map_or_else(|| elsewhere::open(kind, id), Ok),
        None => match access {
            Access::Both => elsewhere::open(kind, id),
            access => fds::open_as(elsewhere::open(kind, id)?, access),
        },
    }
}

/// Hands an object's descriptor to the tool.
pub fn give(kind: Kind, fd: OwnedFd) -> Result<i64, Errno> {
    if kind == Kind::Link {
        fds::watch(&fd);
    }
    Ok(fds::give(fd))
}

fn by_id(attr: &Attr, kind: Kind) -> Result<i64, Errno> {
    let a: GetId = attr.get();
    if a.open_flags & !fds::ACCESS_FLAGS != 0 {
        return Err(Errno::INVAL);
    }
    give(kind, descriptor(kind, a.id, Access::from_flags(a.open_flags)?)?)
}

/// BPF_PROG_GET_FD_BY_ID.
pub fn prog_fd(attr: &Attr) -> Result<i64, Errno> {
    by_id(attr, Kind::Prog)
}

/// BPF_MAP_GET_FD_BY_ID.
pub fn map_fd(attr: &Attr) -> Result<i64, Errno> {
    by_id(attr, Kind::Map)
}

/// BPF_LINK_GET_FD_BY_ID.
pub fn link_fd(attr: &Attr) -> Result<i64, Errno> {
    by_id(attr, Kind::Link)
}

/// BPF_BTF_GET_FD_BY_ID.
pub fn btf_fd(attr: &Attr) -> Result<i64, Errno> {
    by_id(attr, Kind::Btf)
}

/// BPF_TASK_FD_QUERY: the program at a perf event of a tool.
pub fn task_fd_query(attr: &Attr) -> Result<i64, Errno> {
    let a: TaskFdQuery = attr.get();
    if a.flags != 0 {
        return Err(Errno::INVAL);
    }
    let row = if a.pid == std::process::id() {
        match object::find(a.fd as RawFd) {
            Ok(Object::Perf(event)) => broker::inspect::event_row(&event)?,
            Err(Errno::BADF) => return Err(Errno::BADF),
            _ => return Err(super::ENOTSUPP),
        }
    } else {
        elsewhere::event(a.pid, a.fd as RawFd)?
    };
    let text = store_name(&a, &row.name);
    let len = row.name.len() as u32;
    attr.put(std::mem::offset_of!(TaskFdQuery, buf_len), &len.to_ne_bytes())?;
    attr.put(std::mem::offset_of!(TaskFdQuery, prog_id), &row.prog.to_ne_bytes())?;
    attr.put(std::mem::offset_of!(TaskFdQuery, fd_type), &row.fd_type.to_ne_bytes())?;
    attr.put(std::mem::offset_of!(TaskFdQuery, probe_offset), &row.offset.to_ne_bytes())?;
    attr.put(std::mem::offset_of!(TaskFdQuery, probe_addr), &row.addr.to_ne_bytes())?;
    text.map(|()| 0)
}

/// As much of the name as there is room for, terminated; ENOSPC when that is not all.
fn store_name(a: &TaskFdQuery, name: &[u8]) -> Result<(), Errno> {
    let Some(room) = (a.buf_len as usize).checked_sub(1).filter(|_| a.buf != 0) else { return Ok(()) };
    let part = &name[..name.len().min(room)];
    user::write(a.buf, &[part, b"\0"].concat())?;
    if part.len() < name.len() { Err(Errno::NOSPC) } else { Ok(()) }
}
