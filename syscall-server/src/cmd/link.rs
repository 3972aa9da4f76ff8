//! Links.

use super::{Attr, ENOTSUPP};
use crate::object::{self, LinkDetail, LinkObject, Object, PerfKind};
use crate::{broker, fds, perf, user};
use bpftime_abi::attr::{LinkCreatePerf, LinkCreateUprobeMulti, LinkUpdate, OneFd};
use bpftime_abi::prog_type::{
    BPF_LINK_TYPE_PERF_EVENT, BPF_LINK_TYPE_RAW_TRACEPOINT, BPF_LINK_TYPE_UPROBE_MULTI, BPF_PERF_EVENT,
    BPF_PROG_TYPE_KPROBE, BPF_PROG_TYPE_PERF_EVENT, BPF_PROG_TYPE_RAW_TRACEPOINT, BPF_PROG_TYPE_TRACEPOINT,
    BPF_TRACE_KPROBE_MULTI, BPF_TRACE_UPROBE_MULTI, BPF_TRACE_UPROBE_SESSION,
};
use bpftime_shm::session::wire::{LinkKind, LinkSpec, Point};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::sync::Arc;

/// BPF_LINK_CREATE.
pub fn create(attr: &Attr) -> Result<i64, Errno> {
    let a: LinkCreatePerf = attr.get();
    match a.attach_type {
        BPF_PERF_EVENT => perf_link(&a),
        BPF_TRACE_UPROBE_MULTI | BPF_TRACE_UPROBE_SESSION => uprobe_multi(&attr.get()),
        // bpftrace asks whether kprobe_multi exists and takes this for a no.
        BPF_TRACE_KPROBE_MULTI => Err(Errno::OPNOTSUPP),
        _ => Err(Errno::INVAL),
    }
}

/// A program on a perf event. The order of the checks is the kernel's: libbpf probes with target_fd -1 and takes EBADF
/// for "supported".
fn perf_link(a: &LinkCreatePerf) -> Result<i64, Errno> {
    let prog = object::prog(a.prog_fd)?;
    if a.flags != 0 || MULTI_TYPES.contains(&prog.attach_type) {
        return Err(Errno::INVAL);
    }
    let types = [BPF_PROG_TYPE_KPROBE, BPF_PROG_TYPE_TRACEPOINT, BPF_PROG_TYPE_PERF_EVENT];
    if !types.contains(&prog.spec.prog_type) {
        return Err(Errno::INVAL);
    }
    let event = object::perf(a.target_fd).map_err(|_| Errno::BADF)?;
    let (tool, ours) = fds::event_pair()?;
    perf::set_program(&event, &prog, a.bpf_cookie, Some(ours))?;
    new_link(tool, BPF_LINK_TYPE_PERF_EVENT, prog, Some(event), LinkDetail::Event, Vec::new())
}

fn new_link(
    tool: OwnedFd,
    link_type: u32,
    prog: Arc<object::ProgObject>,
    event: Option<Arc<object::PerfObject>>,
    detail: LinkDetail,
    specs: Vec<u32>,
) -> Result<i64, Errno> {
    let link = LinkObject { id: object::next_id(), link_type, prog, event, detail, specs, viewed: false };
    object::insert(&tool, Object::Link(Arc::new(link)))?;
    fds::watch(&tool);
    Ok(fds::give(tool))
}

/// Programs of these attach types go on their own kind of link only.
const MULTI_TYPES: [u32; 3] = [BPF_TRACE_KPROBE_MULTI, BPF_TRACE_UPROBE_MULTI, BPF_TRACE_UPROBE_SESSION];
/// `BPF_F_UPROBE_MULTI_RETURN`.
const MULTI_RETURN: u32 = 1;
/// `MAX_UPROBE_MULTI_CNT`.
const MULTI_MAX: u32 = 1 << 20;

/// One program on many offsets of a file: on all or on none. The order of the checks is the kernel's. A session's program
/// runs at the return as well, with or without the flag.
fn uprobe_multi(a: &LinkCreateUprobeMulti) -> Result<i64, Errno> {
    let prog = object::prog(a.prog_fd)?;
    let fits = prog.spec.prog_type == BPF_PROG_TYPE_KPROBE && prog.attach_type == a.attach_type;
    let session = a.attach_type == BPF_TRACE_UPROBE_SESSION;
    if !fits || a.flags != 0 || a.multi_flags & !MULTI_RETURN != 0 {
        return Err(Errno::INVAL);
    }
    if a.path == 0 || a.offsets == 0 || a.cnt == 0 || (a.pid as i32) < 0 {
        return Err(Errno::INVAL);
    }
    if a.cnt > MULTI_MAX {
        return Err(Errno::TOOBIG);
    }
    let path = user::read_str(a.path, 4096)?;
    let st = rustix::fs::stat(path.as_slice())?;
    if rustix::fs::FileType::from_raw_mode(st.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(Errno::BADF);
    }
    check_process(a.pid)?;
    let points = read_points(a)?;
    if points.iter().any(|p| p.offset as i64 > st.st_size || p.ref_ctr_offset % 2 != 0) {
        return Err(Errno::INVAL);
    }
    perf::unfit::refuse(&path, &st)?;
    let returns = session || a.multi_flags & MULTI_RETURN != 0;
    let starts = |p: &Point| !returns && perf::function::starts_at(&path, p.offset);
    if prog.overrides && !points.iter().all(starts) {
        return Err(Errno::INVAL);
    }
    let (tool, ours) = fds::event_pair()?;
    let spec = LinkSpec {
        kind: if session { LinkKind::Session } else { LinkKind::Uprobe },
        link: object::next_id(),
        prog: prog.spec.prog,
        ret: returns,
        pid: if a.pid == 0 { -1 } else { a.pid as i32 },
        dev: st.st_dev,
        ino: st.st_ino,
        path: path.clone(),
        points: points.clone(),
    };
    let specs = attach_in_pieces(spec, &prog, ours)?;
    let detail = LinkDetail::UprobeMulti {
        path: absolute(path),
        points,
        given: (a.ref_ctr_offsets != 0, a.cookies != 0),
        flags: a.multi_flags,
        pid: a.pid,
    };
    new_link(tool, BPF_LINK_TYPE_UPROBE_MULTI, prog, None, detail, specs)
}

