//! ARRAY_OF_MAPS and HASH_OF_MAPS: shared memory holds the ids of the inner maps, each process the maps themselves
//! ([`Members`]). A program's lookup gives the process's own handle of the inner map.

use super::fd_array::FdArray;
use super::hash::{Hash, Source};
use super::ops::{Ops, Shm};
use super::{MapDef, Members};
use crate::region::Region;
use rustix::io::Errno;

/// BPF_MAP_TYPE_ARRAY_OF_MAPS.
pub struct ArrayOfMaps(FdArray);

impl ArrayOfMaps {
    pub fn members(&self) -> &Members {
        self.0.members()
    }

    pub fn slots(&self) -> &FdArray {
        &self.0
    }
}

impl Ops for ArrayOfMaps {
    fn file_len(def: &MapDef, cpus: u32) -> Option<usize> {
        FdArray::file_len(def, cpus)
    }

    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno> {
        FdArray::open(shm).map(|(region, array)| (region, ArrayOfMaps(array)))
    }

    #[inline]
    unsafe fn lookup(&self, key: *const u8, _cpu: u32) -> *mut u8 {
        // SAFETY: the caller's promise: four bytes.
        let index = unsafe { key.cast::<u32>().read_unaligned() };
        self.0.member(index).cast_mut().cast()
    }

    fn sys_lookup(&self, key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        self.0.sys_lookup(key, value)
    }

    fn sys_update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        self.0.sys_update(key, value, flags)
    }

    fn sys_delete(&self, key: &[u8]) -> Result<(), Errno> {
        self.0.sys_delete(key)
    }

    fn sys_next_key(&self, key: Option<&[u8]>, out: &mut [u8]) -> Result<(), Errno> {
        self.0.sys_next_key(key, out)
    }
}

/// BPF_MAP_TYPE_HASH_OF_MAPS.
pub struct HashOfMaps {
    hash: Hash,
    members: Members,
}

impl HashOfMaps {
    pub fn hash(&self) -> &Hash {
        &self.hash
    }

    pub fn members(&self) -> &Members {
        &self.members
    }

    /// BPF_MAP_UPDATE_ELEM after the server resolved the descriptor.
    pub fn set_object(&self, key: &[u8], id: u32, flags: u64) -> Result<(), Errno> {
        let id = id.to_ne_bytes();
        self.hash.write(self.hash.key(key.as_ptr()), Source::All(id.as_ptr()), flags)
    }
}

impl Ops for HashOfMaps {
    fn file_len(def: &MapDef, cpus: u32) -> Option<usize> {
        Hash::file_len(def, cpus)
    }

    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno> {
        let (region, hash) = Hash::open(shm)?;
        Ok((region, HashOfMaps { hash, members: Members::default() }))
    }

    fn set_owner(&self, owner: u16) {
        self.hash.set_owner(owner);
    }

    fn recover(&self, owner: u16) -> usize {
        self.hash.recover(owner)
    }

    unsafe fn lookup(&self, key: *const u8, _cpu: u32) -> *mut u8 {
        let object = self.hash.copy_word(key).map_or(core::ptr::null(), |id| self.members.get(id));
        object.cast_mut().cast()
    }

    fn sys_lookup(&self, key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        self.hash.sys_lookup(key, value)
    }

    fn sys_update(&self, _key: &[u8], _value: &[u8], flags: u64) -> Result<(), Errno> {
        // The server intercepts descriptors; one that arrives here is none of ours.
        Err(if flags > crate::uapi::BPF_EXIST { Errno::INVAL } else { Errno::BADF })
    }

    fn sys_delete(&self, key: &[u8]) -> Result<(), Errno> {
        self.hash.sys_delete(key)
    }

    fn sys_next_key(&self, key: Option<&[u8]>, out: &mut [u8]) -> Result<(), Errno> {
        self.hash.sys_next_key(key, out)
    }
}
