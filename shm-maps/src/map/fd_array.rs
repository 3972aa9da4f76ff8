//! PROG_ARRAY, CGROUP_ARRAY and the slots of ARRAY_OF_MAPS: each holds another object. The tool writes a descriptor; the
//! server translates it to the object's id, which is what shared memory holds. 0 is an empty slot. What the id of a
//! program or map stands for is each process's own table ([`Members`]).

use super::ops::{Ops, Shm, check_fd_update, index, next_index};
use super::{MapDef, Members};
use crate::region::Region;
use crate::uapi::BPF_MAP_TYPE_CGROUP_ARRAY;
use crate::{ENOTSUPP, PAGE};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire};
use rustix::io::Errno;

/// The slots.
pub struct FdArray {
    slots: *const AtomicU32,
    entries: u32,
    readable: bool,
    members: Members,
}

impl FdArray {
    fn slot(&self, index: u32) -> Option<&AtomicU32> {
        // SAFETY: index < entries, inside the mapping; atomic.
        (index < self.entries).then(|| unsafe { &*self.slots.add(index as usize) })
    }

    /// The id in a slot, None when it is empty or out of range.
    #[inline]
    pub fn object(&self, index: u32) -> Option<u32> {
        let id = self.slot(index)?.load(Acquire); // pairs with set_object
        (id != 0).then_some(id)
    }

    /// What the ids stand for in this process.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The object in a slot, null when it is empty, out of range or unknown here.
    #[inline]
    pub fn member(&self, index: u32) -> *const () {
        self.object(index).map_or(core::ptr::null(), |id| self.members.get(id))
    }

    /// BPF_MAP_UPDATE_ELEM after the server resolved the descriptor: returns the id that was there, or 0.
    ///
    /// # Errors
    /// EINVAL for flags other than BPF_ANY, E2BIG for a slot out of range.
    pub fn set_object(&self, index: u32, id: u32, flags: u64) -> Result<u32, Errno> {
        check_fd_update(index, self.entries, flags)?;
        let slot = self.slot(index).ok_or(Errno::TOOBIG)?;
        Ok(slot.swap(id, AcqRel)) // pairs with object: the record of `id` is complete
    }
}

impl Ops for FdArray {
    fn file_len(def: &MapDef, _cpus: u32) -> Option<usize> {
        (def.max_entries as usize).checked_mul(4)?.checked_next_multiple_of(PAGE)?.checked_add(PAGE)
    }

    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno> {
        let region = Region::map(shm.fd, shm.len)?;
        let slots = region.base().wrapping_add(PAGE).cast();
        let readable = shm.def.map_type != BPF_MAP_TYPE_CGROUP_ARRAY;
        Ok((region, FdArray { slots, entries: shm.def.max_entries, readable, members: Members::default() }))
    }

    fn sys_lookup(&self, key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        if !self.readable {
            return Err(ENOTSUPP);
        }
        let id = self.object(index(key)).ok_or(Errno::NOENT)?;
        value.copy_from_slice(&id.to_ne_bytes());
        Ok(())
    }

    fn sys_update(&self, key: &[u8], _value: &[u8], flags: u64) -> Result<(), Errno> {
        check_fd_update(index(key), self.entries, flags)?;
        Err(Errno::BADF) // the server intercepts descriptors; one that arrives here is none of ours
    }

    fn sys_delete(&self, key: &[u8]) -> Result<(), Errno> {
        let slot = self.slot(index(key)).ok_or(Errno::TOOBIG)?;
        if slot.swap(0, AcqRel) == 0 { Err(Errno::NOENT) } else { Ok(()) }
    }

    fn sys_next_key(&self, key: Option<&[u8]>, out: &mut [u8]) -> Result<(), Errno> {
        next_index(key, out, self.entries)
    }
}
