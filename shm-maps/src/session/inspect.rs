//! What one tool asks another's session about its objects: `bpftool`, or anything that goes by ids.
//!
//! A connection carries one [`Request`] and one [`Reply`], with the object's descriptor where it has one.

use super::wire::{ProgSpec, Reader, Writer};
use rustix::io::Errno;

/// A kind of object that has ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The ids of all objects of a kind.
    Ids(Kind),
    /// One object.
    Get(Kind, u32),
    /// What program runs at the event behind this descriptor of the tool (`BPF_TASK_FD_QUERY`).
    Event(i32),
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// A link, as `struct bpf_link_info` has it but for the text, which stands where the tool has room for it.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// A program at an event.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

impl Kind {
    fn read(r: &mut Reader) -> Result<Self, Errno> {
        Ok(match r.u8()? {
            0 => Self::Map,
            1 => Self::Prog,
            2 => Self::Link,
            3 => Self::Btf,
            _ => return Err(Errno::BADMSG),
        })
    }
}

impl Request {
    /// The request as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        match self {
            Self::Ids(kind) => (w.u8(0), w.u8(*kind as u8)).1,
            Self::Get(kind, id) => (w.u8(1), w.u8(*kind as u8), w.u32(*id)).2,
            Self::Event(fd) => (w.u8(2), w.u32(*fd as u32)).1,
        }
        w.0
    }

    /// Reads a request; `EBADMSG` for anything that [`Request::encode`] does not produce.
    pub fn decode(bytes: &[u8]) -> Result<Self, Errno> {
        let mut r = Reader(bytes);
        let request = match r.u8()? {
            0 => Self::Ids(Kind::read(&mut r)?),
            1 => Self::Get(Kind::read(&mut r)?, r.u32()?),
            2 => Self::Event(r.u32()? as i32),
            _ => return Err(Errno::BADMSG),
        };
        if r.0.is_empty() { Ok(request) } else { Err(Errno::BADMSG) }
    }
}

impl Reply {
    /// The reply as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        match self {
            Self::Ids(ids) => (w.u8(0), w.list(ids, |w, id| w.u32(*id))).1,
            Self::Map => w.u8(1),
            Self::Prog(p) => write_prog(&mut w, p),
            Self::Link(l) => write_link(&mut w, l),
            Self::Btf(name) => (w.u8(4), w.bytes(name)).1,
            Self::Event(e) => {
                w.u8(5);
                w.u32(e.prog);
                w.u32(e.fd_type);
                w.u64(e.offset);
                w.u64(e.addr);
                w.bytes(&e.name);
            }
            Self::Refused(errno) => (w.u8(6), w.u32(*errno as u32)).1,
        }
        w.0
    }

    /// Reads a reply; `EBADMSG` for anything that [`Reply::encode`] does not produce.
    pub fn decode(bytes: &[u8]) -> Result<Self, Errno> {
        let mut r = Reader(bytes);
        let reply = match r.u8()? {
            0 => Self::Ids(r.list(Reader::u32)?),
            1 => Self::Map,
            2 => Self::Prog(read_prog(&mut r)?),
            3 => Self::Link(read_link(&mut r)?),
            4 => Self::Btf(r.bytes()?),
            5 => Self::Event(EventRow {
                prog: r.u32()?,
                fd_type: r.u32()?,
                offset: r.u64()?,
                addr: r.u64()?,
                name: r.bytes()?,
            }),
            6 => Self::Refused(r.u32()? as i32),
            _ => return Err(Errno::BADMSG),
        };
        if r.0.is_empty() { Ok(reply) } else { Err(Errno::BADMSG) }
    }
}

fn write_prog(w: &mut Writer, p: &ProgRow) {
    w.u8(2);
    w.prog(&p.spec);
    w.u64(u64::from_le_bytes(p.tag));
    w.u64(p.load_time);
    [p.btf, p.ctx_bytes, p.attach_type, p.gpl.into()].into_iter().for_each(|n| w.u32(n));
    w.bytes(&p.insns);
}

fn read_prog(r: &mut Reader) -> Result<ProgRow, Errno> {
    Ok(ProgRow {
        spec: r.prog()?,
        tag: r.u64()?.to_le_bytes(),
        load_time: r.u64()?,
        btf: r.u32()?,
        ctx_bytes: r.u32()?,
        attach_type: r.u32()?,
        gpl: r.u32()? != 0,
        insns: r.bytes()?,
    })
}

fn write_link(w: &mut Writer, l: &LinkRow) {
    w.u8(3);
    [l.id, l.link_type, l.prog].into_iter().for_each(|n| w.u32(n));
    l.words.into_iter().for_each(|n| w.u64(n));
    w.bytes(&l.text);
}

fn read_link(r: &mut Reader) -> Result<LinkRow, Errno> {
    let (id, link_type, prog) = (r.u32()?, r.u32()?, r.u32()?);
    let mut words = [0; 6];
    for word in &mut words {
        *word = r.u64()?;
    }
    Ok(LinkRow { id, link_type, prog, words, text: r.bytes()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies() -> Vec<Reply> {
        let spec = ProgSpec { prog: 1, prog_type: 2, name: b"p".to_vec(), maps: vec![1, 2] };
        vec![
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
            }),
            Reply::Link(LinkRow {
                id: 1,
                link_type: 7,
                prog: 2,
                words: [1, 2, 3, 4, 5, 6],
                text: b"/x".to_vec(),
            }),
            Reply::Btf(b"vmlinux".to_vec()),
            Reply::Event(EventRow { prog: 1, fd_type: 4, offset: 5, addr: 6, name: b"f".to_vec() }),
            Reply::Refused(2),
        ]
    }

    #[test]
    fn questions_and_answers_survive_encoding() {
        for q in [Request::Ids(Kind::Btf), Request::Get(Kind::Link, 7), Request::Event(-1)] {
            assert_eq!(Request::decode(&q.encode()), Ok(q));
            assert_eq!(Request::decode(&q.encode()[1..]).ok().filter(|other| *other == q), None);
        }
        for reply in replies() {
            let bytes = reply.encode();
            assert!((0..bytes.len()).all(|n| Reply::decode(&bytes[..n]).is_err()), "{reply:?} cut");
            assert_eq!(Reply::decode(&bytes), Ok(reply));
        }
    }
}
