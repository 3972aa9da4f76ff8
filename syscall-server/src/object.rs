//! The tool's BPF objects, found by the identity of their file and not by number: a dup, or a descriptor that came
//! back over a socket, is the same object.

mod sweep;

pub use sweep::reclaim;

use crate::fds::{self, FileId};
use crate::perf::tracepoint::Tracepoint;
use crate::stats::OwnRow;
use bpftime_agent::run::MapHandle;
use bpftime_agent::run::image::Program;
use bpftime_agent::run::shadow::Layout;
use bpftime_shm::session::inspect::Kind;
use bpftime_shm::session::page::Page;
use bpftime_shm::session::wire::{Counter, Point, ProgSpec, SyscallEvent};
use bpftime_shm::session::{dir, ids};
use bpftime_shm::{MapDef, PerfRing};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A map.
pub struct MapObject {
    /// Id, unique in this tool.
    pub id: u32,
    /// The map, shared with programs that run in the tool.
    pub handle: Arc<MapHandle>,
    /// Our own descriptor of the memfd.
    pub memfd: OwnedFd,
    /// For maps that are waited on (ring buffers): the tool's end is the map's descriptor.
    pub events: Option<Events>,
    /// Perf events stored in a PERF_EVENT_ARRAY.
    pub slots: Mutex<BTreeMap<u32, Arc<PerfObject>>>,
    /// Programs or maps stored in a PROG_ARRAY or map-in-map.
    pub held: Mutex<Held>,
    /// Of a PROG_ARRAY: the type of programs that belong there, since the first was loaded with it or stored in it.
    pub prog_type: OnceLock<u32>,
}

/// What is stored in a map.
#[derive(Clone)]
pub enum Member {
    /// A program in a PROG_ARRAY.
    Prog(Arc<ProgObject>),
    /// A map in a map-in-map.
    Map(Arc<MapObject>),
}

impl Member {
    /// Its id.
    pub fn id(&self) -> u32 {
        match self {
            Self::Prog(prog) => prog.spec.prog,
            Self::Map(map) => map.id,
        }
    }
}

/// The programs or maps in a map: what their ids in shared memory mean, and what keeps them alive.
#[derive(Default)]
pub struct Held {
    by_key: BTreeMap<Vec<u8>, u32>,
    by_id: BTreeMap<u32, (Member, usize)>,
}

impl Held {
    /// The different ones.
    pub fn members(&self) -> Vec<Member> {
        self.by_id.values().map(|(m, _)| m.clone()).collect()
    }

    /// Counts one more use; true for the first.
    pub fn hold(&mut self, member: &Member) -> bool {
        let entry = self.by_id.entry(member.id()).or_insert_with(|| (member.clone(), 0));
        entry.1 += 1;
        entry.1 == 1
    }

    /// One use less; the member when that was the last.
    pub fn release(&mut self, id: u32) -> Option<Member> {
        let (_, uses) = self.by_id.get_mut(&id)?;
        *uses -= 1;
        if *uses == 0 { self.by_id.remove(&id).map(|(m, _)| m) } else { None }
    }

    /// What stands where.
    pub fn rows(&self) -> Vec<(Vec<u8>, u32)> {
        self.by_key.iter().map(|(key, id)| (key.clone(), *id)).collect()
    }

    /// Records what a key holds now; what it held before.
    pub fn replace(&mut self, key: &[u8], id: Option<u32>) -> Option<u32> {
        match id {
            Some(id) => self.by_key.insert(key.to_vec(), id),
            None => self.by_key.remove(key),
        }
    }
}

impl MapObject {
    /// What is stored in it.
    pub fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a program of this type may be loaded with, or stored in, this PROG_ARRAY.
    pub fn takes_programs_of(&self, prog_type: u32) -> bool {
        *self.prog_type.get_or_init(|| prog_type) == prog_type
    }

    /// Attributes at creation.
    pub fn def(&self) -> &MapDef {
        self.handle.map.def()
    }
}

