//! What a map type implements. The defaults are the kernel's answers for an absent operation.

use super::MapDef;
use crate::region::Region;
use crate::ring::LockId;
use crate::uapi::*;
use crate::{ENOTSUPP, neg};
use core::ops::ControlFlow;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// A validated memfd, to be mapped.
pub struct Shm<'a> {
    pub fd: BorrowedFd<'a>,
    /// Equals `file_len` of `def`.
    pub len: usize,
    pub def: &'a MapDef,
    pub cpus: u32,
    pub seed: u64,
}

/// One map type. Keys and values passed to `sys_*` have the lengths of the syscall ABI already.
pub trait Ops: Sized {
    /// Length of the memfd, header page included; `None` on overflow.
    fn file_len(def: &MapDef, cpus: u32) -> Option<usize>;
    /// Maps the memfd.
    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno>;

    fn set_owner(&self, _owner: u16) {}
    fn recover(&self, _owner: u16) -> usize {
        0
    }

    /// # Safety
    /// See [`super::Map::lookup`].
    unsafe fn lookup(&self, _key: *const u8, _cpu: u32) -> *mut u8 {
        core::ptr::null_mut()
    }
    /// # Safety
    /// See [`super::Map::update`].
    unsafe fn update(&self, _key: *const u8, _value: *const u8, _flags: u64, _cpu: u32) -> i64 {
        neg(Errno::INVAL)
    }
    /// # Safety
    /// See [`super::Map::delete`].
    unsafe fn delete(&self, _key: *const u8) -> i64 {
        neg(Errno::INVAL)
    }
    /// # Safety
    /// See [`super::Map::for_each`].
    unsafe fn for_each(
        &self,
        _cpu: u32,
        _visit: &mut dyn FnMut(*const u8, *mut u8) -> ControlFlow<()>,
    ) -> i64 {
        neg(Errno::INVAL)
    }

    /// # Safety
    /// See [`super::Map::push`].
    unsafe fn push(&self, _value: *const u8, _flags: u64, _me: LockId) -> i64 {
        neg(Errno::OPNOTSUPP)
    }
    /// # Safety
    /// See [`super::Map::pop`].
    unsafe fn pop(&self, _value: *mut u8, _me: LockId) -> i64 {
        neg(Errno::OPNOTSUPP)
    }
    /// # Safety
    /// See [`super::Map::peek`].
    unsafe fn peek(&self, _value: *mut u8, _me: LockId) -> i64 {
        neg(Errno::OPNOTSUPP)
    }

    fn sys_lookup(&self, key: &[u8], value: &mut [u8]) -> Result<(), Errno>;
    fn sys_update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno>;
    fn sys_delete(&self, key: &[u8]) -> Result<(), Errno>;
    fn sys_next_key(&self, key: Option<&[u8]>, out: &mut [u8]) -> Result<(), Errno>;
    fn sys_lookup_and_delete(&self, _key: &[u8], _value: &mut [u8]) -> Result<(), Errno> {
        Err(ENOTSUPP)
    }
}

/// The array types' get_next_key: 0 for no or an unknown key, ENOENT after the last.
pub fn next_index(key: Option<&[u8]>, out: &mut [u8], entries: u32) -> Result<(), Errno> {
    let next = match key.map(index) {
        Some(last) if last == entries - 1 => return Err(Errno::NOENT),
        Some(at) if at < entries => at + 1,
        _ => 0,
    };
    out.copy_from_slice(&next.to_ne_bytes());
    Ok(())
}

/// A four-byte key.
pub fn index(key: &[u8]) -> u32 {
    key.first_chunk().map_or(u32::MAX, |bytes| u32::from_ne_bytes(*bytes))
}

/// array_map_update_elem's flag rules.
#[inline]
pub fn check_array_update(index: u32, entries: u32, flags: u64) -> Result<(), Errno> {
    match flags {
        f if f > BPF_EXIST => Err(Errno::INVAL),
        _ if index >= entries => Err(Errno::TOOBIG),
        BPF_NOEXIST => Err(Errno::EXIST),
        _ => Ok(()),
    }
}

/// bpf_fd_array_map_update_elem's checks before it looks at the descriptor.
pub fn check_fd_update(index: u32, entries: u32, flags: u64) -> Result<(), Errno> {
    match flags {
        BPF_ANY if index < entries => Ok(()),
        BPF_ANY => Err(Errno::TOOBIG),
        _ => Err(Errno::INVAL),
    }
}
