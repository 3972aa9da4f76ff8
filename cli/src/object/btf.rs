//! BTF (kernel documentation, `Documentation/bpf/btf.rst`): types of an object or of the running kernel.

use bpftime_abi::field::find::{Element, Types};
use std::collections::HashMap;
use std::sync::OnceLock;
use thiserror::Error;

/// Bytes that are no BTF.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    #[error("BTF has magic {0:#x}, want 0xeb9f")]
    Magic(u16),
    #[error("BTF ends inside of {0}")]
    Short(&'static str),
    #[error("BTF type {id} has kind {kind}, the last known one is 19")]
    Kind { id: u32, kind: u32 },
}

/// A member of a struct or union.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: u32,
    pub ty: u32,
    pub bit_off: u32,
    /// Bits of a bit field, 0 for others.
    pub bits: u32,
}

/// A variable in a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InSection {
    pub var: u32,
    pub off: u32,
}

/// What a type is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Void,
    Int {
        size: u32,
        signed: bool,
    },
    Float {
        size: u32,
    },
    Ptr(u32),
    Array {
        elem: u32,
        len: u32,
    },
    Struct {
        size: u32,
        members: Vec<Member>,
    },
    Union {
        size: u32,
        members: Vec<Member>,
    },
    Enum {
        size: u32,
        signed: bool,
        values: Vec<(u32, i64)>,
    },
    Fwd,
    Typedef(u32),
    /// const, volatile, restrict, type tags.
    Modifier(u32),
    Func,
    FuncProto,
    Var(u32),
    Section(Vec<InSection>),
    DeclTag,
}

/// A named type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    pub name: u32,
    pub kind: Kind,
}

/// Types by id, and the strings they name.
#[derive(Debug)]
pub struct Btf {
    types: Vec<Type>,
    strings: Vec<u8>,
    names: OnceLock<HashMap<Vec<u8>, Vec<u32>>>,
}

/// Reads little-endian words one after the other.
pub struct Words<'a>(pub &'a [u8]);

impl Words<'_> {
    pub fn u32(&mut self, what: &'static str) -> Result<u32, BtfError> {
        let (word, rest) = self.0.split_first_chunk::<4>().ok_or(BtfError::Short(what))?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*word))
    }
}

/// Bytes of a section that its header describes: offset and length behind the header.
pub fn part(bytes: &[u8], header: u32, off: u32, len: u32) -> Result<&[u8], BtfError> {
    let start = header as usize + off as usize;
    bytes.get(start..start.saturating_add(len as usize)).ok_or(BtfError::Short("a section"))
}

/// The length of a header that begins with BTF's magic.
pub fn header(bytes: &[u8]) -> Result<(Words<'_>, u32), BtfError> {
    let mut words = Words(bytes);
    let magic = words.u32("the header")? as u16;
    if magic != 0xeb9f {
        return Err(BtfError::Magic(magic));
    }
    let len = words.u32("the header")?;
    Ok((words, len))
}

impl Btf {
    /// Parses a `.BTF` section or `/sys/kernel/btf/vmlinux`.
    pub fn parse(bytes: &[u8]) -> Result<Btf, BtfError> {
        let (mut h, len) = header(bytes)?;
        let (type_off, type_len) = (h.u32("the header")?, h.u32("the header")?);
        let (str_off, str_len) = (h.u32("the header")?, h.u32("the header")?);
        let strings = part(bytes, len, str_off, str_len)?.to_vec();
        let mut words = Words(part(bytes, len, type_off, type_len)?);
        let mut types = vec![Type { name: 0, kind: Kind::Void }];
        while !words.0.is_empty() {
            types.push(one(&mut words, types.len() as u32)?);
        }
        Ok(Btf { types, strings, names: OnceLock::new() })
    }

    /// No types at all: an object without BTF.
    pub fn none() -> Btf {
        let void = Type { name: 0, kind: Kind::Void };
        Btf { types: vec![void], strings: vec![], names: OnceLock::new() }
    }

