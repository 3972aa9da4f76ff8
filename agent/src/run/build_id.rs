//! Addresses as build id and offset in the file: what stacks with BPF_F_USER_BUILD_ID consist of.
//!
//! The control thread looks files up, since a probe may open none, and writes the table; probes read it. An address that
//! is not in it (a library that was loaded a moment ago, code that is in no file) is given as it is, as by the kernel for
//! a file whose first page is not in memory, and asks for another look.

use crate::resolve::{self, Mapping};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// `BPF_BUILD_ID_SIZE`.
const ID_SIZE: usize = 20;
/// Executable mappings that are known: more than large programs have.
const ROWS: usize = 512;
/// Longest program headers and notes that are looked at.
const LONGEST: usize = 4096;

/// `struct bpf_stack_build_id`, as words.
pub type Frame = [u64; FRAME_WORDS];
/// Words of a frame.
pub const FRAME_WORDS: usize = 4;
/// Bytes of a frame.
pub const FRAME_SIZE: usize = FRAME_WORDS * 8;
/// `BPF_STACK_BUILD_ID_VALID` and `BPF_STACK_BUILD_ID_IP`.
const VALID: u32 = 1;
const IP: u32 = 2;

/// An executable mapping of a file.
struct Row {
    start: AtomicU64,
    end: AtomicU64,
    /// Offset in the file of its first byte.
    offset: AtomicU64,
    /// The first three words of its frames; zero without a build id.
    id: [AtomicU64; 3],
}

static TABLE: [Row; ROWS] = [const { Row::new() }; ROWS];
/// Odd while the table is written.
static VERSION: AtomicU32 = AtomicU32::new(0);
/// Held by who writes the table: the control thread, or in a tool who links a program.
static WRITER: Mutex<()> = Mutex::new(());
/// Whether a program that is here may ask.
static USED: AtomicBool = AtomicBool::new(false);
/// Whether an address was asked for that is in no row.
static STALE: AtomicBool = AtomicBool::new(false);

impl Row {
    const fn new() -> Self {
        Self {
            start: AtomicU64::new(0),
            end: AtomicU64::new(0),
            offset: AtomicU64::new(0),
            id: [const { AtomicU64::new(0) }; 3],
        }
    }

    fn store(&self, known: &Known) {
        self.start.store(known.start, Ordering::Relaxed);
        self.end.store(known.end, Ordering::Relaxed);
        self.offset.store(known.offset, Ordering::Relaxed);
        self.id.iter().zip(known.id).for_each(|(word, v)| word.store(v, Ordering::Relaxed));
    }

    fn frame(&self, ip: u64) -> Option<Frame> {
        let start = self.start.load(Ordering::Relaxed);
        if !(start..self.end.load(Ordering::Relaxed)).contains(&ip) {
            return None;
        }
        let [a, b, c] = self.id.each_ref().map(|word| word.load(Ordering::Relaxed));
        let offset = self.offset.load(Ordering::Relaxed).wrapping_add(ip - start);
        Some(if a == 0 { plain(ip) } else { [a, b, c, offset] })
    }
}

/// A frame of an address whose file is not known.
fn plain(ip: u64) -> Frame {
    [IP.into(), 0, 0, ip]
}

/// The frame of an address.
pub fn frame(ip: u64) -> Frame {
    let before = VERSION.load(Ordering::Acquire); // pairs with `publish`: its rows are seen
    let found = TABLE.iter().find_map(|row| row.frame(ip));
    // The rows were read before the version is looked at again.
    std::sync::atomic::fence(Ordering::Acquire);
    let settled = before & 1 == 0 && VERSION.load(Ordering::Relaxed) == before;
    match found.filter(|_| settled) {
        Some(frame) => frame,
        None => {
            STALE.store(true, Ordering::Relaxed);
            plain(ip)
        }
    }
}

/// The control thread saw a program that may ask.
pub fn use_from_now() {
    USED.store(true, Ordering::Relaxed);
    refresh();
}

/// Looks again if a probe missed something, or if `changed` says that mappings did.
pub fn refresh_if_used(changed: bool) {
    if USED.load(Ordering::Relaxed) && (STALE.load(Ordering::Relaxed) || changed) {
        refresh();
    }
}

fn refresh() {
    // Not waited for: its holder may have stayed behind in the parent, and looks at the same mappings.
    let Ok(_writer) = WRITER.try_lock() else { return };
    STALE.store(false, Ordering::Relaxed);
    let maps = resolve::mappings().unwrap_or_default();
    let Ok(memory) = std::fs::File::open("/proc/self/mem") else { return };
    let mut known: Vec<Known> = Vec::new();
    for map in maps.iter().filter(|m| m.exec).take(ROWS) {
        known.push(Known {
            start: map.start as u64,
            end: map.end as u64,
            offset: map.offset,
            id: build_id(&memory, &maps, map).map_or([0; 3], words),
        });
    }
    publish(&known);
}

/// A row before it is published.
#[derive(Clone, Copy, Default)]
struct Known {
    start: u64,
    end: u64,
    offset: u64,
    id: [u64; 3],
}

