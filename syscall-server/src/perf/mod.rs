//! perf_event_open(2) and the ioctls of perf events.

mod clock;
pub mod context;
mod counter;
pub mod function;
pub mod kprobe;
pub mod mmap;
mod open;
mod query;
mod timer;
pub mod tracepoint;
pub mod unfit;

pub use open::open;

use crate::cmd::link::takes_program;
use crate::object::{self, Object, PerfKind, PerfObject, PerfState, ProgObject};
use crate::{broker, user};
use bpftime_abi::perf;
use bpftime_abi::prog_type::{BPF_PROG_TYPE_KPROBE, BPF_PROG_TYPE_PERF_EVENT, BPF_PROG_TYPE_TRACEPOINT};
use bpftime_shm::session::wire::{Counter, CounterEvent, LinkKind, LinkSpec, Point, SampleEvent, Side};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::sync::{Arc, PoisonError};

/// ioctl(2) on one of our perf events; None for any other file.
pub fn ioctl(fd: i32, request: u64, arg: usize) -> Option<Result<i64, Errno>> {
    match object::find(fd) {
        Ok(Object::Perf(event)) => Some(event_ioctl(&event, request, arg)),
        _ => None,
    }
}

fn event_ioctl(event: &Arc<PerfObject>, request: u64, arg: usize) -> Result<i64, Errno> {
    let r = match request {
        perf::IOC_ENABLE => set_enabled(event, true),
        perf::IOC_DISABLE => set_enabled(event, false),
        perf::IOC_SET_BPF => {
            let prog = object::prog(arg as u32)?;
            set_program(event, &prog, 0, None)
        }
        perf::IOC_ID => user::write_value(arg as u64, &event.id),
        perf::IOC_PERIOD => clock::set_period(event, user::read_value(arg as u64)?),
        perf::IOC_REFRESH => clock::refresh(event),
        perf::IOC_RESET | perf::IOC_SET_OUTPUT => Ok(()),
        perf::IOC_QUERY_BPF => query::query(event, arg as u64),
        // Watchpoints can be moved in the kernel, no other event; here they stay.
        perf::IOC_MODIFY_ATTRIBUTES => Err(Errno::INVAL),
        _ => Err(Errno::NOTTY),
    };
    tracing::debug!(event = event.id, request, result = ?r, "ioctl");
    r.map(|()| 0)
}

/// Gives the event its program. `watch` is our end of what must stay open for it to run, the event itself if none.
pub fn set_program(
    event: &Arc<PerfObject>,
    prog: &Arc<ProgObject>,
    cookie: u64,
    watch: Option<OwnedFd>,
) -> Result<(), Errno> {
    takes_program(&event.kind)?;
    let wanted = match event.kind {
        PerfKind::Uprobe { .. } | PerfKind::Kprobe(_) => BPF_PROG_TYPE_KPROBE,
        PerfKind::Tracepoint(_) => BPF_PROG_TYPE_TRACEPOINT,
        _ => BPF_PROG_TYPE_PERF_EVENT,
    };
    if prog.spec.prog_type != wanted {
        return Err(Errno::INVAL);
    }
    if let PerfKind::Tracepoint(call) = &event.kind {
        context::fits(call, prog)?;
    }
    if prog.overrides && !overridable(&event.kind) {
        return Err(Errno::INVAL);
    }
    let mut state = event.state.lock().unwrap_or_else(PoisonError::into_inner);
    if state.prog.is_some() {
        return Err(Errno::EXIST);
    }
    state.prog = Some(prog.clone());
    state.cookie = cookie;
    drop(state);
    if watch.is_some() {
        *event.liveness.lock().unwrap_or_else(PoisonError::into_inner) = watch;
    }
    apply(event)
}

/// Whether a program may give the result in place of what it is attached to: a function, by its first instruction.
fn overridable(kind: &PerfKind) -> bool {
    matches!(kind, PerfKind::Uprobe { path, offset, ret: false, .. } if function::starts_at(path, *offset))
}

/// What BPF_TASK_FD_QUERY and a link's description say of an event.
#[derive(Default)]
pub struct Described {
    /// `enum bpf_task_fd_type`.
    pub fd_type: u32,
    /// Offset in the file or function.
    pub offset: u64,
    /// Address of the function.
    pub addr: u64,
    /// File, function or tracepoint.
    pub name: Vec<u8>,
}

