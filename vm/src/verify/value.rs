//! What a register or a spilled slot holds.

use super::num::Scalar;
use crate::isa::MapIdx;
use bpftime_abi::helper::REGISTERS_SIZE;
use std::fmt;

/// Kinds of values. Everything but the first two is an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing that may be read.
    NotInit,
    /// A number.
    Scalar,
    /// The context of the program.
    Ctx,
    /// The stack of the frame with this index, relative to its r10.
    Stack(u8),
    /// A map itself.
    Map(MapIdx),
    /// A value of a map.
    MapValue(MapIdx),
    /// A key of a map, inside of a callback.
    MapKey(MapIdx),
    /// A ring buffer record of this many bytes.
    Record(u32),
    /// A function of the program.
    Func(u32),
    /// Memory of this many bytes that a dynptr gave out. It ends with the dynptr, by its reference.
    Slice(u32),
    /// Half of a dynptr, in a stack slot. Its reference is the dynptr's own.
    Dynptr(Dynptr),
    /// The address of a dynptr that a helper made, outside of the stack.
    DynptrAddr,
    /// What stands for an object of the kernel here: read-only.
    Object(Object),
}

/// Half of a dynptr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dynptr {
    /// Of a ring buffer record, which must be given up.
    pub record: bool,
    /// The half at the lower address.
    pub first: bool,
}

/// Objects that helpers hand out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// A task.
    Task,
    /// Its registers.
    Registers,
}

impl Object {
    /// The kernel's name of the type.
    pub const fn name(self) -> &'static str {
        match self {
            Object::Task => "task_struct",
            Object::Registers => "pt_regs",
        }
    }

    /// Bytes that loads may read. A task is not in memory: only the probe_read helpers see into it.
    pub const fn size(self) -> Option<i64> {
        match self {
            Object::Task => None,
            Object::Registers => Some(REGISTERS_SIZE as i64),
        }
    }
}

/// A value: a kind, and for addresses how far they were moved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Val {
    /// What it is.
    pub kind: Kind,
    /// An address that may be NULL instead; it cannot have been moved.
    pub nullable: bool,
    /// Constant part of an address's distance.
    pub off: i32,
    /// The number, or the variable part of an address's distance.
    pub num: Scalar,
    /// Values with the same id (not 0) are equal: scalars that one comparison refines together, addresses
    /// that one check frees from NULL together.
    pub id: u32,
    /// The reference that must be given up (not 0).
    pub reference: u32,
}

impl Val {
    /// Not initialised.
    pub const NOT_INIT: Val = Val { kind: Kind::NotInit, ..Val::scalar(Scalar::UNKNOWN) };
    /// Any number.
    pub const UNKNOWN: Val = Val::scalar(Scalar::UNKNOWN);

    /// A number.
    pub const fn scalar(num: Scalar) -> Val {
        Val { kind: Kind::Scalar, nullable: false, off: 0, num, id: 0, reference: 0 }
    }

    /// One number.
    pub const fn constant(x: u64) -> Val {
        Val::scalar(Scalar::of(x))
    }

    /// An address that was not moved.
    pub const fn pointer(kind: Kind) -> Val {
        Val { kind, ..Val::scalar(Scalar::of(0)) }
    }

    /// Whether it is a number.
    pub fn is_scalar(&self) -> bool {
        self.kind == Kind::Scalar
    }

    /// Whether it is an address.
    pub fn is_pointer(&self) -> bool {
        !matches!(self.kind, Kind::NotInit | Kind::Scalar)
    }

    /// The number, if it is one and known.
    pub fn known(&self) -> Option<u64> {
        if self.is_scalar() { self.num.constant() } else { None }
    }

    /// Whether it is the number 0.
    pub fn is_null(&self) -> bool {
        self.known() == Some(0)
    }

    /// The distance of an address, if it is known.
    pub fn fixed_off(&self) -> Option<i64> {
        self.num.constant().map(|var| i64::from(self.off).wrapping_add(var as i64))
    }