/// The waitable side of a ring.
pub struct Events {
    /// Our end; writing makes the tool's end readable.
    pub ours: OwnedFd,
    /// A duplicate of the tool's end, to take signals back; weak in spirit: its existence keeps nothing attached.
    pub tool: OwnedFd,
    /// Whether the tool's end is readable by our doing; of a user ring buffer, unwritable.
    pub signalled: AtomicBool,
}

/// A loaded program.
pub struct ProgObject {
    /// Id, type, name and map ids.
    pub spec: ProgSpec,
    /// Maps in the order of the image's indices.
    pub maps: Vec<Arc<MapObject>>,
    /// Maps that the tool bound to it without its naming them (BPF_PROG_BIND_MAP).
    pub bound: Mutex<Vec<Arc<MapObject>>>,
    /// Our own descriptor of the sealed image.
    pub image: OwnedFd,
    /// First eight bytes of the hash of its instructions.
    pub tag: [u8; 8],
    /// Nanoseconds since boot at load.
    pub load_time: u64,
    /// Its instructions as loaded, with map ids in place of descriptors.
    pub insns: Vec<u8>,
    /// Whether the licence is GPL compatible.
    pub gpl: bool,
    /// Id of its BTF, 0 for none.
    pub btf: u32,
    /// Bytes of its context that it reads: what it is attached to must have as many.
    pub ctx_bytes: u32,
    /// Whether it calls a helper that returns the task.
    pub asks_for_task: bool,
    /// Whether it calls bpf_override_return.
    pub overrides: bool,
    /// `attr.expected_attach_type` at load.
    pub attach_type: u32,
    /// Linked into the tool, for programs that run here.
    pub linked: OnceLock<Option<Arc<Program>>>,
    /// Its row of run statistics, as in `spec`.
    pub row: OwnRow,
    /// Another session's, which is only looked at here.
    pub viewed: bool,
    /// Whether another session may run it as well.
    pub is_elsewhere: AtomicBool,
    /// With the holder: the session it was taken over from, and its row there.
    pub before: Option<(Page, u32)>,
}

impl ProgObject {
    /// The maps that it names, then those that were bound to it.
    pub fn all_maps(&self) -> Vec<Arc<MapObject>> {
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        self.maps.iter().chain(bound.iter()).cloned().collect()
    }

    /// Keeps a map alive with the program; nothing new for one that it has already.
    pub fn bind(&self, map: Arc<MapObject>) {
        if self.all_maps().iter().all(|m| m.id != map.id) {
            self.bound.lock().unwrap_or_else(PoisonError::into_inner).push(map);
        }
    }

    /// The program linked into the tool itself.
    pub fn link_here(&self) -> Option<Arc<Program>> {
        self.linked
            .get_or_init(|| {
                let bytes = bpftime_shm::session::sealed::read(self.image.as_fd()).ok()?;
                let maps = self.maps.iter().map(|m| m.handle.clone()).collect();
                let task = self.asks_for_task.then(|| {
                    bpftime_agent::run::shadow::refresh();
                    Arc::new(Layout::new(crate::btf::task_layout()))
                });
                let program = Program::link(&bytes, maps).ok()?;
                if program.asks_for_build_ids() {
                    bpftime_agent::run::build_id::use_from_now();
                }
                Some(Arc::new(program.with_task(task)))
            })
            .clone()
    }
}

/// What a perf event watches.
#[derive(Clone, Debug)]
pub enum PerfKind {
    /// A function of a file.
    Uprobe {
        /// Path as the tool gave it.
        path: Vec<u8>,
        /// Device and inode.
        file: FileId,
        /// Offset in the file.
        offset: u64,
        /// Return probe.
        ret: bool,
        /// File offset of the USDT semaphore.
        ref_ctr_offset: u64,
    },
    /// System calls of the targets.
    Tracepoint(Tracepoint),
    /// The kernel's function for a system call.
    Kprobe(SyscallEvent),
    /// The output buffer of programs.
    BpfOutput,
    /// Time: ticks in the tool, or samples of the targets (`perf::clock` decides).
    Clock {
        /// Opened with a frequency, not with a period.
        freq: bool,
        /// The CPU it was opened on, none for any.
        cpu: Option<u32>,
    },
    /// What the kernel counts in the targets' threads.
    Counter {
        /// As it was opened; how often is the state's to say.
        counter: Counter,
        /// The CPU it was opened on, none for any.
        cpu: Option<u32>,
    },
}

