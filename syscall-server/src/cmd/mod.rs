//! bpf(2): one row per command.

pub mod batch;
pub mod btf;
pub mod held;
pub mod info;
pub mod link;
pub mod link_info;
pub mod log;
pub mod map;
mod pin;
pub mod prog;
mod storage;
mod verify;

use crate::{tool, user};
use bpftime_abi::attr::{ATTR_MAX, ProgLoad};
use bpftime_abi::cmd::{self, nr};
use bpftime_agent::memory::has_room;
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// The tool's `union bpf_attr`, copied and zero-extended, and where it came from for results.
pub struct Attr {
    bytes: [u8; ATTR_MAX],
    /// Address in the tool.
    pub addr: u64,
    /// Size the tool gave.
    pub size: u32,
}

impl Attr {
    /// The attribute as the struct of a command.
    pub fn get<T: FromBytes + Immutable + KnownLayout + Copy>(&self) -> T {
        // Every attribute struct is at most ATTR_MAX long (asserted where they are declared).
        T::read_from_prefix(&self.bytes).map(|(v, _)| v).unwrap_or_else(|_| unreachable!())
    }

    /// Stores a result field, if the tool's attribute is long enough to have it.
    pub fn put(&self, offset: usize, value: &[u8]) -> Result<(), Errno> {
        if offset + value.len() > self.size as usize {
            return Ok(());
        }
        user::write(self.addr + offset as u64, value)
    }
}

/// Errno 524, `ENOTSUPP`: the kernel lets it out of bpf(2).
pub const ENOTSUPP: Errno = Errno::from_raw_os_error(524);

type Command = fn(&Attr) -> Result<i64, Errno>;

/// What answers a command. Commands without a row are refused as a kernel without them would: EINVAL.
const COMMANDS: &[(u32, Command)] = &[
    (nr::BPF_MAP_CREATE, map::create),
    (nr::BPF_MAP_LOOKUP_ELEM, map::lookup),
    (nr::BPF_MAP_UPDATE_ELEM, map::update),
    (nr::BPF_MAP_DELETE_ELEM, map::delete),
    (nr::BPF_MAP_GET_NEXT_KEY, map::next_key),
    (nr::BPF_MAP_LOOKUP_AND_DELETE_ELEM, map::lookup_and_delete),
    (nr::BPF_MAP_LOOKUP_BATCH, batch::lookup),
    (nr::BPF_MAP_LOOKUP_AND_DELETE_BATCH, batch::lookup_and_delete),
    (nr::BPF_MAP_UPDATE_BATCH, batch::update),
    (nr::BPF_MAP_DELETE_BATCH, batch::delete),
    (nr::BPF_MAP_FREEZE, map::freeze),
    (nr::BPF_PROG_LOAD, prog::load),
    (nr::BPF_PROG_BIND_MAP, prog::bind_map),
    (nr::BPF_PROG_TEST_RUN, prog::test_run),
    (nr::BPF_LINK_CREATE, link::create),
    (nr::BPF_LINK_DETACH, link::detach),
    (nr::BPF_LINK_UPDATE, link::update),
    (nr::BPF_RAW_TRACEPOINT_OPEN, link::raw_tracepoint),
    (nr::BPF_OBJ_GET_INFO_BY_FD, info::by_fd),
    (nr::BPF_BTF_LOAD, btf::load),
    (nr::BPF_PROG_GET_NEXT_ID, info::next_prog),
    (nr::BPF_MAP_GET_NEXT_ID, info::next_map),
    (nr::BPF_LINK_GET_NEXT_ID, info::next_link),
    (nr::BPF_BTF_GET_NEXT_ID, info::next_btf),
    (nr::BPF_PROG_GET_FD_BY_ID, info::prog_fd),
    (nr::BPF_MAP_GET_FD_BY_ID, info::map_fd),
    (nr::BPF_LINK_GET_FD_BY_ID, info::link_fd),
    (nr::BPF_BTF_GET_FD_BY_ID, info::btf_fd),
    (nr::BPF_TASK_FD_QUERY, info::task_fd_query),
    (nr::BPF_OBJ_PIN, pin::pin),
    (nr::BPF_OBJ_GET, pin::get),
    (nr::BPF_ENABLE_STATS, crate::stats::enable),
];

