//! Messages between a session's broker (in the tool) and its agents, and `bpftime ps`.
//!
//! One enum, encoded by postcard. Decoding never trusts a length and rejects what is left over. The two ends need not be of
//! one build: whoever changes a type here raises [`VERSION`], which stays in the first field of the first variant.

use super::inspect;
use bpftime_abi::task::Row;
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of this protocol; the two ends must agree.
pub const VERSION: u32 = 8;

/// Where in a file a link's probes stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Offset in the file.
    pub offset: u64,
    /// File offset of the USDT semaphore, 0 for none.
    pub ref_ctr_offset: u64,
    /// What bpf_get_attach_cookie returns.
    pub cookie: u64,
}

/// Which side of a system call an event stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Side {
    /// Before the kernel does it.
    Enter,
    /// After, with its result.
    Exit,
}

/// What a program at a system call gets as its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SampleEvent {
    /// Nanoseconds of a thread's processor time between two samples.
    pub period: u64,
    /// Only samples on this CPU; `None` for all.
    pub cpu: Option<u32>,
    /// What bpf_get_attach_cookie returns.
    pub cookie: u64,
}

/// An event that the kernel counts in each thread: fields of `struct perf_event_attr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Counter {
    /// `PERF_TYPE_*`.
    pub type_: u32,
    /// Which accesses, for a watchpoint.
    pub bp_type: u32,
    /// Which event of the type.
    pub config: u64,
    /// More of that; a watchpoint's address.
    pub config1: u64,
    /// More of that; a watchpoint's length.
    pub config2: u64,
    /// Occurrences from one sample to the next, or samples per second.
    pub period: u64,
    /// Which of the two, and what is left out.
    pub flags: u64,
}

/// Samples of what the kernel counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CounterEvent {
    /// What.
    pub counter: Counter,
    /// Only samples on this CPU; `None` for all.
    pub cpu: Option<u32>,
    /// What bpf_get_attach_cookie returns.
    pub cookie: u64,
}

/// What happens to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TaskKind {
    /// sched_process_fork: it made another.
    Fork,
    /// sched_process_exec: it began a new program.
    Exec,
    /// sched_process_exit: it ends.
    Exit,
}

/// Tasks of the target that come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskEvent {
    /// Which event.
    pub kind: TaskKind,
    /// What bpf_get_attach_cookie returns.
    pub cookie: u64,
}

/// What a link attaches to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkKind {
    /// The points of a file that [`LinkSpec`] names.
    Uprobe,
    /// Those, and the return of each function: one program that knows which of the two it is at.
    Session,
    /// System calls; the link has no file and no points.
    Syscall(SyscallEvent),
    /// Processor time; the link has no file and no points.
    Sample(SampleEvent),
    /// Tasks that come and go; likewise.
    Task(TaskEvent),
    /// What the kernel counts; likewise.
    Counter(CounterEvent),
}

impl LinkKind {
    /// Whether the link has a file and points.
    pub fn is_of_file(self) -> bool {
        matches!(self, Self::Uprobe | Self::Session)
    }
}

/// A link to functions of a file (uprobe, uretprobe, USDT), or to system calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgSpec {
    /// Id in its session.
    pub prog: u32,
    /// `BPF_PROG_TYPE_*`.
    pub prog_type: u32,
    /// Name given at load.
    pub name: Vec<u8>,
    /// Session ids of its maps, in the order of the image's map indices.
    pub maps: Vec<u32>,
    /// Its row of run statistics in the session page; [`NO_STATS`] for none.
    pub stats: u32,
}

/// A program without a row of statistics: there are more programs than rows.
pub const NO_STATS: u32 = u32::MAX;

/// One map, for listings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// What an agent has of a session in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// Probes of the session that are in the process's text.
    pub sites: u32,
    /// Probes that were wanted there and could not be placed.
    pub refused: u32,
    /// Bits of [`unseen`]: what a link asks for and does not get there.
    pub unseen: u32,
    /// Links that were taken off there because their program faulted or did not end.
    pub failed: Vec<u32>,
}