/// A perf event.
pub struct PerfObject {
    /// Id for PERF_EVENT_IOC_ID.
    pub id: u64,
    /// What it watches.
    pub kind: PerfKind,
    /// Only this process, or -1.
    pub pid: i32,
    /// The CPU it was opened on; 0 for any.
    pub cpu: u32,
    /// Events per wakeup.
    pub wakeup_events: u32,
    /// Our end of the event's socket pair, until the broker watches it.
    pub liveness: Mutex<Option<OwnedFd>>,
    /// Waitable side, for BPF_OUTPUT.
    pub events: Option<Events>,
    /// The mmap'ed ring, for BPF_OUTPUT.
    pub ring: OnceLock<(OwnedFd, PerfRing)>,
    /// Program and state. The broker's thread looks at it: it is not held while the broker is asked.
    pub state: Mutex<PerfState>,
    /// Held while the state is put into force.
    pub changing: Mutex<()>,
}

/// The changing part of a perf event.
#[derive(Default)]
pub struct PerfState {
    /// PERF_EVENT_IOC_ENABLE was called (or the event was opened enabled).
    pub enabled: bool,
    /// The program, by PERF_EVENT_IOC_SET_BPF or a link.
    pub prog: Option<Arc<ProgObject>>,
    /// The link's cookie.
    pub cookie: u64,
    /// Id of the link the broker knows, while attached.
    pub attached: Option<u32>,
    /// The id it has, or had, there.
    pub link: Option<u32>,
    /// The timer thread runs.
    pub ticking: bool,
    /// Nanoseconds between two events of a clock, occurrences between two of a counter; 0 for none.
    pub period: u64,
}

/// A BPF link.
pub struct LinkObject {
    /// Id, unique in this tool.
    pub id: u32,
    /// `BPF_LINK_TYPE_*`.
    pub link_type: u32,
    /// Its program.
    pub prog: Arc<ProgObject>,
    /// The perf event it holds.
    pub event: Option<Arc<PerfObject>>,
    /// What else BPF_OBJ_GET_INFO_BY_FD tells of it.
    pub detail: LinkDetail,
    /// What agents know of it, by id; of a link with an event the event says that.
    pub specs: Vec<u32>,
    /// Another session's, which is only looked at here.
    pub viewed: bool,
}

/// What only one type of link has.
pub enum LinkDetail {
    /// A link of another session: the part of `struct bpf_link_info` that depends on the type, and its text.
    Elsewhere {
        /// The words, without buffers.
        words: [u64; 6],
        /// Path or name.
        text: Vec<u8>,
    },
    /// All is told by the event.
    Event,
    /// BPF_LINK_TYPE_RAW_TRACEPOINT.
    RawTracepoint {
        /// Name of the tracepoint.
        name: Vec<u8>,
        /// What bpf_get_attach_cookie returns.
        cookie: u64,
    },
    /// BPF_LINK_TYPE_UPROBE_MULTI.
    UprobeMulti {
        /// The file, absolute.
        path: Vec<u8>,
        /// Its places.
        points: Vec<Point>,
        /// Whether references and cookies were given.
        given: (bool, bool),
        /// `BPF_F_UPROBE_MULTI_*`.
        flags: u32,
        /// The process, 0 for all.
        pid: u32,
    },
}

/// BTF data.
pub struct BtfObject {
    /// "vmlinux" for the kernel's, empty for the tool's own.
    pub name: &'static str,
    /// Id, unique in this tool.
    pub id: u32,
    /// The blob.
    pub data: Vec<u8>,
    /// Our own descriptor.
    pub memfd: OwnedFd,
}

/// Any object.
#[derive(Clone)]
pub enum Object {
    /// A map.
    Map(Arc<MapObject>),
    /// A program.
    Prog(Arc<ProgObject>),
    /// A perf event.
    Perf(Arc<PerfObject>),
    /// A link.
    Link(Arc<LinkObject>),
    /// BTF.
    Btf(Arc<BtfObject>),
}