    /// The kernel's name of the type.
    pub fn type_name(&self) -> &'static str {
        match (self.kind, self.nullable) {
            (Kind::NotInit, _) => "?",
            (Kind::Scalar, _) => "scalar",
            (Kind::Ctx, _) => "ctx",
            (Kind::Stack(_), _) => "fp",
            (Kind::Map(_), false) => "map_ptr",
            // What a lookup in a map-in-map gave: the kernel calls it so until it is checked.
            (Kind::Map(_), true) => "map_value_or_null",
            (Kind::MapValue(_), false) => "map_value",
            (Kind::MapValue(_), true) => "map_value_or_null",
            (Kind::MapKey(_), _) => "map_key",
            (Kind::Record(_), false) => "ringbuf_mem",
            (Kind::Record(_), true) => "ringbuf_mem_or_null",
            (Kind::Func(_), _) => "func",
            (Kind::Slice(_), false) => "mem",
            (Kind::Slice(_), true) => "mem_or_null",
            (Kind::Dynptr(_) | Kind::DynptrAddr, _) => "dynptr_ptr",
            (Kind::Object(Object::Task), _) => "trusted_ptr_",
            (Kind::Object(Object::Registers), _) => "ptr_",
        }
    }
}

impl fmt::Display for Val {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(x) = self.known() {
            return write!(f, "{}", x as i64);
        }
        let mut parts = vec![];
        if self.id != 0 {
            parts.push(format!("id={}", self.id));
        }
        if self.reference != 0 {
            parts.push(format!("ref_obj_id={}", self.reference));
        }
        match self.kind {
            Kind::Map(MapIdx(m)) | Kind::MapValue(MapIdx(m)) | Kind::MapKey(MapIdx(m)) => {
                parts.push(format!("map={m}"));
            }
            Kind::Record(size) | Kind::Slice(size) => parts.push(format!("sz={size}")),
            _ => {}
        }
        let fixed = self.num.constant().is_some();
        if self.is_pointer() && !matches!(self.kind, Kind::Stack(_)) && self.off != 0 {
            parts.push(format!("off={}", self.off));
        }
        if !fixed {
            parts.extend(describe(&self.num));
        }
        write!(f, "{}", self.type_name())?;
        match self.kind {
            Kind::Stack(_) if fixed => write!(f, "{}", self.fixed_off().unwrap_or(0)),
            Kind::Stack(_) => write!(f, "{}({})", self.off, parts.join(",")),
            _ => write!(f, "({})", parts.join(",")),
        }
    }
}

/// What is known of a number that is not constant, as the kernel's log lists it.
fn describe(num: &Scalar) -> Vec<String> {
    let mut parts = vec![];
    let (wide, narrow, any) = (&num.wide, &num.narrow, &Scalar::UNKNOWN);
    let mut add = |name: &str, told: bool, value: String| {
        if told {
            parts.push(format!("{name}={value}"));
        }
    };
    add("smin", wide.smin != any.wide.smin, wide.smin.to_string());
    add("smax", wide.smax != any.wide.smax, wide.smax.to_string());
    add("umin", wide.umin != 0, wide.umin.to_string());
    add("umax", wide.umax != any.wide.umax, wide.umax.to_string());
    add("smin32", narrow.smin != any.narrow.smin && narrow.smin != wide.smin, narrow.smin.to_string());
    add("smax32", narrow.smax != any.narrow.smax && narrow.smax != wide.smax, narrow.smax.to_string());
    add("umin32", narrow.umin != 0 && narrow.umin != wide.umin, narrow.umin.to_string());
    add("umax32", narrow.umax != any.narrow.umax && narrow.umax != wide.umax, narrow.umax.to_string());
    if num.bits.mask != u64::MAX {
        parts.push(format!("var_off=({:#x}; {:#x})", num.bits.value, num.bits.mask));
    }
    parts
}
