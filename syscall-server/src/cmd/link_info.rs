//! `struct bpf_link_info` by type of link (`fill_link_info` of each in the kernel).
//!
//! Where the tool's arrays or strings are too short they are filled as far as they go, and the answer is ENOSPC.

use crate::object::{LinkDetail, LinkObject, PerfKind, PerfObject};
use crate::{perf, user};
use bpftime_abi::attr::LinkInfo;
use bpftime_abi::perf::PERF_TYPE_SOFTWARE;
use bpftime_abi::prog_type::{BPF_LINK_TYPE_RAW_TRACEPOINT, BPF_LINK_TYPE_UPROBE_MULTI};
use bpftime_shm::session::wire::{Point, Side};
use rustix::io::Errno;
use std::sync::PoisonError;

/// `enum bpf_perf_event_type`.
mod kind {
    pub const UPROBE: u64 = 1;
    pub const URETPROBE: u64 = 2;
    pub const KPROBE: u64 = 3;
    pub const KRETPROBE: u64 = 4;
    pub const TRACEPOINT: u64 = 5;
    pub const EVENT: u64 = 6;
}

/// The name of a type of link in /proc/PID/fdinfo.
pub fn type_name(link_type: u32) -> &'static str {
    match link_type {
        BPF_LINK_TYPE_RAW_TRACEPOINT => "raw_tracepoint",
        BPF_LINK_TYPE_UPROBE_MULTI => "uprobe_multi",
        _ => "perf",
    }
}

/// What is known of `link`; `asked` says how much room the tool has.
pub fn of(link: &LinkObject, asked: &LinkInfo) -> Result<LinkInfo, Errno> {
    let data = match &link.detail {
        LinkDetail::UprobeMulti { path, points, given, flags, pid } => {
            let lengths = multi(asked, path, points, *given)?;
            let [path, offsets, refs, cookies, ..] = asked.data;
            [path, offsets, refs, cookies, lengths, *flags as u64 | (*pid as u64) << 32]
        }
        LinkDetail::RawTracepoint { name, cookie } => {
            let [buf, len, ..] = asked.data;
            [buf, string(buf, len as u32, name)?.into(), *cookie, 0, 0, 0]
        }
        LinkDetail::Elsewhere { words, text } => elsewhere(link.link_type, *words, text, asked)?,
        LinkDetail::Event => link.event.as_deref().map_or(Ok([0; 6]), |e| event(e, asked))?,
    };
    Ok(LinkInfo { link_type: link.link_type, id: link.id, prog_id: link.prog.spec.prog, pad: 0, data })
}

/// A string into the tool's buffer; gives its length with the end. Without a buffer only that.
fn string(buf: u64, room: u32, text: &[u8]) -> Result<u32, Errno> {
    if (buf == 0) != (room == 0) {
        return Err(Errno::INVAL);
    }
    let len = text.len() as u32 + 1;
    if buf == 0 {
        return Ok(len);
    }
    let fits = room.min(len) as usize - 1;
    user::write(buf, &text[..fits])?;
    user::write(buf + fits as u64, &[0])?;
    if room < len { Err(Errno::NOSPC) } else { Ok(len) }
}

/// A link of another session: its words, with the text where the tool has room for it.
fn elsewhere(link_type: u32, words: [u64; 6], text: &[u8], asked: &LinkInfo) -> Result<[u64; 6], Errno> {
    let [first, second, ..] = asked.data;
    let mut out = words;
    match link_type {
        BPF_LINK_TYPE_RAW_TRACEPOINT => {
            out[1] = string(first, second as u32, text)?.into();
            out[0] = first;
        }
        _ if !text.is_empty() => {
            let len = string(second, asked.data[2] as u32, text)?;
            (out[1], out[2]) = (second, len as u64 | words[2] >> 32 << 32);
        }
        _ => {}
    }
    Ok(out)
}

fn event(e: &PerfObject, asked: &LinkInfo) -> Result<[u64; 6], Errno> {
    let cookie = e.state.lock().unwrap_or_else(PoisonError::into_inner).cookie;
    let (buf, room) = (asked.data[1], asked.data[2] as u32);
    Ok(match &e.kind {
        PerfKind::Uprobe { path, offset, ret, ref_ctr_offset, .. } => {
            let kind = if *ret { kind::URETPROBE } else { kind::UPROBE };
            let len = string(buf, room, path)? as u64;
            [kind, buf, len | offset << 32, cookie, *ref_ctr_offset, 0]
        }
        PerfKind::Clock { .. } => [kind::EVENT, 0, PERF_TYPE_SOFTWARE.into(), cookie, 0, 0],
        PerfKind::Counter { counter, .. } => {
            [kind::EVENT, counter.config, counter.type_.into(), cookie, 0, 0]
        }
        PerfKind::Tracepoint(event) => {
            let len = string(buf, room, perf::tracepoint::name_of(event).as_bytes())? as u64;
            [kind::TRACEPOINT, buf, len, cookie, 0, 0]
        }
        PerfKind::Kprobe(call) => {
            let kind = if call.side == Side::Exit { kind::KRETPROBE } else { kind::KPROBE };
            let (name, address) = perf::kprobe::function_of(call);
            let len = string(buf, room, name.as_bytes())? as u64;
            [kind, buf, len, address, 0, cookie]
        }
        PerfKind::BpfOutput => [0; 6],
    })
}

/// Fills the arrays of a uprobe_multi link; gives path_size and count as they stand in the struct.
fn multi(
    asked: &LinkInfo,
    path: &[u8],
    points: &[Point],
    (refs, cookies): (bool, bool),
) -> Result<u64, Errno> {
    let [path_buf, offset_buf, ref_buf, cookie_buf, lengths, _] = asked.data;
    let (room, count) = (lengths as u32, (lengths >> 32) as u32);
    let arrays = [offset_buf, ref_buf, cookie_buf];
    if (path_buf == 0) != (room == 0) || (count == 0 && arrays.iter().any(|a| *a != 0)) {
        return Err(Errno::INVAL);
    }
    let len = path.len() as u32 + 1;
    if path_buf != 0 {
        if room < len {
            return Err(Errno::NAMETOOLONG);
        }
        user::write(path_buf, path)?;
        user::write(path_buf + path.len() as u64, &[0])?;
    }
    let fits = &points[..points.len().min(count as usize)];
    let given = [true, refs, cookies];
    let value = |p: &Point, k: usize| [p.offset, p.ref_ctr_offset, p.cookie][k];
    for (k, buf) in arrays.into_iter().enumerate().filter(|(_, buf)| *buf != 0) {
        let of = |p: &Point| if given[k] { value(p, k) } else { 0 };
        let words: Vec<u8> = fits.iter().flat_map(|p| of(p).to_ne_bytes()).collect();
        user::write(buf, &words)?;
    }
    let asks = arrays[0] != 0;
    if asks && fits.len() < points.len() {
        return Err(Errno::NOSPC);
    }
    Ok(len as u64 | (points.len() as u64) << 32)
}
