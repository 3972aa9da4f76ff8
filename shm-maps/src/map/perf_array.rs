//! PERF_EVENT_ARRAY: a process-local table of perf rings. Which ring is in which slot is the session's
//! record; shared memory holds only the attributes.

use super::MapDef;
use super::ops::{Ops, Shm, check_fd_update, index, next_index};
use crate::region::Region;
use crate::ring::PerfRing;
use crate::{ENOTSUPP, PAGE};
use core::ptr;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::{AcqRel, Acquire};
use rustix::io::Errno;

/// The slots.
pub struct PerfEventArray {
    slots: *const AtomicPtr<PerfRing>,
    entries: u32,
    // Owns the memory of `slots`: zero pages, touched slot by slot (max_entries may be huge).
    _table: Region,
}

impl PerfEventArray {
    fn slot(&self, index: u32) -> Result<&AtomicPtr<PerfRing>, Errno> {
        if index >= self.entries {
            return Err(Errno::TOOBIG);
        }
        // SAFETY: index < entries, inside the table; atomic.
        Ok(unsafe { &*self.slots.add(index as usize) })
    }

    /// The ring in a slot, with bpf_perf_event_output's errors: E2BIG out of range, ENOENT when empty.
    ///
    /// # Safety
    /// The reference ends before the caller of [`PerfEventArray::set_slot`] frees a ring it got back.
    #[inline]
    pub unsafe fn ring(&self, index: u32) -> Result<&PerfRing, Errno> {
        let ring = self.slot(index)?.load(Acquire); // pairs with set_slot
        // SAFETY: a pointer in the table came from Box::into_raw and is freed only after the deferral above.
        unsafe { ring.as_ref() }.ok_or(Errno::NOENT)
    }

    /// Puts a ring into a slot or empties it. The former ring comes back: programs may still be
    /// writing to it, so free it when none can be.
    ///
    /// # Errors
    /// E2BIG out of range.
    pub fn set_slot(&self, index: u32, ring: Option<PerfRing>) -> Result<Option<Box<PerfRing>>, Errno> {
        let slot = self.slot(index)?;
        let new = ring.map_or(ptr::null_mut(), |ring| Box::into_raw(Box::new(ring)));
        let old = slot.swap(new, AcqRel); // publishes the ring's fields to `ring`
        // SAFETY: from Box::into_raw above; the swap took it out of the table exactly once.
        Ok((!old.is_null()).then(|| unsafe { Box::from_raw(old) }))
    }

    /// Slots that hold a ring.
    pub fn occupied(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.entries).filter(|&i| self.slot(i).is_ok_and(|s| !s.load(Acquire).is_null()))
    }

    /// The checks of BPF_MAP_UPDATE_ELEM before the descriptor is looked at: returns the slot.
    ///
    /// # Errors
    /// EINVAL for flags other than BPF_ANY, E2BIG out of range.
    pub fn check_update(&self, key: &[u8], flags: u64) -> Result<u32, Errno> {
        check_fd_update(index(key), self.entries, flags)?;
        Ok(index(key))
    }
}

impl Drop for PerfEventArray {
    fn drop(&mut self) {
        // Only small arrays are worth the walk; a huge one is a CPU-indexed array declared carelessly.
        for index in 0..self.entries.min(super::MAX_CPUS) {
            let _ = self.set_slot(index, None);
        }
    }
}

impl Ops for PerfEventArray {
    fn file_len(def: &MapDef, _cpus: u32) -> Option<usize> {
        // The kernel allocates a pointer per entry and fails with ENOMEM where that is too much.
        let table = (def.max_entries as usize).checked_mul(8)?;
        Some(PAGE + table.checked_next_multiple_of(PAGE)?)
    }

    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno> {
        let region = Region::map(shm.fd, PAGE)?;
        let table = Region::anonymous(shm.def.max_entries as usize * 8)?;
        let slots = table.base().cast();
        Ok((region, PerfEventArray { slots, entries: shm.def.max_entries, _table: table }))
    }

    fn sys_lookup(&self, _key: &[u8], _value: &mut [u8]) -> Result<(), Errno> {
        Err(ENOTSUPP)
    }

    fn sys_update(&self, key: &[u8], _value: &[u8], flags: u64) -> Result<(), Errno> {
        self.check_update(key, flags)?;
        Err(Errno::BADF) // the server intercepts perf descriptors; one that arrives here is none
    }

    fn sys_delete(&self, key: &[u8]) -> Result<(), Errno> {
        match self.set_slot(index(key), None)? {
            Some(ring) => {
                // The tool's process runs probes too; leak the mapping rather than pull it from under one.
                core::mem::forget(ring);
                Ok(())
            }
            None => Err(Errno::NOENT),
        }
    }

    fn sys_next_key(&self, key: Option<&[u8]>, out: &mut [u8]) -> Result<(), Errno> {
        next_index(key, out, self.entries)
    }
}