    /// A type; an id that does not exist is void.
    pub fn get(&self, id: u32) -> &Type {
        self.types.get(id as usize).unwrap_or(&self.types[0])
    }

    /// A string.
    pub fn text(&self, off: u32) -> &str {
        let bytes = self.strings.get(off as usize..).unwrap_or(&[]);
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).unwrap_or("")
    }

    /// The name of a type.
    pub fn name(&self, id: u32) -> &str {
        self.text(self.get(id).name)
    }

    /// The type behind const, volatile, restrict and tags, and typedefs.
    pub fn resolved(&self, id: u32) -> u32 {
        self.behind(id, |kind| match kind {
            Kind::Modifier(to) | Kind::Typedef(to) => Some(*to),
            _ => None,
        })
    }

    /// The type behind const, volatile, restrict and tags.
    pub fn unmodified(&self, id: u32) -> u32 {
        self.behind(id, |kind| if let Kind::Modifier(to) = kind { Some(*to) } else { None })
    }

    /// Follows at most as many steps as there may be in sane types, so that a circle ends.
    fn behind(&self, mut id: u32, step: impl Fn(&Kind) -> Option<u32>) -> u32 {
        for _ in 0..64 {
            match step(&self.get(id).kind) {
                Some(to) => id = to,
                None => break,
            }
        }
        id
    }

    /// Bytes of a type.
    pub fn size(&self, id: u32) -> u32 {
        self.size_within(id, 32)
    }

    fn size_within(&self, id: u32, depth: u32) -> u32 {
        match &self.get(self.resolved(id)).kind {
            Kind::Int { size, .. }
            | Kind::Float { size }
            | Kind::Struct { size, .. }
            | Kind::Union { size, .. }
            | Kind::Enum { size, .. } => *size,
            Kind::Ptr(_) => 8,
            Kind::Array { elem, len } if depth > 0 => self.size_within(*elem, depth - 1).saturating_mul(*len),
            Kind::Var(ty) if depth > 0 => self.size_within(*ty, depth - 1),
            _ => 0,
        }
    }

    /// Members of a struct or union.
    pub fn members(&self, id: u32) -> Option<&[Member]> {
        match &self.get(id).kind {
            Kind::Struct { members, .. } | Kind::Union { members, .. } => Some(members),
            _ => None,
        }
    }

    /// All types with this name, flavours (`name___suffix`) included.
    pub fn named(&self, name: &str) -> &[u32] {
        let names = self.names.get_or_init(|| {
            let mut names: HashMap<Vec<u8>, Vec<u32>> = HashMap::new();
            for id in 1..self.types.len() as u32 {
                let name = essential(self.name(id));
                if !name.is_empty() {
                    names.entry(name.as_bytes().to_vec()).or_default().push(id);
                }
            }
            names
        });
        names.get(name.as_bytes()).map_or(&[], Vec::as_slice)
    }

    /// The variables of a section, by its name.
    pub fn section(&self, name: &str) -> &[InSection] {
        let found = self.types.iter().find_map(|ty| match &ty.kind {
            Kind::Section(vars) if self.text(ty.name) == name => Some(vars),
            _ => None,
        });
        found.map_or(&[], Vec::as_slice)
    }
}

