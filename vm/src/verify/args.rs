//! Arguments of helpers.

use super::dynptr;
use super::error::{Check, Errno, Fail, access, invalid};
use super::explore::Verifier;
use super::memory::{RDONLY_PROG, Span, Use};
use super::state::{Byte, State, place};
use super::value::{Kind, Object, Val};
use crate::isa::{MAX_STACK, MapIdx, Reg};
use bpftime_abi::helper::{self, Arg, Proto};
use bpftime_abi::map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_BLOOM_FILTER};

/// A helper call while its arguments are checked.
pub(super) struct Call {
    pub at: usize,
    pub id: u32,
    /// The map among the arguments.
    pub map: Option<MapIdx>,
    /// The key among the arguments, if it is known.
    pub key: Option<u64>,
    /// The function among the arguments.
    pub callback: Option<u32>,
    /// What the callback gets.
    pub callback_ctx: Val,
    /// Bytes to reserve.
    pub alloc: u32,
    /// Most bytes of the memory that was sized last.
    pub size: u32,
    /// What is known of its size: the bits that are surely set.
    pub known_size: u64,
    /// The constant string among the arguments.
    pub string: Option<Vec<u8>>,
    /// The record that is given up.
    pub released: u32,
    /// The reference of the dynptr among the arguments.
    pub dynptr: u32,
    /// Stack to overwrite once all arguments are checked, and how many of its bytes are so for certain.
    pub written: Vec<(Span, u32)>,
}

impl Call {
    pub fn new(at: usize, id: u32) -> Call {
        Call {
            at,
            id,
            map: None,
            key: None,
            callback: None,
            callback_ctx: Val::constant(0),
            alloc: 0,
            size: 0,
            known_size: 0,
            string: None,
            released: 0,
            dynptr: 0,
            written: Vec::new(),
        }
    }
}

/// Memory that helpers take.
const MEMORY: &str = "fp, pkt, pkt_meta, map_key, map_value, mem, ringbuf_mem, buf, trusted_ptr_";
const MEMORY_OUT: &str = "fp, pkt, pkt_meta, map_key, map_value, mem, ringbuf_mem, buf, trusted_ptr_";

