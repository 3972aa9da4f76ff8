//! Parts of values found by the names of their types, where the kernel looks for them: among the members of a struct, of
//! structs inside of it, and in arrays; not behind typedefs or qualifiers, and not in unions.

use super::{FieldKind, Fields, KINDS, LIST_HEAD, MAX_FIELDS, RB_ROOT, RES_SPIN_LOCK, SPIN_LOCK};

/// `MAX_RESOLVE_DEPTH`: structs in structs.
const DEPTH: usize = 4;

/// A member of a struct, or what an array in it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    /// Its type.
    pub type_id: u32,
    /// How many there are, one behind the other.
    pub count: u32,
    /// Bytes from the struct's start to the first.
    pub at: u32,
}

/// BTF, as far as values go. Types are numbered from 1 on; an id that is none has no name, no size and no members.
pub trait Types {
    /// How many types there are.
    fn count(&self) -> u32;
    /// A type's own name.
    fn name(&self, id: u32) -> &[u8];
    /// Whether it is a struct itself.
    fn is_struct(&self, id: u32) -> bool;
    /// Bytes of a value.
    fn size_of(&self, id: u32) -> Option<u32>;
    /// The members of a struct that are no bit fields, each once.
    fn members(&self, id: u32) -> Vec<Element>;
    /// Type and number of what an array holds.
    fn array(&self, id: u32) -> Option<(u32, u32)>;
    /// The type tag of what a pointer points to.
    fn tag_of_pointer(&self, id: u32) -> Option<&[u8]>;
    /// Whether a struct has a member with a tag `contains:TYPE:MEMBER`, as the head of a list must.
    fn says_what_it_contains(&self, id: u32) -> bool;
}

/// Why the parts of a value cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unclear {
    /// More than there may be: E2BIG.
    TooMany,
    /// In an array, of another size, without the lock they need: EINVAL.
    Invalid,
    /// There should be some, but none is where it could be: EFAULT.
    Nowhere,
}

/// The parts of a map's value. As in the kernel, a value whose parts cannot be told has none.
pub fn of_map(types: &impl Types, value: u32) -> Fields {
    fields(types, value, |_| true).unwrap_or_default()
}

/// What BPF_BTF_LOAD looks at: structs with parts of some kinds.
///
/// # Errors
/// When the parts of one cannot be told.
pub fn check_structs(types: &impl Types) -> Result<(), Unclear> {
    let early = |e: &Element| kind_of(types, e.type_id).is_some_and(|kind| kind.checked_early);
    for id in (1..=types.count()).filter(|id| types.members(*id).iter().any(early)) {
        if fields(types, id, |kind| kind.checked_early)?.is_empty() {
            return Err(Unclear::Nowhere);
        }
    }
    Ok(())
}

fn fields(types: &impl Types, id: u32, wanted: fn(&FieldKind) -> bool) -> Result<Fields, Unclear> {
    let mut search = Search { types, wanted, found: Vec::new() };
    search.collect(id, 0, DEPTH)?;
    search.found.sort_by_key(|(at, _)| *at);
    let mut fields = Fields::default();
    for (at, kind) in search.found {
        fields.push(kind, at).map_err(|_| Unclear::TooMany)?;
    }
    let locks = [SPIN_LOCK, RES_SPIN_LOCK].into_iter().filter(|lock| fields.has(*lock)).count();
    // What is linked is under the value's lock.
    let links = fields.has(LIST_HEAD) || fields.has(RB_ROOT);
    if locks > 1 || links && locks == 0 { Err(Unclear::Invalid) } else { Ok(fields) }
}

/// Which part a type is: by its name, or by the tag of a pointer to a struct.
fn kind_of(types: &impl Types, type_id: u32) -> Option<FieldKind> {
    let (name, pointer) = match types.tag_of_pointer(type_id) {
        Some(tag) => (tag, true),
        None if types.is_struct(type_id) => (types.name(type_id), false),
        None => return None,
    };
    KINDS.into_iter().find(|kind| kind.pointer == pointer && kind.name.as_bytes() == name)
}

/// What an array holds, arrays of arrays included; anything else is itself.
fn held(types: &impl Types, mut of: Element) -> Element {
    for _ in 0..DEPTH {
        let Some((type_id, count)) = types.array(of.type_id) else { break };
        of = Element { type_id, count: of.count.saturating_mul(count), ..of };
    }
    of
}

struct Search<'a, T> {
    types: &'a T,
    wanted: fn(&FieldKind) -> bool,
    found: Vec<(u32, FieldKind)>,
}

impl<T: Types> Search<'_, T> {
    fn collect(&mut self, id: u32, base: u32, depth: usize) -> Result<(), Unclear> {
        for member in self.types.members(id) {
            let member = held(self.types, member);
            let at = base.checked_add(member.at).ok_or(Unclear::Invalid)?;
            let member = Element { at, ..member };
            match kind_of(self.types, member.type_id).filter(self.wanted) {
                Some(LIST_HEAD | RB_ROOT) if !self.types.says_what_it_contains(id) => {
                    return Err(Unclear::Invalid);
                }
                Some(kind) => self.part(kind, member)?,
                None if depth > 0 && member.count > 0 => self.inside(member, depth - 1)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Parts in a row: only of pointers may there be more than one.
    fn part(&mut self, kind: FieldKind, Element { type_id, count, at }: Element) -> Result<(), Unclear> {
        if !at.is_multiple_of(kind.align) {
            return Ok(());
        }
        if self.types.size_of(type_id) != Some(kind.size) || count > 1 && !kind.pointer {
            return Err(Unclear::Invalid);
        }
        let more_than_enough = MAX_FIELDS as u32 + 1;
        self.found.extend((0..count.min(more_than_enough)).map(|n| (at.saturating_add(n * kind.size), kind)));
        Ok(())
    }

    /// Structs in a row.
    fn inside(&mut self, Element { type_id, count, at }: Element, depth: usize) -> Result<(), Unclear> {
        let mut inner = Search { types: self.types, wanted: self.wanted, found: Vec::new() };
        inner.collect(type_id, 0, depth)?;
        if count > 1 && inner.found.iter().any(|(_, kind)| !kind.pointer) {
            return Err(Unclear::Invalid);
        }
        let size = self.types.size_of(type_id).unwrap_or(0);
        for n in 0..if inner.found.is_empty() { 0 } else { count } {
            if self.found.len() > MAX_FIELDS {
                return Err(Unclear::TooMany);
            }
            let base = n.checked_mul(size).and_then(|off| at.checked_add(off)).ok_or(Unclear::Invalid)?;
            self.found.extend(inner.found.iter().map(|(off, kind)| (base.saturating_add(*off), *kind)));
        }
        Ok(())
    }
}
