//! RINGBUF and USER_RINGBUF as maps: no keys, no values, a ring.

use super::MapDef;
use super::ops::{Ops, Shm};
use crate::ENOTSUPP;
use crate::region::Region;
use crate::ring::{RingBuf, UserRing};
use rustix::io::Errno;

/// The map around a ring.
pub struct RingMap<R>(R);

/// RINGBUF.
pub type RingBufMap = RingMap<RingBuf>;
/// USER_RINGBUF.
pub type UserRingMap = RingMap<UserRing>;

impl<R> RingMap<R> {
    pub fn ring(&self) -> &R {
        &self.0
    }
}

/// A ring that lives in the doubled mapping of a map's file.
pub trait Ring: Sized {
    /// # Safety
    /// As for `RingBuf::new`.
    unsafe fn at(base: *mut u8, size: usize) -> Self;
    /// Repairs what the dead process `owner` left half done; how much that was.
    fn recover(&self, owner: u32) -> usize;
}

impl Ring for RingBuf {
    unsafe fn at(base: *mut u8, size: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe { RingBuf::new(base, size) }
    }

    fn recover(&self, owner: u32) -> usize {
        RingBuf::recover(self, owner)
    }
}

impl Ring for UserRing {
    unsafe fn at(base: *mut u8, size: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe { UserRing::new(base, size) }
    }

    fn recover(&self, owner: u32) -> usize {
        UserRing::recover(self, owner)
    }
}

impl<R: Ring> Ops for RingMap<R> {
    fn file_len(def: &MapDef, _cpus: u32) -> Option<usize> {
        RingBuf::file_len(def.max_entries as usize)
    }

    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno> {
        let size = shm.def.max_entries as usize;
        let region = Region::map_doubled(shm.fd, shm.len, size)?;
        // SAFETY: the mapping that rings ask for; the map keeps it alive.
        let ring = unsafe { R::at(region.base(), size) };
        Ok((region, RingMap(ring)))
    }

    fn recover(&self, owner: u16) -> usize {
        self.0.recover(u32::from(owner))
    }

    fn sys_lookup(&self, _key: &[u8], _value: &mut [u8]) -> Result<(), Errno> {
        Err(ENOTSUPP)
    }

    fn sys_update(&self, _key: &[u8], _value: &[u8], _flags: u64) -> Result<(), Errno> {
        Err(ENOTSUPP)
    }

    fn sys_delete(&self, _key: &[u8]) -> Result<(), Errno> {
        Err(ENOTSUPP)
    }

    fn sys_next_key(&self, _key: Option<&[u8]>, _out: &mut [u8]) -> Result<(), Errno> {
        Err(ENOTSUPP)
    }
}
