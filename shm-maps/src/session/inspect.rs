//! What one tool asks another's session about its objects: `bpftool`, or anything that goes by ids; and what tools ask the
//! process that holds pinned objects.
//!
//! A connection carries one [`Request`] and one [`Reply`], with the object's descriptor where it has one.

use super::stats::Runs;
use super::wire::{LinkSpec, Message, Point, ProgSpec};
use super::{sealed, sock};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// A kind of object that has ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Maps; the descriptor is the memfd.
    Map,
    /// Programs; the descriptor is the sealed image.
    Prog,
    /// Links; without a descriptor: holding one would keep the link.
    Link,
    /// BTF; the descriptor is the sealed blob.
    Btf,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The ids of all objects of a kind.
    Ids(Kind),
    /// One object.
    Get(Kind, u32),
    /// What program runs at the event behind this descriptor of the tool (`BPF_TASK_FD_QUERY`).
    Event(i32),
    /// What the link with this id attaches, for whoever is to keep it attached.
    Specs(u32),
    /// What is stored in a map that holds programs or maps.
    Members(u32),
    /// Whether run statistics are wanted has changed: look, and answer when every process counts accordingly.
    Stats,
    /// The holder: keep this object for as long as there is a file at this path, which is to be made. A link comes with
    /// the asking tool's descriptor.
    Pin(Kind, u32, Vec<u8>),
    /// The holder: what is kept for the file with this device and inode.
    Pinned(u64, u64),
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgRow {
    /// Id, type, name and maps.
    pub spec: ProgSpec,
    /// `bpf_prog_info.tag`.
    pub tag: [u8; 8],
    /// Nanoseconds since boot.
    pub load_time: u64,
    /// Id of its BTF, 0 for none.
    pub btf: u32,
    /// Bytes of its context that it reads.
    pub ctx_bytes: u32,
    /// `attr.expected_attach_type`.
    pub attach_type: u32,
    /// Whether its licence is compatible with the GPL.
    pub gpl: bool,
    /// Its instructions, with map ids in place of descriptors.
    pub insns: Vec<u8>,
    /// What this session counted of its runs.
    pub runs: Runs,
    /// Whether this session loaded it, or keeps it.
    pub own: bool,
}

/// A link, as `struct bpf_link_info` has it but for the text, which stands where the tool has room for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRow {
    /// Id.
    pub id: u32,
    /// `BPF_LINK_TYPE_*`.
    pub link_type: u32,
    /// Id of its program.
    pub prog: u32,
    /// The part of the struct that depends on the type, with no buffers.
    pub words: [u64; 6],
    /// The path or name that it speaks of.
    pub text: Vec<u8>,
    /// The places of a uprobe_multi link.
    pub points: Vec<Point>,
    /// Whether that link was given references and cookies.
    pub given: (bool, bool),
    /// Whether this session made it, or keeps it.
    pub own: bool,
}

/// A program at an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRow {
    /// Id of the program.
    pub prog: u32,
    /// `enum bpf_task_fd_type`.
    pub fd_type: u32,
    /// Offset in the file or function.
    pub offset: u64,
    /// Address of the function.
    pub addr: u64,
    /// File, function or tracepoint.
    pub name: Vec<u8>,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Ids, ascending.
    Ids(Vec<u32>),
    /// A map: everything stands in its memfd.
    Map,
    /// A program.
    Prog(ProgRow),
    /// A link.
    Link(LinkRow),
    /// BTF, with the kernel's name for it, empty for a program's.
    Btf(Vec<u8>),
    /// A program at an event.
    Event(EventRow),
    /// An errno.
    Refused(i32),
    /// What a link attaches, with the ids it has in agents.
    Specs(Vec<LinkSpec>),
    /// Keys and the ids of what is stored there.
    Members(Vec<(Vec<u8>, u32)>),
    /// It is done.
    Done,
    /// A pinned object; a link with a descriptor that keeps it attached.
    Pinned(Kind, u32),
}

/// Replies longer than this travel as a file.
const INLINE_MAX: usize = 64 * 1024;

