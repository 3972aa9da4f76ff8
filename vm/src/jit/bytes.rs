//! Bytes that are loaded one by one and put together with shifts and ors: one wide load, with its bytes swapped if they
//! are in network order. Compilers for BPF write every access to a packed structure that way.

use super::translate::Translator;
use crate::isa::Width;
use cranelift_codegen::ir::types::{I16, I32, I64};
use cranelift_codegen::ir::{Block, Inst, InstBuilder, MemFlagsData, Value};
use std::collections::{HashMap, HashSet};

/// Where each byte of a value comes from: an offset from `base`; `None` is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bytes {
    base: Value,
    from: [Option<i32>; 8],
}

/// What is known of the values of the current block. Forgotten whenever memory may change.
#[derive(Default)]
pub(super) struct Origins {
    block: Option<Block>,
    of: HashMap<Value, Bytes>,
}

impl Origins {
    /// Memory was written, or may have been.
    pub(super) fn forget(&mut self) {
        self.of.clear();
    }
}

impl Bytes {
    fn of_load(base: Value, off: i32, len: u32) -> Bytes {
        Bytes { base, from: std::array::from_fn(|n| (n < len as usize).then_some(off + n as i32)) }
    }

    fn shifted(self, bits: u64) -> Option<Bytes> {
        let by = (bits.is_multiple_of(8) && bits < 64).then_some(bits as usize / 8)?;
        Some(Bytes { from: std::array::from_fn(|n| n.checked_sub(by).and_then(|n| self.from[n])), ..self })
    }

    fn cut(self, width: Width) -> Bytes {
        let len = if width == Width::W32 { 4 } else { 8 };
        Bytes { from: std::array::from_fn(|n| self.from[n].filter(|_| n < len)), ..self }
    }

    /// Both, if no byte comes from both.
    fn with(self, other: Bytes) -> Option<Bytes> {
        let apart = self.from.iter().zip(&other.from).all(|(a, b)| a.is_none() || b.is_none());
        let from = std::array::from_fn(|n| self.from[n].or(other.from[n]));
        (apart && self.base == other.base).then_some(Bytes { base: self.base, from })
    }

    /// The load that gives these bytes: first offset, length, bits to shift left by, whether swapped.
    fn load(self) -> Option<(i32, u32, u32, bool)> {
        let low = self.from.iter().position(Option::is_some)?;
        let bytes: Vec<i32> = self.from[low..].iter().map_while(|from| *from).collect();
        let whole = self.from[low + bytes.len()..].iter().all(Option::is_none);
        let len = bytes.len() as u32;
        if !whole || !matches!(len, 2 | 4 | 8) {
            return None;
        }
        let follows = |step: i32| bytes.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(step));
        let shift = 8 * low as u32;
        match () {
            () if follows(1) => Some((bytes[0], len, shift, false)),
            () if follows(-1) => Some((bytes[bytes.len() - 1], len, shift, true)),
            () => None,
        }
    }
}

impl Translator<'_, '_> {
    /// Where the bytes of a value come from, if that is known in this block.
    fn origin(&mut self, value: Value) -> Option<Bytes> {
        let block = self.b.current_block();
        if self.origins.block != block {
            self.origins = Origins { block, ..Origins::default() };
        }
        self.origins.of.get(&value).copied()
    }

    fn learn(&mut self, value: Value, bytes: Option<Bytes>) {
        self.origin(value);
        if let Some(bytes) = bytes {
            self.origins.of.insert(value, bytes);
        }
    }

    /// A zero-extending load was emitted.
    pub(super) fn learn_load(&mut self, value: Value, base: Value, off: i32, len: u32) {
        self.learn(value, Some(Bytes::of_load(base, off, len)));
    }

    /// `to` is the lower part of `from`.
    pub(super) fn learn_copy(&mut self, to: Value, from: Value, width: Width) {
        let bytes = self.origin(from).map(|bytes| bytes.cut(width));
        self.learn(to, bytes);
    }

    /// `to` is `from` shifted left.
    pub(super) fn learn_shift(&mut self, to: Value, from: Value, bits: u64, width: Width) {
        let bytes = self.origin(from).and_then(|bytes| Some(bytes.cut(width).shifted(bits)?.cut(width)));
        self.learn(to, bytes);
    }

    /// Puts two values with no common byte together: by one load if all of it is one.
    pub(super) fn joined(&mut self, a: Value, b: Value, width: Width) -> Option<(Bytes, Option<Value>)> {
        let (a, b) = (self.origin(a)?.cut(width), self.origin(b)?.cut(width));
        let both = a.with(b)?;
        Some((both, both.load().map(|load| self.wide(both.base, load))))
    }

    /// Where the bytes of a value come from.
    pub(super) fn learn_bytes(&mut self, value: Value, bytes: Bytes) {
        self.learn(value, Some(bytes));
    }

    fn wide(&mut self, base: Value, (off, len, shift, swapped): (i32, u32, u32, bool)) -> Value {
        let ty = match len {
            2 => I16,
            4 => I32,
            _ => I64,
        };
        let mut value = self.b.ins().load(ty, MemFlagsData::new().with_notrap(), base, off);
        if swapped {
            value = self.b.ins().bswap(value);
        }
        if len < 8 {
            value = self.b.ins().uextend(I64, value);
        }
        if shift > 0 { self.b.ins().ishl_imm_u(value, i64::from(shift)) } else { value }
    }

    /// Takes out what nobody uses: the compiler would keep the loads.
    pub(super) fn drop_dead(&mut self) {
        let func = &mut *self.b.func;
        let insts: Vec<Inst> =
            func.layout.blocks().flat_map(|block| func.layout.block_insts(block)).collect();
        let has_effect = |inst: &Inst| {
            let opcode = func.dfg.insts[*inst].opcode();
            opcode.can_store() || opcode.is_call() || opcode.is_terminator() || opcode.other_side_effects()
        };
        let mut live: HashSet<Inst> = insts.iter().copied().filter(has_effect).collect();
        let mut pending: Vec<Inst> = live.iter().copied().collect();
        while let Some(inst) = pending.pop() {
            for value in func.dfg.inst_values(inst) {
                let value = func.dfg.resolve_aliases(value);
                if let Some(inst) = func.dfg.value_def(value).inst()
                    && live.insert(inst)
                {
                    pending.push(inst);
                }
            }
        }
        insts.into_iter().filter(|inst| !live.contains(inst)).for_each(|inst| func.layout.remove_inst(inst));
    }
}
