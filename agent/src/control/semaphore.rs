//! USDT semaphores: the counters by which a program knows that somebody listens to a probe.
//!
//! As in the kernel, a semaphore is named by its offset in the file and counted once per probed address and process.
//! It counts in a private, writable mapping of that file; an offset that no such mapping has (bcc 0.26 passes garbage)
//! counts nowhere.

use crate::arch::sys;
use crate::resolve::{Mapping, is_file};
use std::collections::HashMap;

/// Semaphores raised by us, by probed address.
#[derive(Default)]
pub struct Semaphores {
    raised: HashMap<usize, usize>,
}

impl Semaphores {
    /// Makes the semaphore of the probe at `site` say that somebody listens. `place` is its file and offset there.
    pub fn raise(&mut self, site: usize, place: (u64, u64, u64), maps: &[Mapping]) {
        if self.raised.contains_key(&site) {
            return;
        }
        if let Some(addr) = address(maps, place)
            && add(addr, 1)
        {
            self.raised.insert(site, addr);
        }
    }

    /// Takes back what [`Semaphores::raise`] added.
    pub fn lower(&mut self, site: usize) {
        if let Some(addr) = self.raised.remove(&site) {
            add(addr, u16::MAX);
        }
    }

    /// The probe's file is not mapped any more, nor is its semaphore.
    pub fn forget(&mut self, site: usize) {
        self.raised.remove(&site);
    }
}

fn address(maps: &[Mapping], (dev, ino, offset): (u64, u64, u64)) -> Option<usize> {
    let holds =
        |m: &&Mapping| m.writable && m.offset <= offset && offset - m.offset <= (m.end - m.start) as u64 - 2;
    let m = maps.iter().filter(holds).find(|m| is_file(m, dev, ino))?;
    Some(m.start + (offset - m.offset) as usize)
}

/// Adds to the 16-bit counter at `addr`, through the kernel: the library may be unmapped at this moment. Only tracers
/// write semaphores, and in this process that is this thread.
fn add(addr: usize, delta: u16) -> bool {
    let mut value = [0u8; 2];
    if !transfer(libc::SYS_process_vm_readv, value.as_mut_ptr() as usize, addr) {
        return false;
    }
    value = u16::from_ne_bytes(value).wrapping_add(delta).to_ne_bytes();
    transfer(libc::SYS_process_vm_writev, value.as_ptr() as usize, addr)
}

fn transfer(nr: i64, local: usize, remote: usize) -> bool {
    let (local, remote) = ([local, 2], [remote, 2]);
    let args = [sys::getpid() as usize, local.as_ptr() as usize, 1, remote.as_ptr() as usize, 1, 0];
    // SAFETY: process_vm_{read,write}v check both addresses; the local one is two bytes of ours.
    unsafe { sys::syscall(nr, args) == 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_goes_up_and_down_once_per_site() {
        let counter = [5u16];
        let addr = counter.as_ptr() as usize;
        assert!(add(addr, 1));
        // SAFETY: the counter lives as long as the test.
        let read = || unsafe { (addr as *const u16).read_volatile() };
        assert_eq!(read(), 6);
        let mut s = Semaphores { raised: HashMap::from([(1, addr)]) };
        s.raise(1, (0, 0, 0), &[]);
        assert_eq!(read(), 6);
        s.lower(1);
        s.lower(1);
        assert_eq!(read(), 5);
    }

    #[test]
    fn an_unmapped_counter_is_no_crash() {
        assert!(!add(16, 1));
    }
}