fn publish(known: &[Known]) {
    // Odd already in a child that was forked in the middle of this.
    let odd = VERSION.load(Ordering::Relaxed) | 1;
    VERSION.swap(odd, Ordering::AcqRel); // readers that see a row of ours see this
    let rest = std::iter::repeat(&const { Known { start: 0, end: 0, offset: 0, id: [0; 3] } });
    TABLE.iter().zip(known.iter().chain(rest)).for_each(|(row, known)| row.store(known));
    VERSION.store(odd.wrapping_add(1), Ordering::Release); // pairs with `frame`
}

/// Status and id.
fn words(id: [u8; ID_SIZE]) -> [u64; 3] {
    let mut bytes = [0; 24];
    bytes[..4].copy_from_slice(&VALID.to_ne_bytes());
    bytes[4..].copy_from_slice(&id);
    let word = |n: usize| bytes[n * 8..].first_chunk().map_or(0, |b| u64::from_ne_bytes(*b));
    [word(0), word(1), word(2)]
}

/// The build id of the file that `of` maps, by the memory where its beginning is mapped. Read like a file, so that
/// memory which goes away meanwhile does no harm.
fn build_id(memory: &std::fs::File, maps: &[Mapping], of: &Mapping) -> Option<[u8; ID_SIZE]> {
    let mut same = maps.iter().filter(|m| (m.dev, m.ino) == (of.dev, of.ino) && m.offset == 0);
    let head = same.rfind(|m| m.start <= of.start)?;
    let read = |at: u64, len: usize| {
        let end = at.checked_add(len as u64)?;
        let mut bytes = vec![0; len];
        let inside = len <= LONGEST && end <= (head.end - head.start) as u64;
        (inside && memory.read_exact_at(&mut bytes, head.start as u64 + at).is_ok()).then_some(bytes)
    };
    notes(&read(0, 64)?, &read)?.into_iter().find_map(|(at, len)| note(&read(at, len)?))
}

/// Where the notes of an ELF file of 64 bits are: offset and length.
fn notes(header: &[u8], read: &impl Fn(u64, usize) -> Option<Vec<u8>>) -> Option<Vec<(u64, usize)>> {
    const MAGIC_64_LITTLE: &[u8] = b"\x7fELF\x02\x01";
    const PT_NOTE: u32 = 4;
    const HEADER: usize = 56;
    if !header.starts_with(MAGIC_64_LITTLE) || half(header, 54)? as usize != HEADER {
        return None;
    }
    let table = read(long(header, 32)?, half(header, 56)? as usize * HEADER)?;
    let rows = table.chunks_exact(HEADER).filter(|row| word(row, 0) == Some(PT_NOTE));
    Some(rows.filter_map(|row| Some((long(row, 8)?, long(row, 32)? as usize))).collect())
}

/// The build id among some notes: name "GNU", type `NT_GNU_BUILD_ID`.
fn note(mut notes: &[u8]) -> Option<[u8; ID_SIZE]> {
    const NT_GNU_BUILD_ID: u32 = 3;
    while notes.len() >= 12 {
        let [name, len, kind] = [0, 4, 8].map(|at| word(notes, at).unwrap_or(0));
        let desc = 12 + (name as usize).next_multiple_of(4);
        let id = notes.get(desc..desc.checked_add(len as usize)?)?;
        if kind == NT_GNU_BUILD_ID && notes.get(12..16) == Some(b"GNU\0") && (1..=ID_SIZE).contains(&id.len())
        {
            let mut padded = [0; ID_SIZE];
            padded[..id.len()].copy_from_slice(id);
            return Some(padded);
        }
        notes = notes.get(desc + (len as usize).next_multiple_of(4)..)?;
    }
    None
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}
fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_id_is_found_behind_other_notes_and_a_cut_one_is_none() {
        let mut notes = b"\x04\0\0\0\x02\0\0\0\x01\0\0\0GNU\0\xaa\xbb\0\0".to_vec();
        notes.extend(b"\x04\0\0\0\x03\0\0\0\x03\0\0\0GNU\0\x01\x02\x03\0");
        let id = note(&notes).expect("the second note");
        assert_eq!((&id[..4], id[19]), (&[1, 2, 3, 0][..], 0));
        for len in 0..notes.len() - 1 {
            assert_eq!(note(&notes[..len]), None, "cut to {len}");
        }
        assert_eq!(note(&[0xff; 64]), None);
    }

    #[test]
    fn own_code_has_a_frame_with_an_offset_and_the_stack_has_an_address() {
        use_from_now();
        let here = own_code as *const () as u64;
        let maps = resolve::mappings().expect("maps");
        let map = maps.iter().find(|m| (m.start..m.end).contains(&(here as usize))).expect("own mapping");
        let known = frame(here);
        if known[0] as u32 == VALID {
            assert_eq!(known[3], here - map.start as u64 + map.offset);
        } else {
            assert_eq!(known, plain(here), "linked without a build id");
        }
        let local = 0u64;
        assert_eq!(frame(&raw const local as u64), plain(&raw const local as u64));
        assert!(STALE.load(Ordering::Relaxed));
    }

    fn own_code() {}
}
