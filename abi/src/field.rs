//! Parts of a map's values that are no data but belong to the kernel: locks, timers, pointers. One row each, as asked from
//! Linux 6.18 (`tests/tools/values.c create` asks again).

pub mod find;

use crate::map_type::*;

/// `BTF_FIELDS_MAX`: parts of one value.
pub const MAX_FIELDS: usize = 11;

/// What a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldKind {
    /// Its number in [`Fields`]; not 0.
    id: u32,
    /// The struct it is an instance of; of pointers the type tag.
    pub name: &'static str,
    /// Bytes.
    pub size: u32,
    /// What its offset is a multiple of; a part elsewhere is none.
    pub align: u32,
    /// Whether a value has at most one.
    pub once: bool,
    /// Map types whose values may have one; others refuse it with EOPNOTSUPP.
    pub maps: &'static [u32],
    /// What tracing programs cannot use yet, in the kernel's words, if they may not name a map that has one.
    pub untraced: Option<&'static str>,
    /// Whether BPF_BTF_LOAD looks at structs that have one.
    pub checked_early: bool,
    /// Whether it is a pointer with a type tag.
    pub pointer: bool,
}

const LOCKED: &[u32] = &[BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_TASK_STORAGE];
const TIMED: &[u32] = &[BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH, BPF_MAP_TYPE_ARRAY];
const OWNING: &[u32] = &[
    BPF_MAP_TYPE_HASH,
    BPF_MAP_TYPE_PERCPU_HASH,
    BPF_MAP_TYPE_LRU_HASH,
    BPF_MAP_TYPE_LRU_PERCPU_HASH,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_PERCPU_ARRAY,
    BPF_MAP_TYPE_TASK_STORAGE,
];

/// A part that is a struct of 8-aligned numbers.
const STRUCT: FieldKind = FieldKind {
    id: 0,
    name: "",
    size: 16,
    align: 8,
    once: false,
    maps: TIMED,
    untraced: None,
    checked_early: false,
    pointer: false,
};
const WORD: FieldKind = FieldKind { size: 4, align: 4, once: true, checked_early: true, ..STRUCT };
const POINTER: FieldKind = FieldKind { size: 8, maps: OWNING, checked_early: true, pointer: true, ..STRUCT };

/// `bpf_spin_lock(struct bpf_spin_lock *)`: what BPF_F_LOCK means.
pub const SPIN_LOCK: FieldKind =
    FieldKind { id: 1, name: "bpf_spin_lock", maps: LOCKED, untraced: Some("bpf_spin_lock"), ..WORD };
/// `bpf_res_spin_lock`, which kfuncs take.
pub const RES_SPIN_LOCK: FieldKind = FieldKind { id: 2, name: "bpf_res_spin_lock", ..SPIN_LOCK };
/// A timer.
pub const TIMER: FieldKind =
    FieldKind { id: 3, name: "bpf_timer", once: true, untraced: Some("bpf_timer"), ..STRUCT };
/// A work queue.
pub const WORKQUEUE: FieldKind = FieldKind { id: 4, name: "bpf_wq", untraced: Some("bpf_wq"), ..TIMER };
/// A count of references.
pub const REFCOUNT: FieldKind = FieldKind { id: 5, name: "bpf_refcount", maps: OWNING, ..WORD };
/// A pointer to a kernel object, which the map owns.
pub const KPTR: FieldKind = FieldKind { id: 6, name: "kptr", ..POINTER };
/// The same of each CPU.
pub const KPTR_PERCPU: FieldKind = FieldKind { id: 7, name: "percpu_kptr", ..POINTER };
/// A pointer to a kernel object that may be gone.
pub const KPTR_UNTRUSTED: FieldKind =
    FieldKind { id: 8, name: "kptr_untrusted", checked_early: false, ..POINTER };
/// A pointer to memory of user space that the kernel pins.
pub const UPTR: FieldKind =
    FieldKind { id: 9, name: "uptr", maps: &[BPF_MAP_TYPE_TASK_STORAGE], checked_early: false, ..POINTER };

/// The head of a list of objects, which kfuncs link.
pub const LIST_HEAD: FieldKind = FieldKind {
    id: 10,
    name: "bpf_list_head",
    untraced: Some("bpf_{list_head,rb_root}"),
    checked_early: true,
    ..STRUCT
};
/// The root of a tree of objects.
pub const RB_ROOT: FieldKind = FieldKind { id: 11, name: "bpf_rb_root", ..LIST_HEAD };

