//! RINGBUF and USER_RINGBUF as maps: no keys, no values, a ring.

use super::MapDef;
use super::ops::{Ops, Shm};
use crate::ENOTSUPP;
use crate::region::Region;
use crate::ring::{RingBuf, UserRing};
use rustix::io::Errno;

/// The map around a [`RingBuf`].
pub struct RingBufMap(RingBuf);

impl RingBufMap {
    pub fn ring(&self) -> &RingBuf {
        &self.0
    }
}

impl Ops for RingBufMap {
    fn file_len(def: &MapDef, _cpus: u32) -> Option<usize> {
        RingBuf::file_len(def.max_entries as usize)
    }

    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno> {
        let size = shm.def.max_entries as usize;
        let region = Region::map_doubled(shm.fd, shm.len, size)?;
        // SAFETY: the mapping RingBuf asks for; the map keeps it alive.
        let ring = unsafe { RingBuf::new(region.base(), size) };
        Ok((region, RingBufMap(ring)))
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

/// The map around a [`UserRing`].
pub struct UserRingMap(UserRing);

impl UserRingMap {
    pub fn ring(&self) -> &UserRing {
        &self.0
    }
}

impl Ops for UserRingMap {
    fn file_len(def: &MapDef, _cpus: u32) -> Option<usize> {
        RingBuf::file_len(def.max_entries as usize)
    }

    fn open(shm: Shm<'_>) -> Result<(Region, Self), Errno> {
        let size = shm.def.max_entries as usize;
        let region = Region::map_doubled(shm.fd, shm.len, size)?;
        // SAFETY: the mapping UserRing asks for; the map keeps it alive.
        let ring = unsafe { UserRing::new(region.base(), size) };
        Ok((region, UserRingMap(ring)))
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
