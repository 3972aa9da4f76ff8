//! Maps that hold other objects: PROG_ARRAY and map-in-map.
//!
//! Shared memory has the ids, every process a table of what they mean. A new member is in all tables before its id is
//! in shared memory, and leaves them after: a program finds the old one, the new one, or nothing, as in the kernel.

use crate::broker;
use crate::object::{self, MapObject, Member};
use bpftime_abi::map_type::{BPF_MAP_TYPE_HASH_OF_MAPS, BPF_MAP_TYPE_PROG_ARRAY};
use bpftime_abi::prog_type;
use bpftime_shm::map::InnerDef;
use rustix::io::Errno;
use std::sync::{Arc, Mutex, PoisonError};

/// One change at a time: the broker is told outside of the locks of the maps, which it takes itself.
static CHANGING: Mutex<()> = Mutex::new(());

/// Whether descriptors of programs or maps are stored in this map.
pub fn is_container(map: &MapObject) -> bool {
    map.handle.map.members().is_some()
}

/// The template that a map makes for maps inside of another.
///
/// # Errors
/// As the kernel's: EBADF, EINVAL for no map or another map-in-map, ENOTSUPP for types that may not be inside.
pub fn template(fd: u32) -> Result<InnerDef, Errno> {
    let inner = object::map(fd)?;
    if inner.def().inner.map_type != 0 {
        return Err(Errno::INVAL);
    }
    match inner.def().map_type {
        BPF_MAP_TYPE_PROG_ARRAY => Err(super::ENOTSUPP),
        _ => Ok(InnerDef::of(inner.def())),
    }
}

/// BPF_MAP_UPDATE_ELEM with a descriptor.
pub fn store(map: &MapObject, key: &[u8], fd: u32, flags: u64) -> Result<(), Errno> {
    if map.def().map_type != BPF_MAP_TYPE_HASH_OF_MAPS {
        map.handle.map.check_slot_update(key, flags)?;
    }
    let member = resolve(map, fd)?;
    let _one = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    if map.held().hold(&member) {
        know(map, &member);
        broker::member(map, &member, true)?;
    }
    let stored = map.handle.map.set_object(key, member.id(), flags);
    let unused = match stored {
        Ok(()) => map.held().replace(key, Some(member.id())),
        Err(_) => Some(member.id()),
    };
    unused.map_or(Ok(()), |id| let_go(map, id))?;
    stored
}

/// Takes in what another session says is stored in a map, which is in shared memory already.
pub fn adopt(map: &MapObject, key: &[u8], member: &Member) {
    let _one = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    if map.held().hold(member) {
        know(map, member);
    }
    map.held().replace(key, Some(member.id()));
}

/// BPF_MAP_DELETE_ELEM.
pub fn remove(map: &MapObject, key: &[u8]) -> Result<(), Errno> {
    let _one = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    map.handle.map.sys_delete(key)?;
    let old = map.held().replace(key, None);
    old.map_or(Ok(()), |id| let_go(map, id))
}

/// The object behind a descriptor, if it may be in this map.
fn resolve(map: &MapObject, fd: u32) -> Result<Member, Errno> {
    let template = map.def().inner;
    if template.map_type != 0 {
        let inner = object::map(fd)?;
        return if template.admits(inner.def()) { Ok(Member::Map(inner)) } else { Err(Errno::INVAL) };
    }
    let prog = object::prog(fd)?;
    if map.takes_programs_of(prog.spec.prog_type) { Ok(Member::Prog(prog)) } else { Err(Errno::INVAL) }
}

/// Enters the member into this process's own table.
fn know(map: &MapObject, member: &Member) {
    let Some(members) = map.handle.map.members() else { return };
    match member {
        Member::Map(inner) => members.set(inner.id, Arc::as_ptr(&inner.handle).cast()),
        // Only programs of these types run in the tool itself.
        Member::Prog(prog) if prog_type::runs_in_tool(prog.spec.prog_type) => {
            if let Some(linked) = prog.link_here() {
                members.set(prog.spec.prog, Arc::as_ptr(&linked).cast());
            }
        }
        Member::Prog(_) => {}
    }
}

/// One use less. The last one takes the member out of all tables; a program that runs in the tool right now may be
/// using it, so that it lives until those are done.
fn let_go(map: &MapObject, id: u32) -> Result<(), Errno> {
    let Some(member) = map.held().release(id) else { return Ok(()) };
    if let Some(members) = map.handle.map.members() {
        members.set(id, std::ptr::null());
    }
    broker::member(map, &member, false)?;
    super::prog::wait_for_runs();
    Ok(())
}