/// The system call.
pub fn bpf(nr: u32, addr: u64, size: u32) -> Result<i64, Errno> {
    tool::become_tool();
    let attr = copy_attr(addr, size)?;
    let row = COMMANDS.iter().find(|(n, _)| *n == nr).ok_or(Errno::INVAL)?;
    check_tail(nr, &attr)?;
    if memory_for(nr, &attr).is_some_and(|len| !has_room(len)) {
        return Err(Errno::NOMEM);
    }
    let r = again_if_full(|| row.1(&attr));
    tracing::debug!(cmd = name(nr), size, result = ?r, "bpf");
    r
}

/// Memory that a command which makes something may need: running out half-way could not be told to the tool. Nothing for
/// commands that allocate little, and that a tool must be able to give when memory is short.
fn memory_for(nr: u32, attr: &Attr) -> Option<usize> {
    /// An object, its row, a thread's stack and what the message to the agents takes.
    const OBJECT: usize = 1 << 20;
    /// Verifier and compiler, for a short program; for each instruction; at most.
    const LOAD: usize = 8 << 20;
    const INSN: usize = 4 << 10;
    const LOAD_MAX: usize = 256 << 20;
    match nr {
        nr::BPF_PROG_LOAD => {
            let insns = attr.get::<ProgLoad>().insn_cnt as usize;
            Some(insns.saturating_mul(INSN).saturating_add(LOAD).min(LOAD_MAX))
        }
        nr::BPF_MAP_CREATE | nr::BPF_LINK_CREATE | nr::BPF_RAW_TRACEPOINT_OPEN | nr::BPF_BTF_LOAD => {
            Some(OBJECT)
        }
        _ => None,
    }
}

/// Tries once more when the descriptor table was full: what the tool has closed may still have descriptors of ours.
pub fn again_if_full(call: impl Fn() -> Result<i64, Errno>) -> Result<i64, Errno> {
    match call() {
        Err(Errno::MFILE) => {
            crate::object::reclaim();
            call()
        }
        r => r,
    }
}

fn name(nr: u32) -> &'static str {
    cmd::NAMES.iter().find(|(n, _)| *n == nr).map_or("?", |(_, s)| s)
}

/// Copies the attribute; bytes beyond what we know must be zero, as a newer tool's unused fields are.
fn copy_attr(addr: u64, size: u32) -> Result<Attr, Errno> {
    if size as usize > 4096 {
        return Err(Errno::TOOBIG);
    }
    let mut bytes = [0; ATTR_MAX];
    let all = user::read(addr, size as usize)?;
    let known = all.len().min(ATTR_MAX);
    if all[known..].iter().any(|b| *b != 0) {
        return Err(Errno::TOOBIG);
    }
    bytes[..known].copy_from_slice(&all[..known]);
    Ok(Attr { bytes, addr, size })
}

/// The kernel's CHECK_ATTR: bytes behind a command's last field must be zero.
fn check_tail(nr: u32, attr: &Attr) -> Result<(), Errno> {
    let end = cmd::last_field_end(nr).unwrap_or(ATTR_MAX);
    if attr.bytes[end..].iter().any(|b| *b != 0) { Err(Errno::INVAL) } else { Ok(()) }
}

/// Object names: letters, digits, `_` and `.`, terminated and zero padded (`bpf_obj_name_cpy`).
pub fn check_name(name: &[u8; 16]) -> Result<(), Errno> {
    let len = name.iter().position(|b| *b == 0).ok_or(Errno::INVAL)?;
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b == b'.';
    if name[..len].iter().all(allowed) && name[len..].iter().all(|b| *b == 0) {
        Ok(())
    } else {
        Err(Errno::INVAL)
    }
}