impl Verifier<'_> {
    /// Checks r1 to r5 against the prototype.
    pub fn arguments(&mut self, state: &mut State, proto: &Proto, call: &mut Call) -> Check {
        for (n, arg) in proto.args.iter().enumerate() {
            let Some(reg) = Reg::new(n as u8 + 1) else { continue };
            let val = self.read(state, reg)?;
            self.argument(state, *arg, reg, val, call)?;
        }
        self.map_use(call)?;
        for (span, sure) in std::mem::take(&mut call.written) {
            self.stack_passed(state, &span, Some(sure))?;
        }
        Ok(())
    }

    fn argument(&mut self, state: &mut State, arg: Arg, reg: Reg, val: Val, call: &mut Call) -> Check {
        let n = reg.index();
        match arg {
            Arg::Any => Ok(()),
            Arg::Map => match val.kind {
                Kind::Map(map) if !val.nullable => {
                    call.map = Some(map);
                    Ok(())
                }
                _ => mismatch(n, &val, "map_ptr"),
            },
            Arg::MapKey => {
                call.key = constant_key(state, &val);
                let size = self.map(call.map.unwrap_or(MapIdx(0))).key_size;
                self.element(state, reg, val, size, None, call)
            }
            Arg::MapValueOrNull if val.is_null() => Ok(()),
            Arg::MapValue | Arg::MapValueOrNull | Arg::MapValueOut => {
                let facts = self.map(call.map.unwrap_or(MapIdx(0)));
                let written = arg == Arg::MapValueOut && facts.map_type != BPF_MAP_TYPE_BLOOM_FILTER;
                // Without an element the value is cleared.
                self.element(state, reg, val, facts.value_size, written.then_some(facts.value_size), call)
            }
            Arg::Mem => memory_kind(n, &val, MEMORY),
            Arg::MemOut => memory_kind(n, &val, MEMORY_OUT),
            Arg::Size | Arg::SizeOrZero => self.sized_memory(state, arg, reg, val, call),
            Arg::Ctx => match val.kind {
                Kind::Ctx if val.fixed_off() == Some(0) => Ok(()),
                Kind::Ctx => {
                    access(format!("dereference of modified ctx ptr R{n} off={} disallowed", val.off))
                }
                _ => mismatch(n, &val, "ctx"),
            },
            Arg::AllocSize | Arg::SliceSize => match val.known() {
                Some(size) => {
                    call.alloc = u32::try_from(size).unwrap_or(u32::MAX);
                    Ok(())
                }
                None if !val.is_scalar() => mismatch(n, &val, "scalar"),
                None => access(format!("R{n} is not a known constant'")),
            },
            Arg::Record => self.record_argument(state, n, &val, call),
            Arg::Callback => match val.kind {
                Kind::Func(func) => {
                    call.callback = Some(func);
                    Ok(())
                }
                _ => mismatch(n, &val, "func"),
            },
            Arg::CallbackCtx => match val.kind {
                Kind::Stack(_) => {
                    call.callback_ctx = val;
                    let span = Span { reg: n, ptr: val, off: 0, size: 0 };
                    self.stack_place(state, &span, "read from").map(|_| ())
                }
                _ if val.is_null() => Ok(()),
                _ => mismatch(n, &val, "fp"),
            },
            Arg::ConstStr => {
                call.string = Some(self.string_argument(n, &val)?);
                Ok(())
            }
            Arg::MemOrNull | Arg::MemOutOrNull if val.is_null() => Ok(()),
            Arg::MemOrNull => memory_kind(n, &val, MEMORY),
            Arg::MemOutOrNull => memory_kind(n, &val, MEMORY_OUT),
            Arg::Word => self.word(state, reg, val, call),
            Arg::Task if val.is_null() && super::helper::takes_no_task(call.id) => Ok(()),
            Arg::Task => task(n, &val),
            Arg::DynptrOut => self.dynptr_made(state, reg, val, false, call),
            Arg::DynptrRecordOut => self.dynptr_made(state, reg, val, true, call),
            Arg::Dynptr => {
                call.dynptr = self.dynptr_used(state, reg, val)?;
                Ok(())
            }
            Arg::DynptrRecord => self.dynptr_given_up(state, reg, val, call),
        }
    }

    /// Whether the helper goes with the map, once all arguments are good.
    fn map_use(&self, call: &Call) -> Check {
        let Some(map) = call.map else { return Ok(()) };
        let facts = self.map(map);
        let map_type = facts.map_type;
        if call.id == helper::id::for_each_map_elem && !super::helper::compatible(call.id, map_type) {
            let reason = "callback function not allowed for map".into();
            return Err(Fail { errno: Errno::NotSupported, reason });
        }
        let writes = matches!(
            call.id,
            helper::id::map_update_elem
                | helper::id::map_delete_elem
                | helper::id::map_push_elem
                | helper::id::map_pop_elem
        );
        if writes && facts.flags & RDONLY_PROG != 0 {
            return access("write into map forbidden".into());
        }
        if super::helper::compatible(call.id, map_type) {
            return Ok(());
        }
        if call.id == helper::id::tail_call {
            return invalid("expected prog array map for tail call".into());
        }
        let name = helper::full_name(call.id).unwrap_or("unknown");
        invalid(format!("cannot pass map_type {map_type} into func {name}#{}", call.id))
    }

    /// A key or a value.
    fn element(
        &mut self,
        state: &mut State,
        reg: Reg,
        val: Val,
        size: u32,
        written: Option<u32>,
        call: &mut Call,
    ) -> Check {
        memory_kind(reg.index(), &val, MEMORY)?;
        if size == 0 {
            return access("invalid zero-sized read".into());
        }
        self.memory_argument(state, reg, val, size, written, call)
    }

    /// The size register of the memory in the register before it.
    fn sized_memory(&mut self, state: &mut State, arg: Arg, reg: Reg, size: Val, call: &mut Call) -> Check {
        let n = reg.index();
        let Some(ptr_reg) = Reg::new(n as u8 - 1) else { return Ok(()) };
        let ptr = self.read(state, ptr_reg)?;
        if !size.is_scalar() {
            return mismatch(n, &size, "scalar");
        }
        let range = &size.num.wide;
        if range.smin < 0 {
            return access(format!("R{n} min value is negative, either use unsigned or 'var &= const'"));
        }
        if range.umin == 0 && arg == Arg::Size {
            let (min, max) = (range.umin, range.umax);
            return access(format!("R{n} invalid zero-sized read: u64=[{min},{max}]"));
        }
        if range.umax >= super::alu::MAX_OFF as u64 {
            return access(format!("R{n} unbounded memory access, use 'var &= const' or 'if (var < const)'"));
        }
        call.size = range.umax as u32;
        call.known_size = size.num.bits.value;
        let memory = helper::proto(call.id).and_then(|p| p.args.get(n - 2));
        if ptr.is_null() {
            let optional = matches!(memory, Some(Arg::MemOrNull | Arg::MemOutOrNull));
            let nothing = optional && range.umax == 0;
            return if nothing { Ok(()) } else { mismatch(n - 1, &ptr, "fp") };
        }
        let sure = if super::helper::fills(call.id) { range.umin as u32 } else { 0 };
        let written = matches!(memory, Some(Arg::MemOut | Arg::MemOutOrNull)).then_some(sure);
        self.memory_argument(state, ptr_reg, ptr, range.umax as u32, written, call)
    }

    /// Memory of at most this many bytes.
    fn memory_argument(
        &mut self,
        state: &mut State,
        reg: Reg,
        ptr: Val,
        size: u32,
        written: Option<u32>,
        call: &mut Call,
    ) -> Check {
        let span = Span { reg: reg.index(), ptr, off: 0, size: i64::from(size) };
        if matches!(ptr.kind, Kind::Stack(_)) {
            if span.size == 0 {
                return self.stack_place(state, &span, "read from").map(|_| ());
            }
            if let Some(sure) = written {
                let (frame, min, max) = self.stack_place(state, &span, "write to")?;
                dynptr::not_written(state, &span, frame, (min, max))?;
                call.written.push((span, sure));
                return Ok(());
            }
            return self.stack_passed(state, &span, None);
        }
        self.check(call.at, &span, if written.is_some() { Use::Write } else { Use::Read })
    }

    /// An aligned u64 that is written.
    fn word(&mut self, state: &mut State, reg: Reg, val: Val, call: &mut Call) -> Check {
        memory_kind(reg.index(), &val, MEMORY_OUT)?;
        self.memory_argument(state, reg, val, 8, Some(0), call)?;
        let span = Span { reg: reg.index(), ptr: val, off: 0, size: 8 };
        self.aligned(&span, if matches!(val.kind, Kind::Stack(_)) { "stack " } else { "value " })
    }

    fn record_argument(&mut self, state: &State, n: usize, val: &Val, call: &mut Call) -> Check {
        if !matches!(val.kind, Kind::Record(_)) || val.nullable {
            return mismatch(n, val, "ringbuf_mem");
        }
        if val.fixed_off() != Some(0) {
            return invalid(format!(
                "R{n} must have zero offset when passed to release func or trusted arg to kfunc"
            ));
        }
        if !self.is_own(state, val.reference) {
            let name = helper::full_name(call.id).unwrap_or("unknown");
            return invalid(format!("func {name}#{} reference has not been acquired before", call.id));
        }
        call.released = val.reference;
        Ok(())
    }

    /// Whether a reference is held, and not by the frames around a callback, whose it is not to give up.
    pub fn is_own(&self, state: &State, reference: u32) -> bool {
        let held = state.frames.iter().rev().find_map(|f| f.callback).map_or(0, |c| c.references);
        state.references[held..].iter().any(|r| r.id == reference)
    }

    /// The bytes of a constant string, terminator included.
    fn string_argument(&mut self, n: usize, val: &Val) -> Check<Vec<u8>> {
        let Kind::MapValue(map) = val.kind else { return mismatch(n, val, "map_value") };
        let facts = self.map(map);
        if facts.map_type != BPF_MAP_TYPE_ARRAY || facts.flags & RDONLY_PROG == 0 || !facts.frozen {
            return access(format!("R{n} does not point to a readonly map'"));
        }
        let Some(start) = val.fixed_off() else {
            return access(format!("R{n} is not a constant address'"));
        };
        let Ok(start) = u32::try_from(start) else {
            return access(format!("R{n} is not a constant address'"));
        };
        let bytes = (start..facts.value_size).map_while(|off| self.env.rodata(map, off, 1).map(|b| b as u8));
        let mut text: Vec<u8> = bytes.collect();
        match text.iter().position(|b| *b == 0) {
            Some(end) => {
                text.truncate(end + 1);
                Ok(text)
            }
            None => invalid("string is not zero-terminated".into()),
        }
    }
}

