//! BTF as bytes: finding structs and where their members stand
//! (<https://docs.kernel.org/bpf/btf.html>). Nothing in it is trusted: every length is checked, every walk is bounded.

use bpftime_abi::field::find::{Element, Types};
use std::collections::HashMap;

/// `BTF_MAGIC`, version 1.
const MAGIC: [u8; 3] = [0x9f, 0xeb, 1];
/// `struct btf_header`.
const HEADER_LEN: usize = 24;
/// `struct btf_type`.
const TYPE_LEN: usize = 12;
/// Typedefs and qualifiers in a row.
const QUALIFIERS: usize = 32;
/// Unnamed structs within unnamed structs; each level may look through many.
const NESTED: usize = 4;

/// `BTF_KIND_*`.
mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FUNC: u32 = 12;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// The sections of a blob.
#[derive(Clone, Copy)]
struct Sections<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

/// Checks the header: magic, version, and that both sections lie within the data.
fn sections(data: &[u8]) -> Option<Sections<'_>> {
    if data.get(..3)? != MAGIC {
        return None;
    }
    let [hdr_len, type_off, type_len, str_off, str_len] = [4, 8, 12, 16, 20].map(|at| word(data, at));
    let body = data.get(Some(hdr_len? as usize).filter(|n| *n >= HEADER_LEN)?..)?;
    let part = |off: u32, len: u32| body.get(off as usize..(off as usize).checked_add(len as usize)?);
    let strings = part(str_off?, str_len?)?;
    Some(Sections { types: part(type_off?, type_len?)?, strings }).filter(|_| !strings.is_empty())
}

/// Whether the data looks like BTF, as the kernel checks first.
pub fn is_sound(data: &[u8]) -> bool {
    sections(data).is_some()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Bytes behind the `struct btf_type` of a kind with `vlen` elements.
fn extra(kind: u32, vlen: usize) -> usize {
    match kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * vlen,
        kind::ENUM | kind::FUNC_PROTO => 8 * vlen,
        _ => 0,
    }
}

/// A type's fixed part.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    vlen: usize,
    /// Size or type, as the kind has it.
    size_or_type: u32,
    /// Where its elements stand in the section.
    elements: usize,
}

/// A parsed blob.
pub struct Btf<'a> {
    sections: Sections<'a>,
    /// Where type `i + 1` stands in the section.
    at: Vec<u32>,
    structs: HashMap<&'a [u8], u32>,
}

impl<'a> Btf<'a> {
    /// Indexes the types; `None` where the data is not BTF or ends in the middle of a type.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let sections = sections(data)?;
        let mut btf = Self { sections, at: Vec::new(), structs: HashMap::new() };
        let mut at = 0;
        while at < sections.types.len() {
            let t = btf.read(at)?;
            btf.at.push(at as u32);
            if t.kind == kind::STRUCT && t.name != 0 {
                let id = btf.at.len() as u32;
                btf.structs.entry(btf.string(t.name)).or_insert(id);
            }
            at = t.elements + extra(t.kind, t.vlen);
        }
        (at == sections.types.len()).then_some(btf)
    }

    /// Ids and names of all functions.
    pub fn functions(&self) -> impl Iterator<Item = (u32, &'a [u8])> {
        let types = (1..=self.at.len() as u32).filter_map(|id| Some((id, self.get(id)?)));
        types.filter(|(_, t)| t.kind == kind::FUNC).map(|(id, t)| (id, self.string(t.name)))
    }

    /// Names and sizes of all structs, in order.
    #[cfg(test)]
    pub fn names(&self) -> Vec<(String, u32)> {
        let size = |id: &u32| self.get(*id).map_or(0, |t| t.size_or_type);
        let row = |(name, id): (&&[u8], &u32)| (String::from_utf8_lossy(name).into_owned(), size(id));
        let mut all: Vec<_> = self.structs.iter().map(row).collect();
        all.sort();
        all
    }

    /// `kind_flag`: the offset's upper byte is the size of a bit field.
    fn offset_mask(&self, t: Type) -> Option<u32> {
        Some(if word(self.sections.types, t.elements - 8)? >> 31 == 1 { 0x00ff_ffff } else { u32::MAX })
    }

    fn read(&self, at: usize) -> Option<Type> {
        let types = self.sections.types;
        let [name, info, size_or_type] = [0, 4, 8].map(|n| word(types, at + n));
        let (kind, vlen) = (info? >> 24 & 0x1f, info? as usize & 0xffff);
        Some(Type { name: name?, kind, vlen, size_or_type: size_or_type?, elements: at + TYPE_LEN })
    }

    fn string(&self, at: u32) -> &'a [u8] {
        let rest = self.sections.strings.get(at as usize..).unwrap_or_default();
        rest.split(|b| *b == 0).next().unwrap_or_default()
    }

    fn get(&self, id: u32) -> Option<Type> {
        self.read(*self.at.get(id.checked_sub(1)? as usize)? as usize)
    }

    /// The type behind typedefs and qualifiers, and behind an array its elements'.
    fn bare(&self, mut id: u32) -> Option<Type> {
        for _ in 0..QUALIFIERS {
            let t = self.get(id)?;
            id = match t.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    t.size_or_type
                }
                kind::ARRAY => word(self.sections.types, t.elements)?,
                _ => return Some(t),
            };
        }
        None
    }

    /// Bytes of a value of this type; `None` for types without values.
    pub fn size_of(&self, mut id: u32) -> Option<u32> {
        let mut elements = 1u32;
        for _ in 0..QUALIFIERS {
            let t = self.get(id)?;
            id = match t.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    t.size_or_type
                }
                kind::ARRAY => {
                    elements = elements.checked_mul(word(self.sections.types, t.elements + 8)?)?;
                    word(self.sections.types, t.elements)?
                }
                kind::INT
                | kind::STRUCT
                | kind::UNION
                | kind::ENUM
                | kind::ENUM64
                | kind::FLOAT
                | kind::DATASEC => return t.size_or_type.checked_mul(elements),
                kind::PTR => return elements.checked_mul(8),
                _ => return None,
            };
        }
        None
    }

    /// Byte offset of a member, named as in C without subscripts: `ns.inum`. Members of unnamed structs and unions count
    /// as their parents', as in C.
    pub fn member(&self, in_struct: &str, path: &str) -> Option<u32> {
        let mut t = self.get(*self.structs.get(in_struct.as_bytes())?)?;
        let mut offset = 0u32;
        for name in path.split('.') {
            let (at, member) = self.find(t, name.as_bytes(), NESTED)?;
            offset = offset.checked_add(at)?;
            t = self.bare(member)?;
        }
        Some(offset)
    }

    /// Offset and type of a member of `t`.
    fn find(&self, t: Type, wanted: &[u8], depth: usize) -> Option<(u32, u32)> {
        if !matches!(t.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        let mask = self.offset_mask(t)?;
        for i in 0..t.vlen {
            let [name, id, bits] = [0, 4, 8].map(|n| word(self.sections.types, t.elements + 12 * i + n));
            let (name, id, at) = (name?, id?, (bits? & mask) / 8);
            if name != 0 && self.string(name) == wanted {
                return Some((at, id));
            }
            if name == 0
                && depth > 0
                && let Some((inner, id)) = self.bare(id).and_then(|t| self.find(t, wanted, depth - 1))
            {
                return Some((at.checked_add(inner)?, id));
            }
        }
        None
    }
}

