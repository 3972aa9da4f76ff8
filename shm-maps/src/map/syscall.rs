//! The tool's side of a map: bpf(2) commands with the kernel's order of checks.

use super::Map;
use super::hash::Hash;
use super::ops::Ops as _;
use super::table::{Kind, with_kind};
use crate::round8;
use crate::uapi::*;
use rustix::io::Errno;

impl Map {
    /// Bytes of a value in the tool's buffers.
    pub fn value_size_user(&self) -> usize {
        let one = self.def.value_size as usize;
        match &self.kind {
            Kind::PERCPU_HASH(_) | Kind::PERCPU_ARRAY(_) | Kind::LRU_PERCPU_HASH(_) => {
                round8(one) * self.cpus as usize
            }
            Kind::PERF_EVENT_ARRAY(_) | Kind::PROG_ARRAY(_) | Kind::CGROUP_ARRAY(_) => 4,
            Kind::ARRAY_OF_MAPS(_) | Kind::HASH_OF_MAPS(_) => 4,
            _ => one,
        }
    }

    /// What may be done through a descriptor is the server's to check.
    fn writable(&self) -> Result<(), Errno> {
        if self.is_frozen() { Err(Errno::PERM) } else { Ok(()) }
    }

    /// What is checked before a descriptor that is to be stored is looked at.
    pub(super) fn check_object_update(&self, key: &[u8]) -> Result<(), Errno> {
        self.writable()?;
        self.has_key_len(key)
    }

    fn has_key_len(&self, key: &[u8]) -> Result<(), Errno> {
        if key.len() == self.def.key_size as usize { Ok(()) } else { Err(Errno::INVAL) }
    }

    fn has_value_len(&self, len: usize) -> Result<(), Errno> {
        if len == self.value_size_user() { Ok(()) } else { Err(Errno::INVAL) }
    }

    /// The kernel refuses unknown flags before it looks at the map.
    fn known_flags(flags: u64) -> Result<(), Errno> {
        if flags & !BPF_F_LOCK == 0 { Ok(()) } else { Err(Errno::INVAL) }
    }

    /// BPF_MAP_LOOKUP_ELEM. `value` is [`Map::value_size_user`] bytes.
    ///
    /// # Errors
    /// The kernel's: ENOENT, EINVAL, EPERM, ENOTSUPP.
    pub fn sys_lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<(), Errno> {
        Self::known_flags(flags)?;
        let _lock = self.lock_if(flags)?;
        self.has_key_len(key)?;
        self.has_value_len(value.len())?;
        with_kind!(&self.kind, m => m.sys_lookup(key, value))?;
        self.clear_parts(value);
        Ok(())
    }

    /// BPF_MAP_UPDATE_ELEM.
    ///
    /// # Errors
    /// The kernel's: EEXIST, ENOENT, E2BIG, EINVAL, EPERM, ENOTSUPP.
    pub fn sys_update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        self.writable()?;
        let _lock = self.lock_if(flags)?;
        self.has_key_len(key)?;
        self.has_value_len(value.len())?;
        let data = self.data_of(value);
        with_kind!(&self.kind, m => m.sys_update(key, &data, flags & !BPF_F_LOCK))
    }

    /// BPF_MAP_DELETE_ELEM.
    ///
    /// # Errors
    /// The kernel's: ENOENT, EINVAL, E2BIG, EPERM, ENOTSUPP.
    pub fn sys_delete(&self, key: &[u8]) -> Result<(), Errno> {
        self.writable()?;
        self.has_key_len(key)?;
        with_kind!(&self.kind, m => m.sys_delete(key))
    }

    /// BPF_MAP_GET_NEXT_KEY: the first key for no key or an unknown one.
    ///
    /// # Errors
    /// ENOENT at the end; EPERM, EINVAL, ENOTSUPP as the kernel's.
    pub fn sys_next_key(&self, key: Option<&[u8]>, out: &mut [u8]) -> Result<(), Errno> {
        if let Some(key) = key {
            self.has_key_len(key)?;
        }
        self.has_key_len(out)?;
        with_kind!(&self.kind, m => m.sys_next_key(key, out))
    }

    /// Buckets that BPF_MAP_LOOKUP_BATCH goes through; None for maps that are no hash maps.
    pub fn buckets(&self) -> Option<u32> {
        self.hash().map(|hash| hash.buckets())
    }

    /// The keys in a bucket of a hash map, one after another.
    pub fn bucket_keys(&self, bucket: u32) -> Vec<u8> {
        self.hash().map(|hash| hash.bucket_keys(bucket)).unwrap_or_default()
    }

    fn hash(&self) -> Option<&Hash> {
        match &self.kind {
            Kind::HASH(hash) | Kind::PERCPU_HASH(hash) => Some(hash),
            Kind::LRU_HASH(hash) | Kind::LRU_PERCPU_HASH(hash) => Some(hash),
            Kind::HASH_OF_MAPS(outer) => Some(outer.hash()),
            _ => None,
        }
    }

    /// BPF_MAP_LOOKUP_AND_DELETE_ELEM.
    ///
    /// # Errors
    /// The kernel's: ENOENT, EINVAL, EPERM, ENOTSUPP.
    pub fn sys_lookup_and_delete(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<(), Errno> {
        Self::known_flags(flags)?;
        self.writable()?;
        let _lock = self.lock_if(flags)?;
        if flags != 0 && matches!(self.kind, Kind::QUEUE(_) | Kind::STACK(_)) {
            return Err(Errno::INVAL);
        }
        self.has_key_len(key)?;
        self.has_value_len(value.len())?;
        with_kind!(&self.kind, m => m.sys_lookup_and_delete(key, value))?;
        self.clear_parts(value);
        Ok(())
    }
}
