//! CO-RE: an object says which field of which kernel type an instruction is about; here it is looked up in the
//! running kernel's BTF, by name, and the instruction is rewritten
//! (`Documentation/bpf/llvm_reloc.rst`, "CO-RE Relocations").

use super::btf::{Btf, Kind, Member, essential};
use super::ext::CoRe;
use bpftime_vm::Insn;

/// `enum bpf_core_relo_kind`.
mod kind {
    pub const FIELD_BYTE_OFFSET: u32 = 0;
    pub const FIELD_BYTE_SIZE: u32 = 1;
    pub const FIELD_EXISTS: u32 = 2;
    pub const FIELD_SIGNED: u32 = 3;
    pub const FIELD_LSHIFT_U64: u32 = 4;
    pub const FIELD_RSHIFT_U64: u32 = 5;
    pub const TYPE_ID_LOCAL: u32 = 6;
    pub const TYPE_ID_TARGET: u32 = 7;
    pub const TYPE_EXISTS: u32 = 8;
    pub const TYPE_SIZE: u32 = 9;
    pub const ENUMVAL_EXISTS: u32 = 10;
    pub const ENUMVAL_VALUE: u32 = 11;
    pub const TYPE_MATCHES: u32 = 12;
}

/// The id that libbpf gives a call in place of an instruction whose relocation fails. It only hurts where it
/// is reached.
const POISON: i32 = 0x0bad_2310;

/// Looks relocations of one object up in the kernel.
pub struct Resolver<'a> {
    pub local: &'a Btf,
    pub kernel: &'a Btf,
}

/// A field of a type: where it is, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    bit_off: u32,
    /// Bits of a bit field, 0 for others.
    bits: u32,
    ty: u32,
}

/// A step of a path: a member of that name, or an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step<'a> {
    Member(&'a str, u32),
    Element(u32),
}

