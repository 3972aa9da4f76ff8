//! Messages between a session's broker (in the tool) and its agents, and `bpftime ps`.
//!
//! One enum, one encoding: a kind byte, then the fields in order, integers little-endian, byte strings with a 32-bit
//! length. Decoding never trusts a length and rejects what is left over.

use bpftime_abi::task::Row;
use rustix::io::Errno;

/// Version of this protocol; the two ends must agree.
pub const VERSION: u32 = 5;

/// Where in a file a link's probes stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Offset in the file.
    pub offset: u64,
    /// File offset of the USDT semaphore, 0 for none.
    pub ref_ctr_offset: u64,
    /// What bpf_get_attach_cookie returns.
    pub cookie: u64,
}

/// Which side of a system call an event stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Before the kernel does it.
    Enter,
    /// After, with its result.
    Exit,
}

/// What a program at a system call gets as its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CallContext {
    /// The record that tracefs's format files describe.
    Record,
    /// The arguments of a raw tracepoint: registers, then number or result.
    Arguments,
    /// The registers at the entry of the kernel's function for the call, whose one argument is the call's registers; at
    /// its end those with the result.
    Function,
}

/// System calls of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SyscallEvent {
    /// Before or after.
    pub side: Side,
    /// Only this number; `None` for all.
    pub nr: Option<u32>,
    /// The program's context.
    pub context: CallContext,
    /// What bpf_get_attach_cookie returns.
    pub cookie: u64,
}

/// Samples of the threads' processor time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SampleEvent {
    /// Nanoseconds of a thread's processor time between two samples.
    pub period: u64,
    /// Only samples on this CPU; `None` for all.
    pub cpu: Option<u32>,
    /// What bpf_get_attach_cookie returns.
    pub cookie: u64,
}

/// What happens to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskKind {
    /// sched_process_fork: it made another.
    Fork,
    /// sched_process_exec: it began a new program.
    Exec,
    /// sched_process_exit: it ends.
    Exit,
}

/// Tasks of the target that come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskEvent {
    /// Which event.
    pub kind: TaskKind,
    /// What bpf_get_attach_cookie returns.
    pub cookie: u64,
}

/// What a link attaches to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// The points of a file that [`LinkSpec`] names.
    Uprobe,
    /// System calls; the link has no file and no points.
    Syscall(SyscallEvent),
    /// Processor time; the link has no file and no points.
    Sample(SampleEvent),
    /// Tasks that come and go; likewise.
    Task(TaskEvent),
}

/// A link to functions of a file (uprobe, uretprobe, USDT), or to system calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSpec {
    /// What kind of link.
    pub kind: LinkKind,
    /// Id of the link in its session.
    pub link: u32,
    /// Id of the program in its session.
    pub prog: u32,
    /// Return probe instead of entry probe.
    pub ret: bool,
    /// Only this process (as the tool sees its pid), or -1 for all.
    pub pid: i32,
    /// Device of the file, as stat reports it to the tool.
    pub dev: u64,
    /// Inode of the file.
    pub ino: u64,
    /// Path of the file as the tool gave it, for messages.
    pub path: Vec<u8>,
    /// The probes.
    pub points: Vec<Point>,
}

/// One program, for agents and for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgSpec {
    /// Id in its session.
    pub prog: u32,
    /// `BPF_PROG_TYPE_*`.
    pub prog_type: u32,
    /// Name given at load.
    pub name: Vec<u8>,
    /// Session ids of its maps, in the order of the image's map indices.
    pub maps: Vec<u32>,
}

/// One map, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRow {
    /// Id in its session.
    pub map: u32,
    /// `BPF_MAP_TYPE_*`.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Capacity.
    pub max_entries: u32,
    /// Name given at creation.
    pub name: Vec<u8>,
}

