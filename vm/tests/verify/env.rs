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

fn map(map_type: u32, key: u32, value: u32, entries: u32, flags: u32) -> TestMap {
    let facts =
        MapFacts { map_type, key_size: key, value_size: value, max_entries: entries, flags, frozen: false };
    TestMap { facts, contents: vec![], inner: None }
}

/// A map-in-map for maps like `inner`.
fn of_maps(map_type: u32, inner: TestMap) -> TestMap {
    TestMap { inner: Some(inner.facts), ..map(map_type, 4, 4, 2, 0) }
}

/// The maps of all programs, at descriptors 100, 101...
pub fn maps() -> Vec<TestMap> {
    let mut rodata = map(2, 4, 64, 1, 1 << 7);
    rodata.facts.frozen = true;
    rodata.contents = (0..64).map(|n| n + 1).collect();
    rodata.contents[..8].copy_from_slice(b"hello\0\0\0");
    rodata.contents[8..24].fill(0);
    rodata.contents[8] = 5;
    let mut formats = map(2, 4, 256, 1, 1 << 7);
    formats.facts.frozen = true;
    formats.contents = vec![0; 256];
    for (n, text) in ["%d %s", "%pz", "plain", "%llx %pks %c", "", "%", "\x01", "100%%"].iter().enumerate() {
        formats.contents[16 * n..16 * n + text.len()].copy_from_slice(text.as_bytes());
    }
    vec![
        map(1, 4, 16, 8, 0),                 // 100: hash
        map(2, 4, 64, 1, 0),                 // 101: global data
        rodata,                              // 102: constants
        map(27, 0, 0, 4096, 0),              // 103: ring buffer
        map(4, 4, 4, 2, 0),                  // 104: perf event array
        map(7, 4, 160, 8, 0),                // 105: stack traces
        map(2, 4, 64, 4, 0),                 // 106: array
        map(2, 4, 64, 1, 1 << 8),            // 107: write-only for programs
        map(3, 4, 4, 2, 0),                  // 108: programs
        map(8, 4, 4, 2, 0),                  // 109: cgroups
        map(5, 4, 16, 8, 0),                 // 110: per-CPU hash
        map(22, 0, 16, 8, 0),                // 111: queue
        map(1, 8, 256, 8, 0),                // 112: hash with large values
        map(2, 4, 64, 1, 1 << 7),            // 113: read-only for programs, not frozen
        formats,                             // 114: format strings, every 16 bytes
        map(23, 0, 16, 8, 0),                // 115: stack
        map(30, 0, 8, 8, 0),                 // 116: Bloom filter
        of_maps(12, map(1, 4, 16, 8, 0)),    // 117: array of hashes like 100
        of_maps(13, map(2, 4, 64, 4, 0)),    // 118: hash of arrays like 106
        map(9, 4, 16, 8, 0),                 // 119: LRU hash
        map(11, 8, 16, 8, 1),                // 120: trie
        map(6, 4, 16, 8, 0),                 // 121: per-CPU array
        of_maps(12, map(27, 0, 0, 4096, 0)), // 122: array of ring buffers
        map(31, 0, 0, 4096, 0),              // 123: user ring buffer
        map(29, 4, 4, 0, 1),                 // 124: values of tasks
        map(10, 4, 16, 8, 0),                // 125: LRU per-CPU hash
    ]
}

/// The world of a program whose header says this: its type, `nongpl`, `sleepable`.
pub fn world(header: &str) -> World {
    let prog_type = match header.split(' ').next().unwrap() {
        "socket" => 1,
        "kprobe" => 2,
        "tracepoint" => 5,
        "perf" => 7,
        "raw" => 17,
        "syscall" => 31,
        other => panic!("program type {other}"),
    };
    let mut world = World::new(prog_type, maps());
    world.gpl = !header.contains("nongpl");
    world.sleepable = header.contains("sleepable");
    world
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
