//! Parts of values that are no data, in the BTF of a tool: `bpftime_abi::field`.

use bpftime_abi::field::Fields;
use bpftime_abi::field::find::Unclear;
use bpftime_abi::map_type::BPF_F_RDONLY_PROG;
use rustix::io::Errno;

/// `BPF_F_WRONLY_PROG`.
const BPF_F_WRONLY_PROG: u32 = 1 << 8;

/// Whether values of such a map may have these parts.
///
/// # Errors
/// EACCES when programs may not read and write values, EOPNOTSUPP when the map's type has no use for one of them.
pub fn admitted(fields: &Fields, map_type: u32, map_flags: u32) -> Result<(), Errno> {
    if !fields.is_empty() && map_flags & (BPF_F_RDONLY_PROG | BPF_F_WRONLY_PROG) != 0 {
        return Err(Errno::ACCESS);
    }
    let taken = fields.iter().all(|field| field.kind.maps.contains(&map_type));
    if taken { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}

/// The errno of BPF_BTF_LOAD.
pub fn errno(unclear: Unclear) -> Errno {
    match unclear {
        Unclear::TooMany => Errno::TOOBIG,
        Unclear::Invalid => Errno::INVAL,
        Unclear::Nowhere => Errno::FAULT,
    }
}
