//! The first page of a map's memfd.
//!
//! ```text
//!   0  magic u64 | version u32 | map_type u32 | key_size u32 | value_size u32
//!  24  max_entries u32 | map_flags u32 | map_extra u64 | name[16]
//!  56  btf_id u32 | btf_key_type_id u32 | btf_value_type_id u32 | cpus u32 | seed u64
//!  80  template of a map-in-map: map_type, key_size, value_size, max_entries, map_flags, fields[11]
//! 144  fields[11]: parts of a value that are no data
//!      ------- written once by create, before the fd leaves the creating process -------
//! 192  frozen u32 | writers u32 | map_id u32 | - u32   written by the tool's server, read by it only
//! 208  lock u64                                       of BPF_F_LOCK, held by whom it names
//! 256  control words of the map's kind (`KIND_AREA`), to the end of the page
//! ```

use super::{InnerDef, MapDef, table};
use crate::PAGE;
use crate::ring::OwnedLock;
use bpftime_abi::field::Fields;
use core::sync::atomic::AtomicU32;
use rustix::io::Errno;

/// "bpfmap" and the byte order.
const MAGIC: u64 = u64::from_le_bytes(*b"bpfmap\x01\x02");
/// Bumped when any layout in this crate changes: a tool and a target with different builds must refuse each other.
const VERSION: u32 = 6;
/// Where a kind may keep words of its own.
pub const KIND_AREA: usize = 256;

/// The immutable part. Plain fields: read once, copied, validated, never read again.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attributes {
    magic: u64,
    version: u32,
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    map_extra: u64,
    name: [u8; 16],
    btf: [u32; 3],
    cpus: u32,
    seed: u64,
    inner: InnerDef,
    fields: Fields,
}

/// The mutable part.
#[repr(C)]
pub struct State {
    /// Set by BPF_MAP_FREEZE, never cleared.
    pub frozen: AtomicU32,
    /// Writable mappings the tool holds; freeze refuses while there are any.
    pub writers: AtomicU32,
    /// The id bpf(2) shows for this map; 0 until the session assigns one.
    pub map_id: AtomicU32,
    unused: AtomicU32,
    /// What BPF_F_LOCK takes: one lock for all values, so that no value holds anything but data.
    pub lock: OwnedLock,
}

const STATE_AT: usize = 192;
const _: () = assert!(core::mem::size_of::<Attributes>() == 192);
const _: () = assert!(core::mem::offset_of!(Attributes, map_extra) == 32);
const _: () = assert!(core::mem::offset_of!(Attributes, seed) == 72);
const _: () = assert!(core::mem::offset_of!(Attributes, inner) == 80);
const _: () = assert!(size_of::<Attributes>() <= STATE_AT);
const _: () = assert!(STATE_AT + core::mem::size_of::<State>() <= KIND_AREA && KIND_AREA < PAGE);

/// What open learns from the header.
pub struct Opened {
    pub def: MapDef,
    pub cpus: u32,
    pub seed: u64,
}

/// Writes the immutable part of a new map.
///
/// # Safety
/// `page` is a page-aligned mapping of a new memfd that no other process can reach yet.
pub unsafe fn write(page: *mut u8, def: &MapDef, cpus: u32, seed: u64) {
    let attributes = Attributes {
        magic: MAGIC,
        version: VERSION,
        map_type: def.map_type,
        key_size: def.key_size,
        value_size: def.value_size,
        max_entries: def.max_entries,
        map_flags: def.map_flags,
        map_extra: def.map_extra,
        name: def.name,
        btf: [def.btf_id, def.btf_key_type_id, def.btf_value_type_id],
        cpus,
        seed,
        inner: def.inner,
        fields: def.fields,
    };
    // SAFETY: aligned, in bounds (asserted above), unshared by the caller's promise.
    unsafe { page.cast::<Attributes>().write(attributes) };
}

/// Copies the header private and checks it: a later change of these bytes changes nothing for us.
///
/// # Safety
/// `page` is a mapping of at least one page.
pub unsafe fn read(page: *const u8) -> Result<Opened, Errno> {
    // SAFETY: in bounds; volatile so that the copy that is checked is the copy that is used.
    let a = unsafe { page.cast::<Attributes>().read_volatile() };
    if a.magic != MAGIC || a.version != VERSION || a.cpus == 0 || a.cpus > super::MAX_CPUS {
        return Err(Errno::INVAL);
    }
    let def = MapDef {
        map_type: a.map_type,
        key_size: a.key_size,
        value_size: a.value_size,
        max_entries: a.max_entries,
        map_flags: a.map_flags,
        name: a.name,
        map_extra: a.map_extra,
        btf_id: a.btf[0],
        btf_key_type_id: a.btf[1],
        btf_value_type_id: a.btf[2],
        inner: InnerDef {
            fields: a.inner.fields.checked(a.inner.value_size).ok_or(Errno::INVAL)?,
            ..a.inner
        },
        fields: a.fields.checked(a.value_size).ok_or(Errno::INVAL)?,
    };
    table::check(&def).map_err(|_| Errno::INVAL)?;
    Ok(Opened { def, cpus: a.cpus, seed: a.seed })
}

/// The mutable words of the header at `page`.
///
/// # Safety
/// `page` is a page-aligned mapping that outlives `'a`.
pub unsafe fn state<'a>(page: *const u8) -> &'a State {
    // SAFETY: in bounds and aligned (asserted above); every field is atomic.
    unsafe { &*page.add(STATE_AT).cast() }
}