/// Process 0 stands for all.
fn check_process(pid: u32) -> Result<(), Errno> {
    let Some(pid) = rustix::process::Pid::from_raw(pid as i32) else { return Ok(()) };
    match rustix::process::test_kill_process(pid) {
        Err(Errno::SRCH) => Err(Errno::SRCH),
        _ => Ok(()),
    }
}

/// The tool's arrays.
fn read_points(a: &LinkCreateUprobeMulti) -> Result<Vec<Point>, Errno> {
    let words = |addr: u64| -> Result<Vec<u64>, Errno> {
        if addr == 0 {
            return Ok(vec![0; a.cnt as usize]);
        }
        let bytes = user::read(addr, a.cnt as usize * 8)?;
        Ok(bytes.chunks_exact(8).filter_map(|c| c.try_into().ok().map(u64::from_ne_bytes)).collect())
    };
    let (offsets, refs, cookies) = (words(a.offsets)?, words(a.ref_ctr_offsets)?, words(a.cookies)?);
    if offsets.iter().any(|o| (*o as i64) < 0) {
        return Err(Errno::INVAL);
    }
    let point = |i: usize| Point { offset: offsets[i], ref_ctr_offset: refs[i], cookie: cookies[i] };
    Ok((0..a.cnt as usize).map(point).collect())
}

/// As the kernel's `d_path` names the file.
fn absolute(path: Vec<u8>) -> Vec<u8> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let full = std::fs::canonicalize(std::ffi::OsStr::from_bytes(&path));
    full.map_or(path, |p| p.into_os_string().into_vec())
}

/// A message holds a thousand points, so that targets need little memory to read it; a larger link goes as several, ended by the same hang-up. Their ids.
fn attach_in_pieces(
    mut spec: LinkSpec,
    prog: &object::ProgObject,
    watch: OwnedFd,
) -> Result<Vec<u32>, Errno> {
    const POINTS_MAX: usize = 1024;
    // Out of what is copied for each piece.
    let points = std::mem::take(&mut spec.points);
    let mut ids = Vec::new();
    for (i, piece) in points.chunks(POINTS_MAX).enumerate() {
        let link = if i == 0 { spec.link } else { object::next_id() };
        let watch = fds::hidden(&watch)?;
        broker::attach(LinkSpec { link, points: piece.to_vec(), ..spec.clone() }, prog, Some(watch))?;
        ids.push(link);
    }
    Ok(ids)
}

/// BPF_LINK_DETACH: the kernel's links of these types have none, they are closed.
pub fn detach(attr: &Attr) -> Result<i64, Errno> {
    let a: OneFd = attr.get();
    object::link(a.fd)?;
    Err(Errno::OPNOTSUPP)
}

/// BPF_LINK_UPDATE: the kernel's links of these types keep their program.
pub fn update(attr: &Attr) -> Result<i64, Errno> {
    let a: LinkUpdate = attr.get();
    object::link(a.link_fd)?;
    object::prog(a.new_prog_fd)?;
    Err(Errno::INVAL)
}

/// BPF_RAW_TRACEPOINT_OPEN: kernel tracepoints are no userspace event; sys_enter and sys_exit belong to the syscall
/// source.
pub fn raw_tracepoint(attr: &Attr) -> Result<i64, Errno> {
    let a: bpftime_abi::attr::RawTracepoint = attr.get();
    let prog = object::prog(a.prog_fd)?;
    if prog.spec.prog_type != BPF_PROG_TYPE_RAW_TRACEPOINT {
        return Err(Errno::INVAL);
    }
    let name = user::read_str(a.name, 127)?;
    let event = perf::tracepoint::raw(&name).ok_or(Errno::NOENT)?;
    perf::context::fits(&event, &prog)?;
    let (tool, ours) = fds::event_pair()?;
    let spec = perf::tracepoint::spec(event, a.cookie, -1, object::next_id(), &prog);
    let specs = vec![spec.link];
    broker::attach(spec, &prog, Some(ours))?;
    let detail = LinkDetail::RawTracepoint { name, cookie: a.cookie };
    new_link(tool, BPF_LINK_TYPE_RAW_TRACEPOINT, prog, None, detail, specs)
}

/// After a close that may have been a detach.
pub fn settle() {
    broker::settle();
    crate::stats::settle();
}

/// Whether the event takes programs at all.
pub fn takes_program(kind: &PerfKind) -> Result<(), Errno> {
    match kind {
        PerfKind::BpfOutput => Err(ENOTSUPP),
        _ => Ok(()),
    }
}
