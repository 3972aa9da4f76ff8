//! BTF: kept and given back. What a program's BTF says is checked where it is used.

use super::Attr;
use crate::btf::fields;
use crate::btf::parse::Btf;
use crate::object::{self, BtfObject, Object};
use crate::{btf, fds, user};
use bpftime_abi::attr::BtfLoad;
use bpftime_abi::field::find;
use bpftime_shm::session::sealed;
use rustix::io::Errno;
use std::sync::{Arc, Once};

/// `BTF_MAX_SIZE`.
const BTF_MAX: u32 = 16 << 20;

/// BPF_BTF_LOAD.
pub fn load(attr: &Attr) -> Result<i64, Errno> {
    let a: BtfLoad = attr.get();
    if a.btf_size > BTF_MAX {
        return Err(Errno::TOOBIG);
    }
    let data = user::read(a.btf, a.btf_size as usize)?;
    if !btf::is_sound(&data) {
        return Err(Errno::INVAL);
    }
    if let Some(types) = Btf::parse(&data) {
        find::check_structs(&types).map_err(fields::errno)?;
    }
    let fd = sealed::create("bpftime-btf", &data)?;
    let memfd = fds::hidden(&fd)?;
    object::insert(&fd, Object::Btf(Arc::new(BtfObject { name: "", id: object::next_id(), data, memfd })))?;
    Ok(fds::give(fd))
}

/// Makes the kernel's BTF, or ours in its place, an object that can be found by id, as bpftrace looks for it.
pub fn offer_kernel() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let data = btf::kernel();
        if btf::is_sound(&data)
            && let Ok(fd) = sealed::create("bpftime-btf", &data)
            && let Ok(memfd) = fds::hidden(&fd)
        {
            let object = BtfObject { name: "vmlinux", id: object::next_id(), data, memfd };
            let _ = object::insert(&fd, Object::Btf(Arc::new(object)));
        }
    });
}