/// Bits of [`InForce::unseen`].
pub mod unseen {
    /// System calls of code that cannot be rewritten, in a process where the kernel may not hand them over.
    pub const CALLS: u32 = 1;
    /// Events that the kernel would not open there.
    pub const EVENTS: u32 = 2;
}

/// One process that is connected to a session, for listings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRow {
    /// Its pid.
    pub pid: i32,
    /// What it has of the session.
    pub in_force: InForce,
}

/// A session as `bpftime ps` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Pid of the tool.
    pub pid: i32,
    /// Its command line.
    pub command: Vec<u8>,
    /// Programs.
    pub progs: Vec<ProgSpec>,
    /// Links.
    pub links: Vec<LinkSpec>,
    /// Maps.
    pub maps: Vec<MapRow>,
    /// Connected agents.
    pub agents: Vec<AgentRow>,
}

/// What travels on a session's socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
        /// In this process.
        in_force: InForce,
    },
    /// Tool: whether runs are to be counted (BPF_ENABLE_STATS).
    Stats {
        /// Whether they are.
        on: bool,
    },
    /// `bpftime ps`: list yourself.
    List,
    /// `bpftime trace-pipe`: the session page, please. The same message with its descriptor is the answer.
    Text,
    /// Another tool: a question about objects.
    Inspect(inspect::Request),
    /// Tool: the answer, with the object's descriptor.
    Inspected(inspect::Reply),
    /// Tool: the answer stands in a file, which comes before the object's descriptor.
    InspectedFile,
    /// Tool: answer to [`Message::List`].
    Listing(Listing),
}

/// The bytes of a message: postcard's, which has no other meaning for them.
pub(super) fn encode(message: &impl Serialize) -> Vec<u8> {
    // Only sequences of unknown length cannot be written, and there are none here: were there one, the peer would
    // refuse an empty message.
    postcard::to_allocvec(message).unwrap_or_default()
}

/// What [`encode`] made; `EBADMSG` for anything else, and for what is left over.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Errno> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(Errno::BADMSG),
    }
}

impl Message {
    /// The message as bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a message; `EBADMSG` for anything that [`Message::encode`] does not produce.
    pub fn decode(bytes: &[u8]) -> Result<Self, Errno> {
        decode(bytes)
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

    fn counter_link() -> LinkSpec {
        let counter =
            Counter { type_: 1, bp_type: 2, config: 3, config1: 4, config2: 5, period: 1 << 35, flags: 6 };
        let event = CounterEvent { counter, cpu: None, cookie: 9 };
        LinkSpec { kind: LinkKind::Counter(event), points: vec![], path: vec![], ..link() }
    }

    fn in_force() -> InForce {
        InForce { sites: 1, refused: 2, unseen: unseen::CALLS, failed: vec![9, 8] }
    }

    fn samples() -> Vec<Message> {
        let prog = ProgSpec { prog: 1, prog_type: 2, name: b"p".to_vec(), maps: vec![1, 2], stats: 3 };
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
            Message::Link(LinkSpec { kind: LinkKind::Session, ..link() }),
            Message::Link(syscall_link()),
            Message::Link(sample_link()),
            Message::Link(counter_link()),
            Message::Unlink { link: 7 },
            Message::Drop { progs: vec![1], maps: vec![2, 3] },
            Message::Sync { seq: 77 },
            Message::Ack { seq: 77, in_force: in_force() },
            Message::Stats { on: true },
            Message::List,
            Message::Text,
            Message::Inspect(inspect::Request::Event(-1)),
            Message::Inspected(inspect::Reply::Refused(2)),
            Message::Listing(Listing {
                pid: 12,
                command: b"bpftrace".to_vec(),
                progs: vec![prog],
                links: vec![link()],
                maps: vec![map],
                agents: vec![AgentRow { pid: 1, in_force: in_force() }],
            }),
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
