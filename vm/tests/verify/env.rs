//! The world that test programs are loaded into: a list of maps, a program type, a licence.

use bpftime_vm::verify::{
    Errno, Log, MapFacts, Recorded, Refusal, Verified, VerifyEnv, verify, verify_recording,
};
use bpftime_vm::{DecodeOptions, Insn, LoadEnv, LoadError, MapIdx, UnknownHelpers, decode_with};

pub const ARRAY: u32 = 2;
const RDONLY_PROG: u32 = 1 << 7;

/// A map, with its contents if it is frozen.
#[derive(Clone, Debug, Default)]
pub struct TestMap {
    pub facts: MapFacts,
    pub contents: Vec<u8>,
    /// Of a map-in-map: its template.
    pub inner: Option<MapFacts>,
}

/// Where a program refers to its map `n`: descriptor `FIRST_FD + n`, or index n.
pub const FIRST_FD: i32 = 100;

#[derive(Clone, Debug)]
pub struct World {
    pub maps: Vec<TestMap>,
    pub prog_type: u32,
    pub gpl: bool,
    pub sleepable: bool,
    pub attach_type: u32,
    /// Descriptor of each map; `FIRST_FD` and on if empty.
    pub fds: Vec<i32>,
}

impl World {
    pub fn new(prog_type: u32, maps: Vec<TestMap>) -> World {
        World { maps, prog_type, gpl: true, sleepable: false, attach_type: 0, fds: Vec::new() }
    }
}

impl LoadEnv for World {
    fn map_by_fd(&mut self, fd: i32) -> Option<MapIdx> {
        let at = match self.fds.is_empty() {
            true => usize::try_from(fd.checked_sub(FIRST_FD)?).ok()?,
            false => self.fds.iter().position(|f| *f == fd)?,
        };
        (at < self.maps.len()).then_some(MapIdx(at as u32))
    }
    fn map_by_index(&mut self, idx: i32) -> Option<MapIdx> {
        let at = usize::try_from(idx).ok()?;
        (at < self.maps.len()).then_some(MapIdx(at as u32))
    }
    fn map_value_len(&self, map: MapIdx) -> Option<u32> {
        let facts = self.maps[map.0 as usize].facts;
        (facts.map_type == ARRAY && facts.max_entries == 1).then_some(facts.value_size)
    }
    fn helper_exists(&self, id: u32) -> bool {
        bpftime_abi::helper::exists(id)
    }
}

impl VerifyEnv for World {
    fn map(&self, map: MapIdx) -> MapFacts {
        match map.outer() {
            Some(outer) => self.maps[outer.0 as usize].inner.unwrap_or_default(),
            None => self.maps[map.0 as usize].facts,
        }
    }
    fn rodata(&self, map: MapIdx, off: u32, len: u32) -> Option<u64> {
        let map = &self.maps[map.0 as usize];
        let readable = map.facts.frozen && map.facts.map_type == ARRAY && map.facts.flags & RDONLY_PROG != 0;
        let bytes = map.contents.get(off as usize..(off + len) as usize).filter(|_| readable)?;
        Some(bytes.iter().rev().fold(0, |x, b| x << 8 | u64::from(*b)))
    }
    fn prog_type(&self) -> u32 {
        self.prog_type
    }
    fn gpl(&self) -> bool {
        self.gpl
    }
    fn expected_attach_type(&self) -> u32 {
        self.attach_type
    }
    fn sleepable(&self) -> bool {
        self.sleepable
    }
    fn helper_exists(&self, id: u32) -> bool {
        bpftime_abi::helper::exists(id)
    }
}

/// Our verdict.
pub enum Verdict {
    Accepted(Box<Verified>),
    /// By the structural checks.
    NotDecoded(LoadError),
    Refused(Refusal),
}

impl Verdict {
    pub fn accepted(&self) -> bool {
        matches!(self, Verdict::Accepted(_))
    }

    /// errno, positive, and the last line of the reason.
    pub fn refusal(&self) -> Option<(i32, String)> {
        match self {
            Verdict::Accepted(_) => None,
            Verdict::NotDecoded(e) => {
                use bpftime_vm::decode::Class;
                let errno = match e.class() {
                    Class::Invalid => Errno::Invalid.number(),
                    Class::Access => Errno::Access.number(),
                    Class::TooBig => Errno::TooBig.number(),
                    Class::BadFd => 9,
                };
                Some((errno, e.to_string()))
            }
            Verdict::Refused(r) => Some((r.errno.number(), r.reason.clone())),
        }
    }
}

pub fn judge(insns: &[Insn], world: &World, log: &mut Log) -> Verdict {
    let options = DecodeOptions { unknown_helpers: UnknownHelpers::AcceptAll, ..DecodeOptions::default() };
    match decode_with(insns, &mut world.clone(), options) {
        Err(e) => Verdict::NotDecoded(e),
        Ok(program) => match verify(program, world, log) {
            Ok(v) => Verdict::Accepted(Box::new(v)),
            Err(r) => Verdict::Refused(r),
        },
    }
}

/// The states of the walk of an accepted program.
pub fn recorded(insns: &[Insn], world: &World) -> Option<(Verified, Recorded)> {
    let options = DecodeOptions { unknown_helpers: UnknownHelpers::AcceptAll, ..DecodeOptions::default() };
    let program = decode_with(insns, &mut world.clone(), options).ok()?;
    verify_recording(program, world, &mut Log::new(0)).ok()
}
