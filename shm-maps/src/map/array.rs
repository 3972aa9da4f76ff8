//! ARRAY and PERCPU_ARRAY.
//!
//! ```text
//! ARRAY          [header page][element 0 | element 1 | ...]            stride round_up(value_size, 8)
//! PERCPU_ARRAY   [header page][CPU 0: element 0 | 1 | ... | padding][CPU 1: ...]
//! ```
//! Per-CPU data is grouped by CPU and padded, so that CPUs share no cache line.

use super::MapDef;
use super::ops::{Ops, Shm, check_array_update, index, next_index};
use crate::region::Region;
use crate::{LINES, PAGE, copy, neg, round8};
use core::ops::ControlFlow;
use rustix::io::Errno;

/// Elements of one CPU, or of all.
#[derive(Clone, Copy)]
struct Elements {
    base: *mut u8,
    entries: u32,
    value_size: usize,
}

impl Elements {
    #[inline]
    fn at(&self, index: u32) -> *mut u8 {
        debug_assert!(index < self.entries);
        self.base.wrapping_add(index as usize * round8(self.value_size))
    }

    /// # Safety
    /// `key` is valid for four bytes.
    #[inline]
    unsafe fn lookup(&self, key: *const u8) -> *mut u8 {
        // SAFETY: the caller's promise.
        let index = unsafe { key.cast::<u32>().read_unaligned() };
        if index < self.entries { self.at(index) } else { core::ptr::null_mut() }
    }

    /// # Safety
    /// `key` is valid for four bytes, `value` for value_size.
    #[inline]
    unsafe fn update(&self, key: *const u8, value: *const u8, flags: u64) -> i64 {
        // SAFETY: the caller's promise.
        let index = unsafe { key.cast::<u32>().read_unaligned() };
        match check_array_update(index, self.entries, flags) {
            // SAFETY: index < entries; elements are 8-aligned.
            Ok(()) => unsafe { copy::to_shared(self.at(index), value, self.value_size) },
            Err(e) => return neg(e),
        }
        0
    }

    /// # Safety
    /// `visit` keeps no pointer.
    unsafe fn for_each(&self, visit: &mut dyn FnMut(*const u8, *mut u8) -> ControlFlow<()>) -> i64 {
        for index in 0..self.entries {
            let key = index.to_ne_bytes();
            if visit(key.as_ptr(), self.at(index)).is_break() {
                return i64::from(index) + 1;
            }
        }
        i64::from(self.entries)
    }
}

fn data_len(max_entries: u32, value_size: u32) -> Option<usize> {
    (max_entries as usize).checked_mul(round8(value_size as usize))
}

/// BPF_MAP_TYPE_ARRAY.
pub struct Array(Elements);

impl Array {
    /// Address of element 0.
    pub fn base(&self) -> *mut u8 {
        self.0.base
    }
}

impl Ops for Array {
    fn file_len(def: &MapDef, _cpus: u32) -> Option<usize> {
        data_len(def.max_entries, def.value_size)?.checked_next_multiple_of(PAGE)?.checked_add(PAGE)
    }

    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno> {
        let region = Region::map(shm.fd, shm.len)?;
        let base = region.base().wrapping_add(PAGE);
        let array = Elements { base, entries: shm.def.max_entries, value_size: shm.def.value_size as usize };
        Ok((region, Array(array)))
    }

    #[inline]
    unsafe fn lookup(&self, key: *const u8, _cpu: u32) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.0.lookup(key) }
    }

    #[inline]
    unsafe fn update(&self, key: *const u8, value: *const u8, flags: u64, _cpu: u32) -> i64 {
        // SAFETY: the caller's promise.
        unsafe { self.0.update(key, value, flags) }
    }

    unsafe fn for_each(
        &self,
        _cpu: u32,
        visit: &mut dyn FnMut(*const u8, *mut u8) -> ControlFlow<()>,
    ) -> i64 {
        // SAFETY: the caller's promise.
        unsafe { self.0.for_each(visit) }
    }

    fn sys_lookup(&self, key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        let index = index(key);
        if index >= self.0.entries {
            return Err(Errno::NOENT);
        }
        // SAFETY: index < entries; value is value_size bytes.
        unsafe { copy::from_shared(value.as_mut_ptr(), self.0.at(index), value.len()) };
        Ok(())
    }

    fn sys_update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        let index = index(key);
        check_array_update(index, self.0.entries, flags)?;
        // SAFETY: index < entries; value is value_size bytes.
        unsafe { copy::to_shared(self.0.at(index), value.as_ptr(), value.len()) };
        Ok(())
    }

    fn sys_delete(&self, _key: &[u8]) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }

    fn sys_next_key(&self, key: Option<&[u8]>, out: &mut [u8]) -> Result<(), Errno> {
        next_index(key, out, self.0.entries)
    }
}