/// A task, unmodified.
fn task(n: usize, val: &Val) -> Check {
    match val.kind {
        Kind::Object(Object::Task) if val.fixed_off() == Some(0) => Ok(()),
        Kind::Object(object) => {
            let (got, task) = (object.name(), Object::Task.name());
            access(format!("R{n} is of type {got} but {task} is expected"))
        }
        _ => mismatch(n, val, "ptr_, trusted_ptr_, rcu_ptr_"),
    }
}

/// A key of four bytes whose value is known, where the kernel knows it too: a number spilled in this width, or
/// zeros in the upper half of a slot.
fn constant_key(state: &State, key: &Val) -> Option<u64> {
    let Kind::Stack(frame) = key.kind else { return None };
    let off = key.fixed_off().filter(|off| (-i64::from(MAX_STACK)..0).contains(off))?;
    let (slot, byte) = place(off);
    let slot = state.frames.get(usize::from(frame))?.slot(slot);
    let zeros = slot.bytes[4..].iter().all(|b| *b == Byte::Zero) || slot.whole().is_some_and(Val::is_null);
    match byte {
        0 if slot.spilled() == 4 => slot.spill.as_deref()?.known(),
        4 if zeros => Some(0),
        _ => None,
    }
}

fn mismatch<T>(n: usize, val: &Val, expected: &str) -> Check<T> {
    access(format!("R{n} type={} expected={expected}", val.type_name()))
}

fn memory_kind(n: usize, val: &Val, expected: &str) -> Check {
    let memory = matches!(
        val.kind,
        Kind::Stack(_) | Kind::MapValue(_) | Kind::MapKey(_) | Kind::Record(_) | Kind::Slice(_)
    );
    if memory && !val.nullable { Ok(()) } else { mismatch(n, val, expected) }
}
