//! Operations on hash maps: the first node of a chain is looked at in generated code, since four of five elements are there.
//! How, and why what is read may be believed, is in [`HashTable`](crate::contract::HashTable).

use super::translate::Translator;
use crate::contract::{CPU_OFFSET, HashTable};
use crate::opt::intrinsic::{HashLayout, HashOp};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{Block, InstBuilder, MemFlagsData, Type, Value};
use std::mem::offset_of;

/// Of tables, keys and values: nothing is known about alignment.
fn flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

impl Translator<'_, '_> {
    /// The result of an operation on the map in r1.
    pub(super) fn hash(&mut self, op: HashOp, layout: HashLayout) -> Value {
        self.origins.forget();
        match op {
            HashOp::Call(function) => self.map_function(function),
            HashOp::Lookup => self.first_or(op, offset_of!(HashTable, lookup), layout, |_, value, _| value),
            HashOp::Overwrite => {
                self.first_or(op, offset_of!(HashTable, update), layout, |t, value, layout| {
                    t.overwrite(value, layout.value_size)
                })
            }
        }
    }

    /// Calls a function of the map in r1.
    fn map_function(&mut self, offset: i32) -> Value {
        let args = self.args();
        let function = self.b.ins().load(I64, flags(), args[0], offset);
        let call = self.b.ins().call_indirect(self.symbols.signature, function, &args);
        self.b.inst_results(call)[0]
    }

    /// What `found` makes of the value's address, if the element is the first of its chain; else what the map's function
    /// returns.
    fn first_or(
        &mut self,
        op: HashOp,
        function: usize,
        layout: HashLayout,
        found: fn(&mut Self, Value, HashLayout) -> Value,
    ) -> Value {
        let [absent, rest, done] = std::array::from_fn(|_| self.b.create_block());
        let result = self.b.append_block_param(done, I64);
        let (number, value) = self.first(layout, absent, rest);
        let value = found(self, value, layout);
        self.b.ins().jump(done, &[value.into()]);
        self.b.switch_to_block(absent);
        self.b.set_cold_block(absent);
        match op {
            // An empty chain: no need to ask.
            HashOp::Lookup => {
                let none = self.b.ins().iconst(I64, 0);
                self.b.ins().brif(number, rest, &[], done, &[none.into()]);
            }
            _ => {
                self.b.ins().jump(rest, &[]);
            }
        }
        self.b.switch_to_block(rest);
        self.b.set_cold_block(rest);
        let called = self.map_function(function as i32);
        self.b.ins().jump(done, &[called.into()]);
        self.b.switch_to_block(done);
        result
    }

    /// The number of the first node in the chain of the key in r2, and the address of its value. Goes to `absent` when the
    /// number is none, to `rest` when it is not the key's or changes meanwhile.
    fn first(&mut self, layout: HashLayout, absent: Block, rest: Block) -> (Value, Value) {
        let (key, width) = self.key(layout);
        let head = self.head(key);
        let word = self.b.ins().atomic_load(I64, flags(), head);
        let number = self.b.ins().ireduce(I32, word);
        let before = self.b.ins().iadd_imm_s(number, -1);
        let capacity = self.half_field(offset_of!(HashTable, capacity));
        self.unless(IntCC::UnsignedLessThan, before, capacity, absent);
        let index = self.b.ins().uextend(I64, number);
        let stride = self.field(offset_of!(HashTable, stride));
        let offset = self.b.ins().imul(index, stride);
        let nodes = self.field(offset_of!(HashTable, nodes));
        let node = self.b.ins().iadd(nodes, offset);
        let next = self.b.ins().atomic_load(I64, flags(), node);
        let deleted = self.b.ins().ushr_imm_u(next, i64::from(HashTable::DELETED.trailing_zeros()));
        let deleted = self.b.ins().band_imm_u(deleted, 1);
        self.leave_if(deleted, rest);
        let place = self.b.ins().iadd_imm_s(node, i64::from(HashTable::KEY_AT));
        let found = self.b.ins().atomic_load(width, flags(), place);
        let wanted = if width == I32 { self.b.ins().ireduce(I32, key) } else { key };
        self.unless(IntCC::Equal, found, wanted, rest);
        let again = self.b.ins().atomic_load(I64, flags(), head);
        self.unless(IntCC::Equal, again, word, rest);
        (number, self.value_of(index, offset, layout, rest))
    }

