//! BTF: kept and given back. What a program's BTF says is checked where it is used.

use super::Attr;
use crate::object::{self, BtfObject, Object};
use crate::{fds, user};
use bpftime_abi::attr::BtfLoad;
use bpftime_shm::session::sealed;
use rustix::io::Errno;
use std::sync::{Arc, Once};

/// `BTF_MAX_SIZE`.
const BTF_MAX: u32 = 16 << 20;
/// `BTF_MAGIC`, little endian.
const MAGIC: [u8; 2] = [0x9f, 0xeb];
/// `struct btf_header`.
const HEADER_LEN: usize = 24;

/// BPF_BTF_LOAD.
pub fn load(attr: &Attr) -> Result<i64, Errno> {
    let a: BtfLoad = attr.get();
    if a.btf_size > BTF_MAX {
        return Err(Errno::TOOBIG);
    }
    let data = user::read(a.btf, a.btf_size as usize)?;
    check(&data)?;
    let fd = sealed::create("bpftime-btf", &data)?;
    let memfd = fds::hidden(&fd)?;
    object::insert(&fd, Object::Btf(Arc::new(BtfObject { name: "", id: object::next_id(), data, memfd })))?;
    Ok(fds::give(fd))
}

/// Makes the kernel's BTF an object that can be found by id, as bpftrace looks for it: once, if its file is readable.
pub fn offer_kernel() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok(data) = std::fs::read(KERNEL_BTF) else { return };
        if check(&data).is_ok()
            && let Ok(fd) = sealed::create("bpftime-btf", &data)
            && let Ok(memfd) = fds::hidden(&fd)
        {
            let object = BtfObject { name: "vmlinux", id: object::next_id(), data, memfd };
            let _ = object::insert(&fd, Object::Btf(Arc::new(object)));
        }
    });
}

/// What the kernel tells of its own types.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Header sanity: magic, version, section bounds.
fn check(data: &[u8]) -> Result<(), Errno> {
    if data.len() < HEADER_LEN || data[..2] != MAGIC || data[2] != 1 {
        return Err(Errno::INVAL);
    }
    let word = |at: usize| u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]) as u64;
    let body = data.len() as u64 - HEADER_LEN as u64;
    let (hdr_len, type_off, type_len, str_off, str_len) = (word(4), word(8), word(12), word(16), word(20));
    if hdr_len < HEADER_LEN as u64 || type_off + type_len > body || str_off + str_len > body || str_len == 0 {
        return Err(Errno::INVAL);
    }
    Ok(())
}