impl Resolver<'_> {
    /// Rewrites the instruction (and, for `lddw`, the next) of a relocation.
    pub fn apply(&self, insns: &mut [Insn], relocation: &CoRe) {
        let at = relocation.off as usize / size_of::<Insn>();
        match self.value(relocation) {
            Some(new) => patch(insns, at, new.value, new.size.filter(|_| relocation.kind == 0)),
            None => poison(insns, at),
        }
    }

    fn value(&self, relocation: &CoRe) -> Option<New> {
        let path = self.local.text(relocation.path);
        match relocation.kind {
            kind::TYPE_ID_LOCAL => Some(New::of(u64::from(relocation.ty))),
            kind::TYPE_EXISTS | kind::TYPE_MATCHES => {
                Some(New::of(u64::from(self.target_type(relocation.ty).is_some())))
            }
            kind::TYPE_ID_TARGET => self.target_type(relocation.ty).map(|id| New::of(u64::from(id))),
            kind::TYPE_SIZE => {
                self.target_type(relocation.ty).map(|id| New::of(u64::from(self.kernel.size(id))))
            }
            kind::ENUMVAL_EXISTS => Some(New::of(u64::from(self.enumerator(relocation.ty, path).is_some()))),
            kind::ENUMVAL_VALUE => self.enumerator(relocation.ty, path).map(|x| New::of(x as u64)),
            _ => self.field_value(relocation, path),
        }
    }

    fn field_value(&self, relocation: &CoRe, path: &str) -> Option<New> {
        let found = self.field(relocation.ty, path);
        if relocation.kind == kind::FIELD_EXISTS {
            return Some(New::of(u64::from(found.is_some())));
        }
        let field = found?;
        let size = self.kernel.size(field.ty).max(1);
        let span = Span::of(&field, size);
        Some(match relocation.kind {
            kind::FIELD_BYTE_OFFSET => {
                let scalar = self.scalar(field.ty) && matches!(size, 1 | 2 | 4 | 8) && field.bits == 0;
                New { value: u64::from(span.off), size: scalar.then_some(size) }
            }
            kind::FIELD_BYTE_SIZE => New::of(u64::from(if field.bits == 0 { size } else { span.size })),
            kind::FIELD_SIGNED => New::of(u64::from(self.signed(field.ty))),
            kind::FIELD_LSHIFT_U64 => New::of(u64::from(64 - (span.shift + span.bits))),
            kind::FIELD_RSHIFT_U64 => New::of(u64::from(64 - span.bits)),
            _ => return None,
        })
    }

    /// A field of the kernel, by a path that is told in the object's types.
    fn field(&self, ty: u32, path: &str) -> Option<Field> {
        let root = self.local.resolved(ty);
        let steps = self.steps(root, path)?;
        let name = essential(self.local.name(root));
        let candidates = self.kernel.named(name).iter();
        candidates
            .filter(|id| self.kernel.members(**id).is_some() == self.local.members(root).is_some())
            .find_map(|id| self.follow(*id, &steps))
    }

    /// The steps of a path like `0:3:1`. The first one is an element of the type itself.
    fn steps(&self, root: u32, path: &str) -> Option<Vec<Step<'_>>> {
        let mut numbers = path.split(':').map(|n| n.parse::<u32>().ok());
        let mut steps = vec![Step::Element(numbers.next()??)];
        let mut ty = root;
        for n in numbers {
            let n = n?;
            ty = self.local.resolved(ty);
            if let Some(members) = self.local.members(ty) {
                let member = members.get(n as usize)?;
                // A member without a name is a step into it, which the kernel's type may lack.
                if member.name != 0 {
                    steps.push(Step::Member(self.local.text(member.name), member.ty));
                }
                ty = member.ty;
            } else if let Kind::Array { elem, .. } = self.local.get(ty).kind {
                steps.push(Step::Element(n));
                ty = elem;
            } else {
                return None;
            }
        }
        Some(steps)
    }

    fn follow(&self, root: u32, steps: &[Step<'_>]) -> Option<Field> {
        let mut field = Field { bit_off: 0, bits: 0, ty: root };
        for (n, step) in steps.iter().enumerate() {
            let ty = self.kernel.resolved(field.ty);
            match *step {
                Step::Element(at) if n == 0 => field.bit_off = at * self.kernel.size(ty) * 8,
                Step::Element(at) => {
                    let Kind::Array { elem, len } = self.kernel.get(ty).kind else { return None };
                    // An array of no known length goes on as far as one likes.
                    if len != 0 && at >= len {
                        return None;
                    }
                    field.bit_off += at * self.kernel.size(elem) * 8;
                    field.ty = elem;
                }
                Step::Member(name, local) => {
                    let (member, inside) = self.member(ty, name, 16)?;
                    if !self.alike(local, member.ty, 8) {
                        return None;
                    }
                    field.bit_off += inside;
                    (field.bits, field.ty) = (member.bits, member.ty);
                }
            }
        }
        Some(field)
    }

    /// A member by name, in members without names too, and its offset in bits.
    fn member(&self, ty: u32, name: &str, depth: u32) -> Option<(Member, u32)> {
        let members = self.kernel.members(self.kernel.resolved(ty))?;
        let direct = members.iter().find(|m| m.name != 0 && self.kernel.text(m.name) == name);
        if let Some(member) = direct {
            return Some((*member, member.bit_off));
        }
        let nameless = members.iter().filter(|m| m.name == 0 && depth > 0);
        nameless
            .filter_map(|m| self.member(m.ty, name, depth - 1).map(|(found, off)| (found, m.bit_off + off)))
            .next()
    }

    /// Whether a field of one type can stand for one of the other: the same sort of thing.
    fn alike(&self, local: u32, target: u32, depth: u32) -> bool {
        let (a, b) = (self.local.resolved(local), self.kernel.resolved(target));
        match (&self.local.get(a).kind, &self.kernel.get(b).kind) {
            (Kind::Struct { .. } | Kind::Union { .. }, Kind::Struct { .. } | Kind::Union { .. }) => true,
            (Kind::Array { elem: a, .. }, Kind::Array { elem: b, .. }) => {
                depth > 0 && self.alike(*a, *b, depth - 1)
            }
            (Kind::Enum { .. }, Kind::Enum { .. }) | (Kind::Fwd, Kind::Fwd) => {
                let (a, b) = (essential(self.local.name(a)), essential(self.kernel.name(b)));
                a.is_empty() || b.is_empty() || a == b
            }
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        }
    }

    /// A type of the kernel with the name and kind of one of the object.
    fn target_type(&self, ty: u32) -> Option<u32> {
        let local = self.local.unmodified(ty);
        let wanted = std::mem::discriminant(&self.local.get(local).kind);
        let same = |id: &&u32| std::mem::discriminant(&self.kernel.get(**id).kind) == wanted;
        self.kernel.named(essential(self.local.name(local))).iter().find(same).copied()
    }

    /// The kernel's value of an enumerator; the path is its number.
    fn enumerator(&self, ty: u32, path: &str) -> Option<i64> {
        let local = self.local.resolved(ty);
        let Kind::Enum { values, .. } = &self.local.get(local).kind else { return None };
        let name = essential(self.local.text(values.get(path.parse::<usize>().ok()?)?.0));
        let candidates = self.kernel.named(essential(self.local.name(local))).iter();
        candidates
            .filter_map(|id| match &self.kernel.get(*id).kind {
                Kind::Enum { values, .. } => {
                    values.iter().find(|(n, _)| essential(self.kernel.text(*n)) == name).map(|(_, x)| *x)
                }
                _ => None,
            })
            .next()
    }

    fn scalar(&self, ty: u32) -> bool {
        let kind = &self.kernel.get(self.kernel.resolved(ty)).kind;
        matches!(kind, Kind::Int { .. } | Kind::Ptr(_) | Kind::Enum { .. })
    }

    fn signed(&self, ty: u32) -> bool {
        match self.kernel.get(self.kernel.resolved(ty)).kind {
            Kind::Int { signed, .. } | Kind::Enum { signed, .. } => signed,
            _ => false,
        }
    }
}

