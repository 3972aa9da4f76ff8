//! PERF_EVENT_IOC_QUERY_BPF: which programs are attached to the tracepoint of an event.

use crate::object::{self, Object, PerfKind, PerfObject};
use crate::user;
use rustix::io::Errno;
use std::mem::offset_of;
use std::sync::PoisonError;

/// `struct perf_event_query_bpf`, before the ids.
#[repr(C)]
struct Query {
    ids_len: u32,
    prog_cnt: u32,
    ids: [u32; 0],
}

/// `BPF_TRACE_MAX_PROGS`.
const MOST: u32 = 64;

/// Writes how many there are, and as many ids as the tool has room for; `ENOSPC` where that is not all.
pub fn query(event: &PerfObject, arg: u64) -> Result<(), Errno> {
    let PerfKind::Tracepoint(point) = &event.kind else { return Err(Errno::INVAL) };
    let room: u32 = user::read_value(arg)?;
    if room > MOST {
        return Err(Errno::TOOBIG);
    }
    let of_point = |o| match o {
        Object::Perf(p) if matches!(&p.kind, PerfKind::Tracepoint(other) if other == point) => Some(p),
        _ => None,
    };
    let events = object::all().into_iter().filter_map(|(_, o)| of_point(o));
    let id = |p: std::sync::Arc<PerfObject>| {
        p.state.lock().unwrap_or_else(PoisonError::into_inner).prog.as_ref().map(|prog| prog.spec.prog)
    };
    let ids: Vec<u32> = events.filter_map(id).collect();
    user::write_value(arg + offset_of!(Query, prog_cnt) as u64, &(ids.len() as u32))?;
    let fits = ids.len().min(room as usize);
    let bytes: Vec<u8> = ids[..fits].iter().flat_map(|id| id.to_ne_bytes()).collect();
    user::write(arg + offset_of!(Query, ids) as u64, &bytes)?;
    if room != 0 && fits < ids.len() { Err(Errno::NOSPC) } else { Ok(()) }
}
