//! What decoder and verifier ask about a program of an object.

use super::{Object, Prog, section};
use bpftime_abi::field::Fields;
use bpftime_abi::helper;
use bpftime_abi::map_type::{BPF_F_RDONLY_PROG, BPF_MAP_TYPE_ARRAY};
use bpftime_vm::verify::{MapFacts, VerifyEnv};
use bpftime_vm::{LoadEnv, MapIdx};

/// The descriptor of an object's first map. No real one, so that a mistake does not find a file.
pub const MAP_FD: i32 = 1_000_000;

/// The surroundings of one program.
#[derive(Clone, Copy)]
pub struct ObjectEnv<'a> {
    object: &'a Object,
    prog: &'a Prog,
}

impl<'a> ObjectEnv<'a> {
    /// For a program of the object.
    pub fn new(object: &'a Object, prog: &'a Prog) -> ObjectEnv<'a> {
        ObjectEnv { object, prog }
    }
}

impl LoadEnv for ObjectEnv<'_> {
    fn map_by_fd(&mut self, fd: i32) -> Option<MapIdx> {
        let index = usize::try_from(fd.checked_sub(MAP_FD)?).ok()?;
        (index < self.object.maps.len()).then_some(MapIdx(index as u32))
    }
    fn map_by_index(&mut self, _idx: i32) -> Option<MapIdx> {
        None
    }
    fn map_value_len(&self, map: MapIdx) -> Option<u32> {
        let facts = self.map(map);
        let direct = facts.map_type == BPF_MAP_TYPE_ARRAY && facts.max_entries == 1;
        direct.then_some(facts.value_size)
    }
    fn helper_exists(&self, id: u32) -> bool {
        helper::exists(id)
    }
}

impl VerifyEnv for ObjectEnv<'_> {
    fn map(&self, map: MapIdx) -> MapFacts {
        self.object.maps.get(map.0 as usize).map_or(MapFacts::default(), |m| m.facts)
    }
    fn rodata(&self, map: MapIdx, off: u32, len: u32) -> Option<u64> {
        let map = self.object.maps.get(map.0 as usize)?;
        let fixed = map.facts.frozen && map.facts.flags & BPF_F_RDONLY_PROG != 0;
        let bytes = map.contents.get(off as usize..off.checked_add(len)? as usize).filter(|_| fixed)?;
        (len <= 8).then(|| bytes.iter().rev().fold(0, |x, b| x << 8 | u64::from(*b)))
    }
    fn fields(&self, map: MapIdx) -> Fields {
        self.object.maps.get(map.0 as usize).map_or(Fields::default(), |m| m.fields)
    }
    fn prog_type(&self) -> u32 {
        self.prog.prog_type
    }
    fn gpl(&self) -> bool {
        self.object.gpl()
    }
    fn expected_attach_type(&self) -> u32 {
        0
    }
    fn sleepable(&self) -> bool {
        section::sleeps(&self.prog.section)
    }
    fn helper_exists(&self, id: u32) -> bool {
        helper::exists(id)
    }
}
