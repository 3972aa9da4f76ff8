//! What the verifier asks about a program's surroundings, and the gate it stands at.

use crate::object::MapObject;
use bpftime_abi::attr::ProgLoad;
use bpftime_abi::field::Fields;
use bpftime_abi::map_type::BPF_F_RDONLY_PROG;
use bpftime_abi::{config, helper};
use bpftime_shm::map::InnerDef;
use bpftime_vm::decode::Class;
use bpftime_vm::verify::{self, MapFacts, Verified, VerifyEnv};
use bpftime_vm::{DecodeOptions, Insn, LoadEnv, LoadError, MapIdx, UnknownHelpers};
use rustix::io::Errno;
use std::sync::Arc;

/// `BPF_F_SLEEPABLE`.
const BPF_F_SLEEPABLE: u32 = 1 << 4;

/// A load's surroundings.
struct Env<'a> {
    maps: &'a [Arc<MapObject>],
    load: &'a ProgLoad,
    gpl: bool,
}

impl VerifyEnv for Env<'_> {
    fn map(&self, map: MapIdx) -> MapFacts {
        let named = map.outer().unwrap_or(map);
        let Some(m) = self.maps.get(named.0 as usize) else { return MapFacts::default() };
        let d = m.def();
        if map.outer().is_some() {
            let InnerDef { map_type, key_size, value_size, max_entries, map_flags, .. } = d.inner;
            return MapFacts { map_type, key_size, value_size, max_entries, flags: map_flags, frozen: false };
        }
        MapFacts {
            map_type: d.map_type,
            key_size: d.key_size,
            value_size: d.value_size,
            max_entries: d.max_entries,
            flags: d.map_flags,
            frozen: m.handle.map.is_frozen(),
        }
    }

    /// libbpf freezes .rodata before it loads programs, so that configuration decides which code is dead.
    fn rodata(&self, map: MapIdx, off: u32, len: u32) -> Option<u64> {
        let m = self.maps.get(map.0 as usize)?;
        let fixed = m.def().map_flags & BPF_F_RDONLY_PROG != 0 && m.handle.map.is_frozen();
        if !fixed || len > 8 || off.checked_add(len)? > m.def().value_size {
            return None;
        }
        let base = m.handle.map.value_base()?;
        let mut bytes = [0u8; 8];
        // SAFETY: off + len lies within the first value, which stays mapped as long as the map.
        unsafe {
            std::ptr::copy_nonoverlapping(base.add(off as usize), bytes.as_mut_ptr(), len as usize);
        }
        Some(u64::from_le_bytes(bytes))
    }

    fn fields(&self, map: MapIdx) -> Fields {
        let named = map.outer().unwrap_or(map);
        let def = self.maps.get(named.0 as usize).map(|m| m.def());
        def.map_or(Fields::default(), |d| if map.outer().is_some() { d.inner.fields } else { d.fields })
    }

    fn prog_type(&self) -> u32 {
        self.load.prog_type
    }
    fn gpl(&self) -> bool {
        self.gpl
    }
    fn expected_attach_type(&self) -> u32 {
        self.load.expected_attach_type
    }
    fn sleepable(&self) -> bool {
        self.load.prog_flags & BPF_F_SLEEPABLE != 0
    }
    fn helper_exists(&self, id: u32) -> bool {
        helper::exists(id)
    }
}

/// Maps that the instructions name, filled in while they are decoded.
pub trait NamedMaps: LoadEnv {
    /// The maps so far.
    fn maps(&self) -> &[Arc<MapObject>];
    /// The errno of a descriptor that is no map, which the kernel passes on as it is.
    fn failed(&self) -> Option<Errno>;
}

/// Decodes and verifies. The log's last line before the statistics is the reason of a refusal.
pub fn accept(
    insns: &[Insn],
    maps: &mut impl NamedMaps,
    load: &ProgLoad,
    gpl: bool,
    log: &mut verify::Log,
) -> Result<Verified, Errno> {
    let off = std::env::var_os(config::VERIFY).is_some_and(|v| v == "off");
    let unknown_helpers = if off { UnknownHelpers::AcceptPoison } else { UnknownHelpers::AcceptAll };
    let options = DecodeOptions { unknown_helpers, ..DecodeOptions::default() };
    let program = bpftime_vm::decode::decode_with(insns, maps, options).map_err(|e| {
        tracing::debug!(reason = %e, "program refused");
        log.reason(&e.to_string());
        log.finish(&verify::Stats::default(), std::time::Duration::ZERO, &[0]);
        maps.failed().unwrap_or_else(|| errno_of(&e))
    })?;
    if off {
        tracing::warn!("{}=off: a wrong program can crash the processes it runs in", config::VERIFY);
        // SAFETY: the user says so; that is what the variable means, and what the warning says.
        return Ok(unsafe { Verified::unchecked(program) });
    }
    let env = Env { maps: maps.maps(), load, gpl };
    verify::verify(program, &env, log).map_err(|refusal| {
        tracing::debug!(insn = refusal.insn, reason = %refusal, "program refused");
        Errno::from_raw_os_error(refusal.errno.number())
    })
}

fn errno_of(e: &LoadError) -> Errno {
    match e.class() {
        Class::Invalid => Errno::INVAL,
        Class::Access => Errno::ACCESS,
        Class::TooBig => Errno::TOOBIG,
        Class::BadFd => Errno::BADF,
    }
}