    /// The key that r2 points to.
    fn key(&mut self, layout: HashLayout) -> (Value, Type) {
        let place = self.args()[1];
        match layout.key_size {
            4 => (self.b.ins().uload32(flags(), place, 0), I32),
            _ => (self.b.ins().load(I64, flags(), place, 0), I64),
        }
    }

    /// The address of the word at the head of a key's chain.
    fn head(&mut self, key: Value) -> Value {
        let salt = self.field(offset_of!(HashTable, salt));
        let mixed = self.b.ins().bxor(key, salt);
        let multiplier = self.b.ins().iconst(I64, HashTable::MULTIPLIER as i64);
        let low = self.b.ins().imul(mixed, multiplier);
        let high = self.b.ins().umulhi(mixed, multiplier);
        let hash = self.b.ins().bxor(low, high);
        let mask = self.field(offset_of!(HashTable, mask));
        let bucket = self.b.ins().band(hash, mask);
        let offset = self.b.ins().ishl_imm_u(bucket, 3);
        let heads = self.field(offset_of!(HashTable, heads));
        self.b.ins().iadd(heads, offset)
    }

    /// The address of a node's value for this run. `offset` is the node's.
    fn value_of(&mut self, index: Value, offset: Value, layout: HashLayout, rest: Block) -> Value {
        let values_of_first = self.field(offset_of!(HashTable, node_values));
        if !layout.percpu {
            // Values are in the nodes.
            return self.b.ins().iadd(values_of_first, offset);
        }
        let cpu = self.b.ins().load(I32, super::fuel::run_flags(), self.run, CPU_OFFSET);
        let values = self.half_field(offset_of!(HashTable, values));
        self.unless(IntCC::UnsignedLessThan, cpu, values, rest);
        let cpu = self.b.ins().uextend(I64, cpu);
        let stride = self.field(offset_of!(HashTable, cpu_stride));
        let of_cpu = self.b.ins().imul(cpu, stride);
        let stride = self.field(offset_of!(HashTable, value_stride));
        let of_node = self.b.ins().imul(index, stride);
        let values = self.b.ins().iadd(values_of_first, of_cpu);
        self.b.ins().iadd(values, of_node)
    }

    /// Copies the value that r3 points to over the one at `to`; 0.
    pub(super) fn overwrite(&mut self, to: Value, len: u32) -> Value {
        let from = self.args()[2];
        for at in (0..len as i32 & !7).step_by(8) {
            let word = self.b.ins().load(I64, flags(), from, at);
            self.b.ins().store(flags(), word, to, at);
        }
        if !len.is_multiple_of(8) {
            let at = len as i32 & !7;
            let word = self.b.ins().load(I32, flags(), from, at);
            self.b.ins().store(flags(), word, to, at);
        }
        self.b.ins().iconst(I64, 0)
    }

    /// A field of the table.
    fn field(&mut self, offset: usize) -> Value {
        let table = self.args()[0];
        self.b.ins().load(I64, flags().with_readonly(), table, offset as i32)
    }

    fn half_field(&mut self, offset: usize) -> Value {
        let table = self.args()[0];
        self.b.ins().load(I32, flags().with_readonly(), table, offset as i32)
    }

    fn unless(&mut self, holds: IntCC, a: Value, b: Value, exit: Block) {
        let go_on = self.b.create_block();
        let holds = self.b.ins().icmp(holds, a, b);
        self.b.ins().brif(holds, go_on, &[], exit, &[]);
        self.b.switch_to_block(go_on);
    }
}