/// What travels on a session's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Agent: first message of a process.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// Tool: the session, with the page's descriptor.
    Welcome {
        /// Identifies the session over reconnects.
        session: u64,
        /// The owner index of this process, for CPU slots and ring records.
        owner: u32,
        /// Possible CPUs.
        cpus: u32,
    },
    /// Tool: a map, with its memfd.
    Map {
        /// Id in the session.
        map: u32,
    },
    /// Tool: entry of a PERF_EVENT_ARRAY, with the ring's memfd, or without to clear it.
    PerfSlot {
        /// Map id.
        map: u32,
        /// Index in the map.
        index: u32,
    },
    /// Tool: where the members of the task's shadow stand. Before the first program that asks for the task.
    Task {
        /// Members by the rows of `bpftime_abi::task`.
        rows: Vec<Row>,
    },
    /// Tool: from now on a program or map may be found in, or is no longer in, a PROG_ARRAY or map-in-map. Which slots
    /// hold it is in shared memory.
    Member {
        /// Id of the map that holds others.
        container: u32,
        /// Id of the program or map.
        object: u32,
        /// Whether it is in there.
        present: bool,
    },
    /// Tool: a program, with its sealed image.
    Prog(ProgSpec),
    /// Tool: a link that is to be active from now on.
    Link(LinkSpec),
    /// Tool: the link is gone.
    Unlink {
        /// Link id.
        link: u32,
    },
    /// Tool: forget a program and maps that no link uses any more.
    Drop {
        /// Program ids.
        progs: Vec<u32>,
        /// Map ids.
        maps: Vec<u32>,
    },
    /// Tool: answer when everything before is done. A full listing of live links comes first on a new connection, so
    /// links the agent knows and was not told are gone.
    Sync {
        /// Echoed in [`Message::Ack`].
        seq: u64,
    },
    /// Agent: everything up to `seq` is in force.
    Ack {
        /// From [`Message::Sync`].
        seq: u64,
        /// Probes of this session that are in this process's text.
        sites: u32,
        /// Probes that were wanted here and could not be placed.
        refused: u32,
        /// Links that were taken off here because their program faulted or did not end.
        failed: Vec<u32>,
    },
    /// `bpftime ps`: list yourself.
    List,
    /// `bpftime trace-pipe`: the session page, please. The same message with its descriptor is the answer.
    Text,
    /// Another tool: an encoded [`super::inspect::Request`].
    Inspect(Vec<u8>),
    /// Tool: an encoded [`super::inspect::Reply`], with the object's descriptor.
    Inspected(Vec<u8>),
    /// Tool: answer to [`Message::List`].
    Listing {
        /// Pid of the tool.
        pid: i32,
        /// Its command line.
        command: Vec<u8>,
        /// Programs.
        progs: Vec<ProgSpec>,
        /// Links.
        links: Vec<LinkSpec>,
        /// Maps.
        maps: Vec<MapRow>,
        /// Connected agents: pid, sites, refused, failed links.
        agents: Vec<(i32, u32, u32, Vec<u32>)>,
    },
}

/// The kind bytes of task events begin here.
const TASK: u8 = 10;

/// Appends values to a message.
#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, v: u8) {
        self.0.push(v);
    }
    pub(super) fn u32(&mut self, v: u32) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    pub(super) fn u64(&mut self, v: u64) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    pub(super) fn bytes(&mut self, v: &[u8]) {
        self.u32(v.len() as u32);
        self.0.extend_from_slice(v);
    }
    pub(super) fn list<T>(&mut self, v: &[T], each: impl Fn(&mut Self, &T)) {
        self.u32(v.len() as u32);
        v.iter().for_each(|x| each(self, x));
    }
    pub(super) fn prog(&mut self, p: &ProgSpec) {
        self.u32(p.prog);
        self.u32(p.prog_type);
        self.bytes(&p.name);
        self.list(&p.maps, |w, m| w.u32(*m));
    }
    fn link_kind(&mut self, kind: LinkKind) {
        match kind {
            LinkKind::Uprobe => self.u8(0),
            LinkKind::Syscall(e) => {
                self.u8(1);
                self.u8((e.side == Side::Exit).into());
                self.u8(e.context as u8);
                self.u32(e.nr.unwrap_or(u32::MAX));
                self.u64(e.cookie);
            }
            LinkKind::Task(e) => {
                self.u8(TASK + e.kind as u8);
                self.u64(e.cookie);
            }
            LinkKind::Sample(e) => {
                self.u8(2);
                self.u64(e.period);
                self.u32(e.cpu.unwrap_or(u32::MAX));
                self.u64(e.cookie);
            }
        }
    }
    fn link(&mut self, l: &LinkSpec) {
        self.link_kind(l.kind);
        self.u32(l.link);
        self.u32(l.prog);
        self.u8(l.ret.into());
        self.u32(l.pid as u32);
        self.u64(l.dev);
        self.u64(l.ino);
        self.bytes(&l.path);
        self.list(&l.points, |w, p| {
            w.u64(p.offset);
            w.u64(p.ref_ctr_offset);
            w.u64(p.cookie);
        });
    }
    fn map_row(&mut self, m: &MapRow) {
        for v in [m.map, m.map_type, m.key_size, m.value_size, m.max_entries] {
            self.u32(v);
        }
        self.bytes(&m.name);
    }
}

