//! BPF_OBJ_PIN and BPF_OBJ_GET.

use super::{Attr, info};
use crate::files::bpffs::{self, Place};
use crate::object::{self, LinkObject, Object, PerfKind};
use crate::{broker, elsewhere, fds, holder, user};
use bpftime_abi::attr::Obj;
use bpftime_shm::session::inspect::Kind;
use rustix::fd::{OwnedFd, RawFd};
use rustix::io::Errno;
use std::os::unix::ffi::OsStrExt;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// `BPF_F_PATH_FD`.
const PATH_FD: u32 = 1 << 14;
/// `PATH_MAX`.
const PATH_MAX: usize = 4096;

fn place(a: &Obj) -> Result<Place, Errno> {
    let path = user::read_str(a.pathname, PATH_MAX)?;
    bpffs::place(&path, (a.file_flags & PATH_FD != 0).then_some(a.path_fd))
}

/// Flags beside `known`, and a directory that no flag speaks of.
fn check_flags(a: &Obj, known: u32) -> Result<(), Errno> {
    let stray = a.file_flags & PATH_FD == 0 && a.path_fd != 0;
    if a.file_flags & !(known | PATH_FD) != 0 || stray { Err(Errno::INVAL) } else { Ok(()) }
}

/// BPF_OBJ_PIN.
pub fn pin(attr: &Attr) -> Result<i64, Errno> {
    let a: Obj = attr.get();
    check_flags(&a, 0)?;
    let fd = fds::borrow(a.bpf_fd as RawFd).map_err(|_| Errno::INVAL)?;
    let object = object::find(a.bpf_fd as RawFd).map_err(|_| Errno::INVAL)?;
    let (kind, id) = object.id().filter(|(kind, _)| *kind != Kind::Btf).ok_or(Errno::INVAL)?;
    let path = match place(&a)? {
        Place::Ours(path) if !path.as_os_str().as_bytes().ends_with(b"/") => path,
        Place::Ours(path) => return Err(if path.is_dir() { Errno::EXIST } else { Errno::NOENT }),
        Place::Elsewhere(path) => return Err(bpffs::refuse_pin(&path)),
    };
    if matches!(&object, Object::Link(link) if ticks_here(link)) {
        return Err(Errno::OPNOTSUPP);
    }
    // The holder asks this tool's session for the object.
    drop(broker::session()?);
    holder::pin(kind, id, &path, fd)?;
    if let Object::Link(link) = object {
        link.prog.is_elsewhere.store(true, Ordering::Relaxed);
    }
    Ok(0)
}

/// A clock that ticks in the tool ends with the tool: nothing could keep it.
fn ticks_here(link: &LinkObject) -> bool {
    link.event.as_ref().is_some_and(|event| {
        let state = event.state.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(event.kind, PerfKind::Clock { .. }) && state.attached.is_none()
    })
}

/// BPF_OBJ_GET.
pub fn get(attr: &Attr) -> Result<i64, Errno> {
    let a: Obj = attr.get();
    if a.bpf_fd != 0 {
        return Err(Errno::INVAL);
    }
    check_flags(&a, fds::ACCESS_FLAGS)?;
    let access = fds::Access::from_flags(a.file_flags)?;
    let path = match place(&a)? {
        Place::Ours(path) => path,
        Place::Elsewhere(path) => return Err(bpffs::pin(&path).err().unwrap_or(Errno::ACCESS)),
    };
    let (kind, id, fd) = match holder::pinned(bpffs::pin(&path)?) {
        Err(Errno::NOENT) => {
            // Its holder was killed: nothing is behind it any more.
            let _ = std::fs::remove_file(&path);
            return Err(Errno::NOENT);
        }
        found => found?,
    };
    if kind == Kind::Link && access != fds::Access::Both {
        return Err(Errno::INVAL);
    }
    let fd = match fd {
        Some(holders) => own_link(id).map_or_else(|| elsewhere::adopt_link(id, holders), Ok)?,
        None => info::descriptor(kind, id, access)?,
    };
    info::give(kind, fd)
}

/// Another descriptor of a link that this tool made and still has.
fn own_link(id: u32) -> Option<OwnedFd> {
    match object::by_id(Kind::Link, id)? {
        (file, Object::Link(link)) if !link.viewed => fds::another(file),
        _ => None,
    }
}