impl Types for Btf {
    fn count(&self) -> u32 {
        self.types.len() as u32 - 1
    }
    fn name(&self, id: u32) -> &[u8] {
        Btf::name(self, id).as_bytes()
    }
    fn is_struct(&self, id: u32) -> bool {
        matches!(self.get(id).kind, Kind::Struct { .. })
    }
    fn size_of(&self, id: u32) -> Option<u32> {
        Some(self.size(id))
    }
    fn members(&self, id: u32) -> Vec<Element> {
        let members = Btf::members(self, id).unwrap_or_default().iter();
        let whole = members.filter(|m| m.bits == 0 && m.bit_off.is_multiple_of(8));
        whole.map(|m| Element { type_id: m.ty, count: 1, at: m.bit_off / 8 }).collect()
    }
    fn array(&self, id: u32) -> Option<(u32, u32)> {
        match self.get(id).kind {
            Kind::Array { elem, len } => Some((elem, len)),
            _ => None,
        }
    }
    fn tag_of_pointer(&self, id: u32) -> Option<&[u8]> {
        let Kind::Ptr(to) = self.get(id).kind else { return None };
        // Of the modifiers only tags have names.
        let tag = Btf::name(self, to);
        (matches!(self.get(to).kind, Kind::Modifier(_)) && !tag.is_empty()).then_some(tag.as_bytes())
    }
    /// The kernel looks at the tag; here nothing is listed.
    fn says_what_it_contains(&self, _id: u32) -> bool {
        true
    }
}

/// A name without its flavour.
pub fn essential(name: &str) -> &str {
    match name.rfind("___") {
        Some(at) if at > 0 => &name[..at],
        _ => name,
    }
}

fn one(words: &mut Words<'_>, id: u32) -> Result<Type, BtfError> {
    let mut next = || words.u32("a type");
    let (name, info, size) = (next()?, next()?, next()?);
    let (count, kind, flag) = (info & 0xffff, info >> 24 & 0x1f, info >> 31 != 0);
    let mut list = |n: u32| (0..n).map(|_| next()).collect::<Result<Vec<u32>, _>>();
    let kind = match kind {
        1 => Kind::Int { size, signed: list(1)?[0] >> 24 & 1 != 0 },
        2 => Kind::Ptr(size),
        3 => {
            let array = list(3)?;
            Kind::Array { elem: array[0], len: array[2] }
        }
        4 => Kind::Struct { size, members: members(&list(3 * count)?, flag) },
        5 => Kind::Union { size, members: members(&list(3 * count)?, flag) },
        6 => {
            let value = |w: u32| if flag { i64::from(w as i32) } else { i64::from(w) };
            let values = list(2 * count)?.chunks(2).map(|w| (w[0], value(w[1]))).collect();
            Kind::Enum { size, signed: flag, values }
        }
        7 => Kind::Fwd,
        8 => Kind::Typedef(size),
        9..=11 | 18 => Kind::Modifier(size),
        12 => Kind::Func,
        13 => {
            list(2 * count)?;
            Kind::FuncProto
        }
        14 => {
            list(1)?;
            Kind::Var(size)
        }
        15 => {
            let vars = list(3 * count)?;
            Kind::Section(vars.chunks(3).map(|w| InSection { var: w[0], off: w[1] }).collect())
        }
        16 => Kind::Float { size },
        17 => {
            list(1)?;
            Kind::DeclTag
        }
        19 => {
            let value = |w: &[u32]| (u64::from(w[2]) << 32 | u64::from(w[1])) as i64;
            let values = list(3 * count)?.chunks(3).map(|w| (w[0], value(w))).collect();
            Kind::Enum { size, signed: flag, values }
        }
        _ => return Err(BtfError::Kind { id, kind }),
    };
    Ok(Type { name, kind })
}

fn members(words: &[u32], bit_fields: bool) -> Vec<Member> {
    let member = |w: &[u32]| {
        let (bit_off, bits) = if bit_fields { (w[2] & 0xff_ffff, w[2] >> 24) } else { (w[2], 0) };
        Member { name: w[0], ty: w[1], bit_off, bits }
    };
    words.chunks(3).map(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flavour_is_cut_off() {
        assert_eq!(["task___old", "task", "___x"].map(essential), ["task", "task", "___x"]);
    }

    #[test]
    fn nonsense_is_an_error() {
        assert_eq!(Btf::parse(&[1, 2, 3, 4]).unwrap_err(), BtfError::Magic(0x201));
        assert_eq!(Btf::parse(&[]).unwrap_err(), BtfError::Short("the header"));
    }
}