/// Asks at the socket `path`; waits for the answer as long as connecting may take, or `limit` if that is given.
pub fn ask(
    path: &Path,
    request: Request,
    fd: Option<BorrowedFd>,
    limit: Option<Duration>,
) -> Result<(Reply, Option<OwnedFd>), Errno> {
    let sock = sock::connect(path)?;
    limit.map_or(Ok(()), |limit| sock::set_timeout(&sock, limit))?;
    sock::send(sock.as_fd(), &Message::Inspect(request).encode(), fd.as_slice())?;
    read_answer(sock.as_fd())
}

fn read_answer(sock: BorrowedFd) -> Result<(Reply, Option<OwnedFd>), Errno> {
    let msg = sock::recv(sock, false)?;
    let mut fds = msg.fds.into_iter();
    let message = match Message::decode(&msg.bytes)? {
        Message::InspectedFile => Message::decode(&sealed::read(fds.next().ok_or(Errno::PROTO)?.as_fd())?)?,
        message => message,
    };
    let Message::Inspected(reply) = message else { return Err(Errno::PROTO) };
    Ok((reply, fds.next()))
}

/// Answers with the object's descriptor.
pub fn answer(sock: BorrowedFd, reply: Reply, fd: Option<BorrowedFd>) -> Result<(), Errno> {
    let bytes = Message::Inspected(reply).encode();
    if bytes.len() <= INLINE_MAX {
        return sock::send(sock, &bytes, fd.as_slice());
    }
    let file = sealed::create("bpftime-reply", &bytes)?;
    let fds: Vec<BorrowedFd> = [file.as_fd()].into_iter().chain(fd).collect();
    sock::send(sock, &Message::InspectedFile.encode(), &fds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::wire::{decode, encode};

    fn replies() -> Vec<Reply> {
        let spec = ProgSpec { prog: 1, prog_type: 2, name: b"p".to_vec(), maps: vec![1, 2], stats: 3 };
        let point = Point { offset: 1, ref_ctr_offset: 2, cookie: 3 };
        vec![
            Reply::Members(vec![(b"key".to_vec(), 5)]),
            Reply::Done,
            Reply::Pinned(Kind::Link, 9),
            Reply::Ids(vec![1, 5, 9]),
            Reply::Map,
            Reply::Prog(ProgRow {
                spec,
                tag: *b"12345678",
                load_time: 1 << 40,
                btf: 3,
                ctx_bytes: 4,
                attach_type: 5,
                gpl: true,
                insns: vec![0x95, 0, 0, 0, 0, 0, 0, 0],
                runs: Runs { count: 1, nanos: 2, missed: 3 },
                own: true,
            }),
            Reply::Link(LinkRow {
                id: 1,
                link_type: 7,
                prog: 2,
                words: [1, 2, 3, 4, 5, 6],
                text: b"/x".to_vec(),
                points: vec![point.clone(); 2],
                given: (false, true),
                own: false,
            }),
            Reply::Btf(b"vmlinux".to_vec()),
            Reply::Event(EventRow { prog: 1, fd_type: 4, offset: 5, addr: 6, name: b"f".to_vec() }),
            Reply::Refused(2),
        ]
    }

    #[test]
    fn questions_and_answers_survive_encoding() {
        let pin = Request::Pin(Kind::Prog, 3, b"/p".to_vec());
        for q in
            [Request::Ids(Kind::Btf), Request::Get(Kind::Link, 7), Request::Event(-1), Request::Stats, pin]
        {
            assert_eq!(decode(&encode(&q)), Ok(q));
        }
        for reply in replies() {
            let bytes = encode(&reply);
            assert!((0..bytes.len()).all(|n| decode::<Reply>(&bytes[..n]).is_err()), "{reply:?} cut");
            assert_eq!(decode(&bytes), Ok(reply));
        }
    }
    #[test]
    fn a_long_answer_arrives_with_the_descriptor() {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let (near, far) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        for len in [0, 100_000] {
            let reply = Reply::Ids((0..len).collect());
            answer(far.as_fd(), reply.clone(), Some(far.as_fd())).unwrap();
            let (received, fd) = read_answer(near.as_fd()).unwrap();
            assert_eq!((received, fd.is_some()), (reply, true));
        }
    }
}