/// What an instruction gets: a number, and for loads of plain numbers the bytes of the kernel's field.
struct New {
    value: u64,
    size: Option<u32>,
}

impl New {
    fn of(value: u64) -> New {
        New { value, size: None }
    }
}

/// The aligned unit of memory that holds a field, and the field in it, counted in bits from the bottom.
struct Span {
    off: u32,
    size: u32,
    shift: u32,
    bits: u32,
}

impl Span {
    fn of(field: &Field, type_size: u32) -> Span {
        if field.bits == 0 {
            return Span { off: field.bit_off / 8, size: type_size, shift: 0, bits: (type_size * 8).min(64) };
        }
        let mut size = type_size.min(8);
        let mut off = field.bit_off / 8 / size * size;
        // A field may cross the unit of its own type, in a packed struct.
        while field.bit_off + field.bits - off * 8 > size * 8 && size < 8 {
            size *= 2;
            off = field.bit_off / 8 / size * size;
        }
        Span { off, size, shift: field.bit_off - off * 8, bits: field.bits }
    }
}

/// Writes the number where the instruction keeps it.
fn patch(insns: &mut [Insn], at: usize, value: u64, size: Option<u32>) {
    let Some(insn) = insns.get_mut(at) else { return };
    match insn.class() {
        0 if insn.is_lddw() => {
            insn.imm = value as u32 as i32;
            if let Some(second) = insns.get_mut(at + 1) {
                second.imm = (value >> 32) as i32;
            }
        }
        // A load or store. The kernel's field may be wider or narrower than the object's.
        1..=3 => {
            insn.off = value as i16;
            if let Some(bits) = size.and_then(size_bits).filter(|_| insn.code >> 5 == 3) {
                insn.code = insn.code & !0x18 | bits;
            }
        }
        _ => insn.imm = value as i32,
    }
}

/// `BPF_W` and friends.
fn size_bits(bytes: u32) -> Option<u8> {
    Some(match bytes {
        1 => 0x10,
        2 => 0x08,
        4 => 0x00,
        8 => 0x18,
        _ => return None,
    })
}

fn poison(insns: &mut [Insn], at: usize) {
    let slots = if insns.get(at).is_some_and(|i| i.is_lddw()) { 2 } else { 1 };
    for insn in insns.iter_mut().skip(at).take(slots) {
        *insn = Insn::new(0x85, 0, 0, 0, POISON);
    }
}