impl Types for Btf<'_> {
    fn count(&self) -> u32 {
        self.at.len() as u32
    }

    fn name(&self, id: u32) -> &[u8] {
        self.get(id).map_or(&[], |t| self.string(t.name))
    }

    fn is_struct(&self, id: u32) -> bool {
        self.get(id).is_some_and(|t| t.kind == kind::STRUCT)
    }

    fn size_of(&self, id: u32) -> Option<u32> {
        Btf::size_of(self, id)
    }

    fn members(&self, id: u32) -> Vec<Element> {
        let Some(t) = self.get(id).filter(|t| t.kind == kind::STRUCT) else { return vec![] };
        let types = self.sections.types;
        let mask = self.offset_mask(t).unwrap_or(0);
        let member = |i: usize| {
            let [type_id, bits] = [4, 8].map(|n| word(types, t.elements + 12 * i + n));
            let bits = bits? & mask;
            bits.is_multiple_of(8).then_some(Element { type_id: type_id?, count: 1, at: bits / 8 })
        };
        (0..t.vlen).filter_map(member).collect()
    }

    fn array(&self, id: u32) -> Option<(u32, u32)> {
        let array = self.get(id).filter(|t| t.kind == kind::ARRAY)?;
        let [element, count] = [0, 8].map(|n| word(self.sections.types, array.elements + n));
        Some((element?, count?))
    }

    fn tag_of_pointer(&self, id: u32) -> Option<&[u8]> {
        let pointer = self.get(id).filter(|t| t.kind == kind::PTR)?;
        let tag = self.get(pointer.size_or_type).filter(|t| t.kind == kind::TYPE_TAG)?;
        Some(self.string(tag.name))
    }

    fn says_what_it_contains(&self, id: u32) -> bool {
        let mut tags =
            (1..=self.count()).filter_map(|tag| self.get(tag).filter(|t| t.kind == kind::DECL_TAG));
        tags.any(|tag| tag.size_or_type == id && self.string(tag.name).starts_with(b"contains:"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_unnamed_and_named_parts_are_found() {
        let btf = Btf::parse(super::super::OURS).expect("our blob parses");
        assert_eq!(btf.member("pt_regs", "r15"), Some(0));
        assert_eq!(btf.member("pt_regs", "di"), Some(112));
        let (ns, inum) = (btf.member("pid_namespace", "ns"), btf.member("ns_common", "inum"));
        assert_eq!(btf.member("pid_namespace", "ns.inum"), ns.zip(inum).map(|(a, b)| a + b));
        assert_eq!(btf.member("pt_regs", "nosuch"), None);
        assert_eq!(btf.member("nosuch", "di"), None);
    }

    #[test]
    fn a_cut_or_scribbled_blob_is_refused_or_harmless() {
        let good = super::super::OURS;
        for len in (0..good.len()).step_by(7) {
            assert!(Btf::parse(&good[..len]).is_none(), "cut to {len}");
        }
        for at in (24..good.len()).step_by(11) {
            let mut bad = good.to_vec();
            bad[at] ^= 0xa5;
            if let Some(btf) = Btf::parse(&bad) {
                btf.member("task_struct", "real_parent");
                btf.member("pid", "numbers.nr");
            }
        }
    }
}