/// An object in the table.
struct Row {
    object: Object,
    /// Looks in a row that found no descriptor of it (`sweep`).
    unseen: u8,
}

static TABLE: OnceLock<Mutex<HashMap<FileId, Row>>> = OnceLock::new();

fn table() -> MutexGuard<'static, HashMap<FileId, Row>> {
    TABLE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// A fresh id, for maps, programs, links and BTF alike: unique among the sessions of this user.
pub fn next_id() -> u32 {
    /// The next id and how many are left of its block, and the process that took the block: a forked child is another.
    static LEFT: Mutex<(u32, u32, u32)> = Mutex::new((0, 0, 0));
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    let me = std::process::id();
    if left.1 == 0 || left.2 != me {
        let block = dir::own().ok().and_then(|d| ids::take_block(&d).ok());
        // Without a directory nobody else can see the ids.
        *left = (block.unwrap_or(left.0.max(1)), ids::BLOCK, me);
    }
    *left = (left.0 + 1, left.1 - 1, me);
    left.0 - 1
}

/// Enters an object under the file behind `fd`.
pub fn insert(fd: impl AsFd, object: Object) -> Result<(), Errno> {
    let id = fds::identity(fd.as_fd())?;
    let mut table = table();
    table.insert(id, Row { object, unseen: 0 });
    let many = sweep::is_due(table.len());
    drop(table);
    if many {
        sweep::sweep();
    }
    Ok(())
}

/// Whether the tool has any object yet.
pub fn any() -> bool {
    TABLE.get().is_some()
}

/// The object behind a number the tool gave. `EBADF` for a closed number, `EINVAL` for a file that is no object.
pub fn find(fd: RawFd) -> Result<Object, Errno> {
    find_borrowed(fds::borrow(fd)?)
}

fn find_borrowed(fd: BorrowedFd) -> Result<Object, Errno> {
    let id = fds::identity(fd).map_err(|_| Errno::BADF)?;
    table().get(&id).map(|row| row.object.clone()).ok_or(Errno::INVAL)
}

macro_rules! finder {
    ($name:ident, $variant:ident, $ty:ty) => {
        /// The object of this kind behind `fd`; `EINVAL` for another kind.
        pub fn $name(fd: u32) -> Result<Arc<$ty>, Errno> {
            match find(fd as RawFd)? {
                Object::$variant(o) => Ok(o),
                _ => Err(Errno::INVAL),
            }
        }
    };
}
finder!(map, Map, MapObject);
finder!(prog, Prog, ProgObject);
finder!(perf, Perf, PerfObject);
finder!(link, Link, LinkObject);
finder!(btf, Btf, BtfObject);

impl Object {
    /// Kind and id; perf events have none.
    pub fn id(&self) -> Option<(Kind, u32)> {
        match self {
            Self::Map(m) => Some((Kind::Map, m.id)),
            Self::Prog(p) => Some((Kind::Prog, p.spec.prog)),
            Self::Link(l) => Some((Kind::Link, l.id)),
            Self::Btf(b) => Some((Kind::Btf, b.id)),
            Self::Perf(_) => None,
        }
    }
}

/// All objects with the identity of their file, for listings.
pub fn all() -> Vec<(FileId, Object)> {
    table().iter().map(|(file, row)| (*file, row.object.clone())).collect()
}

/// Numbers of the descriptors that we hold of objects: not the tool's.
pub fn hidden_fds() -> HashSet<RawFd> {
    table().values().flat_map(|row| sweep::own_numbers(&row.object)).collect()
}

/// The object behind this file.
pub fn of_file(file: FileId) -> Option<Object> {
    table().get(&file).map(|row| row.object.clone())
}

/// The object of this kind and id that this process knows. A link may be known twice: as its own, and as the holder's.
pub fn by_id(kind: Kind, id: u32) -> Option<(FileId, Object)> {
    let table = table();
    let found = table.iter().filter(|(_, row)| row.object.id() == Some((kind, id)));
    let found = found.min_by_key(|(_, row)| matches!(&row.object, Object::Link(l) if l.viewed));
    found.map(|(file, row)| (*file, row.object.clone()))
}
