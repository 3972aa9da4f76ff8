//! What one tool asks another's session about its objects: `bpftool`, or anything that goes by ids.
//!
//! A connection carries one [`Request`] and one [`Reply`], with the object's descriptor where it has one.

use super::wire::ProgSpec;
use serde::{Deserialize, Serialize};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The ids of all objects of a kind.
    Ids(Kind),
    /// One object.
    Get(Kind, u32),
    /// What program runs at the event behind this descriptor of the tool (`BPF_TASK_FD_QUERY`).
    Event(i32),
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::wire::{decode, encode};

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
            assert_eq!(decode(&encode(&q)), Ok(q));
        }
        for reply in replies() {
            let bytes = encode(&reply);
            assert!((0..bytes.len()).all(|n| decode::<Reply>(&bytes[..n]).is_err()), "{reply:?} cut");
            assert_eq!(decode(&bytes), Ok(reply));
        }
    }
}