/// Takes values off a message; every step checks what is left.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Errno> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Errno::BADMSG)?;
        self.0 = tail;
        Ok(head)
    }
    pub(super) fn u8(&mut self) -> Result<u8, Errno> {
        Ok(self.take(1)?[0])
    }
    pub(super) fn u32(&mut self) -> Result<u32, Errno> {
        self.take(4)?.try_into().map(u32::from_le_bytes).map_err(|_| Errno::BADMSG)
    }
    pub(super) fn u64(&mut self) -> Result<u64, Errno> {
        self.take(8)?.try_into().map(u64::from_le_bytes).map_err(|_| Errno::BADMSG)
    }
    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, Errno> {
        let n = self.u32()? as usize;
        Ok(self.take(n)?.to_vec())
    }
    pub(super) fn list<T>(&mut self, each: impl Fn(&mut Self) -> Result<T, Errno>) -> Result<Vec<T>, Errno> {
        let n = self.u32()? as usize;
        // Every element takes at least one byte, so a length beyond the rest is a lie.
        if n > self.0.len() {
            return Err(Errno::BADMSG);
        }
        (0..n).map(|_| each(self)).collect()
    }
    pub(super) fn prog(&mut self) -> Result<ProgSpec, Errno> {
        Ok(ProgSpec {
            prog: self.u32()?,
            prog_type: self.u32()?,
            name: self.bytes()?,
            maps: self.list(Self::u32)?,
        })
    }
    fn point(&mut self) -> Result<Point, Errno> {
        Ok(Point { offset: self.u64()?, ref_ctr_offset: self.u64()?, cookie: self.u64()? })
    }
    fn link_kind(&mut self) -> Result<LinkKind, Errno> {
        Ok(match self.u8()? {
            0 => LinkKind::Uprobe,
            1 => LinkKind::Syscall(SyscallEvent {
                side: if self.u8()? == 0 { Side::Enter } else { Side::Exit },
                context: match self.u8()? {
                    0 => CallContext::Record,
                    1 => CallContext::Arguments,
                    _ => CallContext::Function,
                },
                nr: Some(self.u32()?).filter(|nr| *nr != u32::MAX),
                cookie: self.u64()?,
            }),
            2 => LinkKind::Sample(SampleEvent {
                period: self.u64()?,
                cpu: Some(self.u32()?).filter(|cpu| *cpu != u32::MAX),
                cookie: self.u64()?,
            }),
            kind => {
                let kinds = [TaskKind::Fork, TaskKind::Exec, TaskKind::Exit];
                let kind = kinds.into_iter().find(|k| TASK + *k as u8 == kind).ok_or(Errno::BADMSG)?;
                LinkKind::Task(TaskEvent { kind, cookie: self.u64()? })
            }
        })
    }
    fn link(&mut self) -> Result<LinkSpec, Errno> {
        Ok(LinkSpec {
            kind: self.link_kind()?,
            link: self.u32()?,
            prog: self.u32()?,
            ret: self.u8()? != 0,
            pid: self.u32()? as i32,
            dev: self.u64()?,
            ino: self.u64()?,
            path: self.bytes()?,
            points: self.list(Self::point)?,
        })
    }
    fn map_row(&mut self) -> Result<MapRow, Errno> {
        Ok(MapRow {
            map: self.u32()?,
            map_type: self.u32()?,
            key_size: self.u32()?,
            value_size: self.u32()?,
            max_entries: self.u32()?,
            name: self.bytes()?,
        })
    }
    fn task_row(&mut self) -> Result<Row, Errno> {
        let mut half = || u16::try_from(self.u32()?).map_err(|_| Errno::BADMSG);
        Ok(Row { field: half()?, offset: half()? })
    }
    fn agent(&mut self) -> Result<(i32, u32, u32, Vec<u32>), Errno> {
        Ok((self.u32()? as i32, self.u32()?, self.u32()?, self.list(Reader::u32)?))
    }
}