/// What `kind` is called.
pub fn described(kind: &PerfKind) -> Described {
    // BPF_FD_TYPE_*.
    const TRACEPOINT: u32 = 1;
    const KPROBE: u32 = 2;
    const KRETPROBE: u32 = 3;
    const UPROBE: u32 = 4;
    const URETPROBE: u32 = 5;
    match kind {
        PerfKind::Uprobe { path, offset, ret, .. } => {
            let fd_type = if *ret { URETPROBE } else { UPROBE };
            Described { fd_type, offset: *offset, addr: 0, name: path.clone() }
        }
        PerfKind::Kprobe(call) => {
            let fd_type = if call.side == Side::Exit { KRETPROBE } else { KPROBE };
            let (name, addr) = kprobe::function_of(call);
            Described { fd_type, offset: 0, addr, name: name.into_bytes() }
        }
        PerfKind::Tracepoint(event) => {
            let name = tracepoint::name_of(event).into_bytes();
            Described { fd_type: TRACEPOINT, name, ..Described::default() }
        }
        PerfKind::BpfOutput | PerfKind::Clock { .. } | PerfKind::Counter { .. } => Described::default(),
    }
}

fn set_enabled(event: &Arc<PerfObject>, on: bool) -> Result<(), Errno> {
    event.state.lock().unwrap_or_else(PoisonError::into_inner).enabled = on;
    apply(event)
}

/// Makes what runs be what the event's state says.
fn apply(event: &Arc<PerfObject>) -> Result<(), Errno> {
    match &event.kind {
        PerfKind::Uprobe { .. } | PerfKind::Tracepoint(_) | PerfKind::Kprobe(_) => apply_probe(event),
        PerfKind::Clock { .. } => clock::apply(event),
        PerfKind::Counter { .. } => counter::apply(event),
        PerfKind::BpfOutput => Ok(()),
    }
}

fn apply_probe(event: &Arc<PerfObject>) -> Result<(), Errno> {
    let _one = event.changing.lock().unwrap_or_else(PoisonError::into_inner);
    let state = || event.state.lock().unwrap_or_else(PoisonError::into_inner);
    let mut now = state();
    match (now.enabled, now.prog.clone(), now.attached) {
        (true, Some(prog), None) => {
            // The broker keeps what ends the link, also while it is switched off.
            let link = *now.link.get_or_insert_with(object::next_id);
            let spec = spec_of(event, link, &prog, &now)?;
            drop(now);
            let mut watch = event.liveness.lock().unwrap_or_else(PoisonError::into_inner);
            let copy = watch.as_ref().map(crate::fds::hidden).transpose()?;
            broker::attach(spec, &prog, copy)?;
            *watch = None;
            state().attached = Some(link);
        }
        (false, _, Some(link)) => {
            drop(now);
            broker::detach(link)?;
            state().attached = None;
        }
        _ => {}
    }
    Ok(())
}

fn spec_of(event: &PerfObject, link: u32, prog: &ProgObject, state: &PerfState) -> Result<LinkSpec, Errno> {
    let (cookie, pid) = (state.cookie, event.pid);
    if let PerfKind::Tracepoint(call) = event.kind {
        return Ok(tracepoint::spec_of(call, event, link, prog, cookie));
    }
    if let PerfKind::Kprobe(call) = event.kind {
        return Ok(kprobe::spec_of(call, event, link, prog, cookie));
    }
    if let PerfKind::Clock { cpu, .. } = event.kind {
        let sample = SampleEvent { period: state.period, cpu, cookie };
        return Ok(clock::spec(sample, event.pid, link, prog));
    }
    if let PerfKind::Counter { counter, cpu } = event.kind {
        let event = CounterEvent { counter: Counter { period: state.period, ..counter }, cpu, cookie };
        return Ok(LinkSpec { kind: LinkKind::Counter(event), ..clock::of_no_file(link, prog, pid) });
    }
    let PerfKind::Uprobe { path, file, offset, ret, ref_ctr_offset } = &event.kind else {
        return Err(Errno::INVAL);
    };
    Ok(LinkSpec {
        kind: LinkKind::Uprobe,
        link,
        prog: prog.spec.prog,
        ret: *ret,
        pid: event.pid,
        dev: file.0,
        ino: file.1,
        path: path.clone(),
        points: vec![Point { offset: *offset, ref_ctr_offset: *ref_ctr_offset, cookie }],
    })
}
