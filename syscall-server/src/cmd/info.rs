//! Objects by id and what is known about them.

use super::Attr;
use crate::object::{self, Object};
use crate::{fds, user};
use bpftime_abi::attr::{BtfInfo, GetId, Info, MapInfo, ProgInfo};
use rustix::fd::RawFd;
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
    let ids: Vec<u8> = p.spec.maps.iter().flat_map(|id| id.to_ne_bytes()).collect();
    if asked.map_ids != 0 {
        let room = ids.len().min(asked.nr_map_ids as usize * 4);
        user::write(asked.map_ids, &ids[..room])?;
    }
    let mut name = [0; 16];
    name[..p.spec.name.len().min(15)].copy_from_slice(&p.spec.name[..p.spec.name.len().min(15)]);
    let info = ProgInfo {
        prog_type: p.spec.prog_type,
        id: p.spec.prog,
        tag: p.tag,
        xlated_prog_len: p.insn_cnt * 8,
        load_time: p.load_time,
        created_by_uid: rustix::process::getuid().as_raw(),
        nr_map_ids: p.spec.maps.len() as u32,
        map_ids: asked.map_ids,
        name,
        gpl_compatible: p.gpl.into(),
        btf_id: p.btf,
        verified_insns: p.insn_cnt,
        ..ProgInfo::default()
    };
    Ok(info.as_bytes().to_vec())
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

/// The id of an object if it is of the kind `pick` wants.
fn next(attr: &Attr, pick: fn(&Object) -> Option<u32>) -> Result<i64, Errno> {
    let a: GetId = attr.get();
    let id = object::all().iter().filter_map(pick).filter(|id| *id > a.id).min().ok_or(Errno::NOENT)?;
    attr.put(std::mem::offset_of!(GetId, next_id), &id.to_ne_bytes())?;
    Ok(0)
}

/// BPF_PROG_GET_NEXT_ID.
pub fn next_prog(attr: &Attr) -> Result<i64, Errno> {
    next(attr, |o| if let Object::Prog(p) = o { Some(p.spec.prog) } else { None })
}

/// BPF_MAP_GET_NEXT_ID.
pub fn next_map(attr: &Attr) -> Result<i64, Errno> {
    next(attr, |o| if let Object::Map(m) = o { Some(m.id) } else { None })
}

/// BPF_LINK_GET_NEXT_ID.
pub fn next_link(attr: &Attr) -> Result<i64, Errno> {
    next(attr, |o| if let Object::Link(l) = o { Some(l.id) } else { None })
}

/// BPF_BTF_GET_NEXT_ID: the kernel's BTF and the tool's own; kernel modules have none here.
pub fn next_btf(attr: &Attr) -> Result<i64, Errno> {
    super::btf::offer_kernel();
    next(attr, |o| if let Object::Btf(b) = o { Some(b.id) } else { None })
}

/// BPF_BTF_GET_FD_BY_ID.
pub fn btf_fd(attr: &Attr) -> Result<i64, Errno> {
    let a: GetId = attr.get();
    let found = object::all().into_iter().find_map(|o| match o {
        Object::Btf(b) if b.id == a.id => Some(b),
        _ => None,
    });
    let fd = rustix::io::fcntl_dupfd_cloexec(&found.ok_or(Errno::NOENT)?.memfd, 3)?;
    Ok(fds::give(fd))
}