mod kind {
    pub const HELLO: u8 = 1;
    pub const WELCOME: u8 = 2;
    pub const MAP: u8 = 3;
    pub const PERF_SLOT: u8 = 4;
    pub const PROG: u8 = 5;
    pub const LINK: u8 = 6;
    pub const UNLINK: u8 = 7;
    pub const DROP: u8 = 8;
    pub const SYNC: u8 = 9;
    pub const ACK: u8 = 10;
    pub const LIST: u8 = 11;
    pub const LISTING: u8 = 12;
    pub const TASK: u8 = 20;
    pub const INSPECT: u8 = 23;
    pub const INSPECTED: u8 = 24;
    pub const MEMBER: u8 = 13;
    pub const TEXT: u8 = 21;
}

impl Message {
    /// The message as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        match self {
            Self::Hello { version } => (w.u8(kind::HELLO), w.u32(*version)).1,
            Self::Welcome { session, owner, cpus } => {
                w.u8(kind::WELCOME);
                w.u64(*session);
                w.u32(*owner);
                w.u32(*cpus);
            }
            Self::Map { map } => (w.u8(kind::MAP), w.u32(*map)).1,
            Self::PerfSlot { map, index } => (w.u8(kind::PERF_SLOT), w.u32(*map), w.u32(*index)).2,
            Self::Task { rows } => {
                w.u8(kind::TASK);
                w.list(rows, |w, r| (w.u32(r.field.into()), w.u32(r.offset.into())).1);
            }
            Self::Member { container, object, present } => {
                w.u8(kind::MEMBER);
                w.u32(*container);
                w.u32(*object);
                w.u8((*present).into());
            }
            Self::Prog(p) => (w.u8(kind::PROG), w.prog(p)).1,
            Self::Link(l) => (w.u8(kind::LINK), w.link(l)).1,
            Self::Unlink { link } => (w.u8(kind::UNLINK), w.u32(*link)).1,
            Self::Drop { progs, maps } => {
                w.u8(kind::DROP);
                w.list(progs, |w, v| w.u32(*v));
                w.list(maps, |w, v| w.u32(*v));
            }
            Self::Sync { seq } => (w.u8(kind::SYNC), w.u64(*seq)).1,
            Self::Ack { seq, sites, refused, failed } => {
                w.u8(kind::ACK);
                w.u64(*seq);
                w.u32(*sites);
                w.u32(*refused);
                w.list(failed, |w, v| w.u32(*v));
            }
            Self::List => w.u8(kind::LIST),
            Self::Text => w.u8(kind::TEXT),
            Self::Inspect(request) => (w.u8(kind::INSPECT), w.bytes(request)).1,
            Self::Inspected(reply) => (w.u8(kind::INSPECTED), w.bytes(reply)).1,
            Self::Listing { pid, command, progs, links, maps, agents } => {
                w.u8(kind::LISTING);
                w.u32(*pid as u32);
                w.bytes(command);
                w.list(progs, Writer::prog);
                w.list(links, Writer::link);
                w.list(maps, Writer::map_row);
                w.list(agents, |w, (pid, sites, refused, failed)| {
                    [*pid as u32, *sites, *refused].iter().for_each(|v| w.u32(*v));
                    w.list(failed, |w, v| w.u32(*v));
                });
            }
        }
        w.0
    }

    /// Reads a message; `EBADMSG` for anything that [`Message::encode`] does not produce.
    pub fn decode(bytes: &[u8]) -> Result<Self, Errno> {
        let mut r = Reader(bytes);
        let msg = match r.u8()? {
            kind::HELLO => Self::Hello { version: r.u32()? },
            kind::WELCOME => Self::Welcome { session: r.u64()?, owner: r.u32()?, cpus: r.u32()? },
            kind::MAP => Self::Map { map: r.u32()? },
            kind::PERF_SLOT => Self::PerfSlot { map: r.u32()?, index: r.u32()? },
            kind::TASK => Self::Task { rows: r.list(Reader::task_row)? },
            kind::MEMBER => Self::Member { container: r.u32()?, object: r.u32()?, present: r.u8()? == 1 },
            kind::PROG => Self::Prog(r.prog()?),
            kind::LINK => Self::Link(r.link()?),
            kind::UNLINK => Self::Unlink { link: r.u32()? },
            kind::DROP => Self::Drop { progs: r.list(Reader::u32)?, maps: r.list(Reader::u32)? },
            kind::SYNC => Self::Sync { seq: r.u64()? },
            kind::ACK => {
                Self::Ack { seq: r.u64()?, sites: r.u32()?, refused: r.u32()?, failed: r.list(Reader::u32)? }
            }
            kind::LIST => Self::List,
            kind::TEXT => Self::Text,
            kind::INSPECT => Self::Inspect(r.bytes()?),
            kind::INSPECTED => Self::Inspected(r.bytes()?),
            kind::LISTING => Self::Listing {
                pid: r.u32()? as i32,
                command: r.bytes()?,
                progs: r.list(Reader::prog)?,
                links: r.list(Reader::link)?,
                maps: r.list(Reader::map_row)?,
                agents: r.list(Reader::agent)?,
            },
            _ => return Err(Errno::BADMSG),
        };
        if r.0.is_empty() { Ok(msg) } else { Err(Errno::BADMSG) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link() -> LinkSpec {
        let points = vec![Point { offset: 1, ref_ctr_offset: 2, cookie: 3 }; 3];
        let (kind, path) = (LinkKind::Uprobe, b"/bin/x".to_vec());
        LinkSpec { kind, link: 7, prog: 8, ret: true, pid: -1, dev: 5, ino: 6, path, points }
    }

    fn syscall_link() -> LinkSpec {
        let event =
            SyscallEvent { side: Side::Exit, nr: Some(62), context: CallContext::Record, cookie: 1 << 33 };
        LinkSpec { kind: LinkKind::Syscall(event), points: vec![], path: vec![], ..link() }
    }

    fn sample_link() -> LinkSpec {
        let event = SampleEvent { period: 5_025_125, cpu: Some(1), cookie: 1 << 34 };
        LinkSpec { kind: LinkKind::Sample(event), points: vec![], path: vec![], ..link() }
    }

    fn samples() -> Vec<Message> {
        let prog = ProgSpec { prog: 1, prog_type: 2, name: b"p".to_vec(), maps: vec![1, 2] };
        let map = MapRow { map: 1, map_type: 2, key_size: 4, value_size: 8, max_entries: 3, name: vec![] };
        vec![
            Message::Hello { version: VERSION },
            Message::Welcome { session: 1 << 40, owner: 3, cpus: 2 },
            Message::Map { map: 9 },
            Message::PerfSlot { map: 9, index: 1 },
            Message::Task { rows: vec![Row { field: 3, offset: 0x123 }] },
            Message::Member { container: 9, object: 1, present: true },
            Message::Prog(prog.clone()),
            Message::Link(link()),
            Message::Link(syscall_link()),
            Message::Link(sample_link()),
            Message::Unlink { link: 7 },
            Message::Drop { progs: vec![1], maps: vec![2, 3] },
            Message::Sync { seq: 77 },
            Message::Ack { seq: 77, sites: 1, refused: 2, failed: vec![9, 8] },
            Message::List,
            Message::Text,
            Message::Inspect(vec![1, 2]),
            Message::Inspected(vec![]),
            Message::Listing {
                pid: 12,
                command: b"bpftrace".to_vec(),
                progs: vec![prog],
                links: vec![link()],
                maps: vec![map],
                agents: vec![(1, 2, 3, vec![4])],
            },
        ]
    }

    #[test]
    fn every_message_survives_encoding() {
        for msg in samples() {
            assert_eq!(Message::decode(&msg.encode()), Ok(msg));
        }
    }

    #[test]
    fn a_truncated_or_longer_message_is_refused() {
        for msg in samples() {
            let mut bytes = msg.encode();
            for len in 0..bytes.len() {
                assert!(Message::decode(&bytes[..len]).is_err(), "{msg:?} cut to {len}");
            }
            bytes.push(0);
            assert_eq!(Message::decode(&bytes), Err(Errno::BADMSG));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(&bytes);
        }
    }
}