/// Bytes of one CPU's elements of a PERCPU_ARRAY, with their padding.
pub fn cpu_stride(max_entries: u32, value_size: u32) -> Option<usize> {
    data_len(max_entries, value_size)?.checked_next_multiple_of(LINES)
}

/// BPF_MAP_TYPE_PERCPU_ARRAY.
pub struct PercpuArray {
    first: Elements,
    cpu_stride: usize,
    cpus: u32,
}

impl PercpuArray {
    /// Address of element 0 of CPU 0.
    pub fn base(&self) -> *mut u8 {
        self.first.base
    }

    /// Bytes from the elements of one CPU to those of the next.
    pub fn cpu_stride(&self) -> usize {
        self.cpu_stride
    }

    #[inline]
    fn of_cpu(&self, cpu: u32) -> Option<Elements> {
        let base = self.first.base.wrapping_add(cpu as usize * self.cpu_stride);
        (cpu < self.cpus).then_some(Elements { base, ..self.first })
    }

    fn slots(&self, index: u32, value_len: usize) -> Result<impl Iterator<Item = (*mut u8, usize)>, Errno> {
        let stride = round8(self.first.value_size);
        debug_assert_eq!(value_len, stride * self.cpus as usize);
        let first = self.first.at(index);
        Ok((0..self.cpus as usize).map(move |cpu| (first.wrapping_add(cpu * self.cpu_stride), cpu * stride)))
    }
}

impl Ops for PercpuArray {
    fn file_len(def: &MapDef, cpus: u32) -> Option<usize> {
        let data = cpu_stride(def.max_entries, def.value_size)?.checked_mul(cpus as usize)?;
        data.checked_next_multiple_of(PAGE)?.checked_add(PAGE)
    }

    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno> {
        let region = Region::map(shm.fd, shm.len)?;
        let cpu_stride = cpu_stride(shm.def.max_entries, shm.def.value_size).ok_or(Errno::INVAL)?;
        let first = Elements {
            base: region.base().wrapping_add(PAGE),
            entries: shm.def.max_entries,
            value_size: shm.def.value_size as usize,
        };
        Ok((region, PercpuArray { first, cpu_stride, cpus: shm.cpus }))
    }

    #[inline]
    unsafe fn lookup(&self, key: *const u8, cpu: u32) -> *mut u8 {
        match self.of_cpu(cpu) {
            // SAFETY: the caller's promise.
            Some(elements) => unsafe { elements.lookup(key) },
            None => core::ptr::null_mut(),
        }
    }

    #[inline]
    unsafe fn update(&self, key: *const u8, value: *const u8, flags: u64, cpu: u32) -> i64 {
        match self.of_cpu(cpu) {
            // SAFETY: the caller's promise.
            Some(elements) => unsafe { elements.update(key, value, flags) },
            None => neg(Errno::INVAL),
        }
    }

    unsafe fn for_each(&self, cpu: u32, visit: &mut dyn FnMut(*const u8, *mut u8) -> ControlFlow<()>) -> i64 {
        match self.of_cpu(cpu) {
            // SAFETY: the caller's promise.
            Some(elements) => unsafe { elements.for_each(visit) },
            None => neg(Errno::INVAL),
        }
    }

    fn sys_lookup(&self, key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        let index = index(key);
        if index >= self.first.entries {
            return Err(Errno::NOENT);
        }
        let stride = round8(self.first.value_size);
        for (slot, at) in self.slots(index, value.len())? {
            // SAFETY: one element of one CPU; value has a stride for each.
            unsafe { copy::from_shared(value[at..at + stride].as_mut_ptr(), slot, stride) };
        }
        Ok(())
    }

    fn sys_update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        let index = index(key);
        check_array_update(index, self.first.entries, flags)?;
        let stride = round8(self.first.value_size);
        for (slot, at) in self.slots(index, value.len())? {
            // SAFETY: one element of one CPU; value has a stride for each.
            unsafe { copy::to_shared(slot, value[at..at + stride].as_ptr(), stride) };
        }
        Ok(())
    }

    fn sys_delete(&self, _key: &[u8]) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }

    fn sys_next_key(&self, key: Option<&[u8]>, out: &mut [u8]) -> Result<(), Errno> {
        next_index(key, out, self.first.entries)
    }
}