/// All kinds, by id.
pub const KINDS: [FieldKind; 11] = [
    SPIN_LOCK,
    RES_SPIN_LOCK,
    TIMER,
    WORKQUEUE,
    REFCOUNT,
    KPTR,
    KPTR_PERCPU,
    KPTR_UNTRUSTED,
    UPTR,
    LIST_HEAD,
    RB_ROOT,
];

/// A part of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// What it is.
    pub kind: FieldKind,
    /// Where it begins.
    pub at: u32,
}

impl Field {
    /// The bytes of a value that it takes.
    pub fn range(&self) -> core::ops::Range<usize> {
        self.at as usize..(self.at + self.kind.size) as usize
    }
}

/// The parts of a map's values, by offset. As words so that shared memory can hold them: the id of the kind in the upper
/// four bits, the offset in the others; 0 for none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields([u32; MAX_FIELDS]);

const OFFSET: u32 = 0x0fff_ffff;

impl Fields {
    /// Adds a part behind the others.
    ///
    /// # Errors
    /// When there are [`MAX_FIELDS`] already, one of its kind though there may be one only, or it lies too far behind.
    pub fn push(&mut self, kind: FieldKind, at: u32) -> Result<(), FieldsFull> {
        let free = self.0.iter_mut().find(|word| **word == 0);
        let Some(free) = free.filter(|_| at <= OFFSET) else { return Err(FieldsFull) };
        *free = kind.id << 28 | at;
        if kind.once && self.iter().filter(|f| f.kind == kind).count() > 1 {
            return Err(FieldsFull);
        }
        Ok(())
    }

    /// What untrusted words say, if values of `size` bytes can have such parts.
    pub fn checked(self, size: u32) -> Option<Fields> {
        let sound = |word: &u32| {
            let field = field(*word)?;
            let fits = (*word & OFFSET).checked_add(field.kind.size)? <= size;
            (fits && field.at.is_multiple_of(field.kind.align)).then_some(())
        };
        let used = self.0.iter().take_while(|word| **word != 0).count();
        let none_behind = self.0[used..].iter().all(|word| *word == 0);
        (none_behind && self.0[..used].iter().all(|word| sound(word).is_some())).then_some(self)
    }

    /// The parts.
    pub fn iter(&self) -> impl Iterator<Item = Field> + '_ {
        self.0.iter().map_while(|word| field(*word))
    }

    /// Whether values are data and nothing else.
    pub fn is_empty(&self) -> bool {
        self.0[0] == 0
    }

    /// Whether values have such a part.
    pub fn has(&self, kind: FieldKind) -> bool {
        self.iter().any(|field| field.kind == kind)
    }

    /// Zeroes the parts of a value.
    pub fn clear(&self, value: &mut [u8]) {
        for field in self.iter() {
            if let Some(bytes) = value.get_mut(field.range()) {
                bytes.fill(0);
            }
        }
    }
}

/// A value has more parts than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldsFull;

fn field(word: u32) -> Option<Field> {
    let kind = *KINDS.get(((word >> 28) as usize).checked_sub(1)?)?;
    Some(Field { kind, at: word & OFFSET })
}

const _: () = {
    let mut at = 0;
    while at < KINDS.len() {
        assert!(KINDS[at].id as usize == at + 1);
        at += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_kept_and_checked() {
        let mut fields = Fields::default();
        assert!(fields.is_empty() && fields.push(KPTR, 0).is_ok() && fields.push(SPIN_LOCK, 8).is_ok());
        assert!(fields.has(SPIN_LOCK) && !fields.has(TIMER));
        assert_eq!(fields.iter().map(|f| f.range()).collect::<Vec<_>>(), [0..8, 8..12]);
        assert_eq!(fields.checked(12), Some(fields));
        assert_eq!(fields.checked(11), None);
        assert_eq!(fields.push(SPIN_LOCK, 12), Err(FieldsFull));
        let mut value = [0xff; 16];
        Fields([6 << 28, 1 << 28 | 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]).clear(&mut value);
        assert_eq!(value, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    }

    #[test]
    fn forged_words_are_refused() {
        let forged = |words: &[u32]| {
            let mut all = [0; MAX_FIELDS];
            all[..words.len()].copy_from_slice(words);
            Fields(all).checked(64)
        };
        assert!(forged(&[1 << 28 | 60]).is_some());
        for bad in [&[1 << 28 | 61][..], &[1 << 28 | 2], &[15 << 28], &[0, 1 << 28], &[u32::MAX]] {
            assert_eq!(forged(bad), None, "{bad:x?}");
        }
    }
}
