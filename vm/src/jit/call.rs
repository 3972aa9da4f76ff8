//! Calls and the constants that the linker fills in.

use super::Space;
use super::frame::Frame;
use super::fuel::run_flags;
use super::translate::Translator;
use crate::contract::{CPU_OFFSET, TAIL_CALL_FAILED};
use crate::isa::{Const, MapIdx, Reg, Size, TAIL_CALL};
use crate::opt::intrinsic::{self, ArrayLayout, Intrinsic};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{
    AbiParam, ExtFuncData, ExternalName, FuncRef, GlobalValueData, InstBuilder, SigRef, Signature,
    UserExternalName, Value,
};
use cranelift_codegen::isa::{CallConv, TargetIsa};
use cranelift_frontend::FunctionBuilder;
use std::collections::HashMap;

/// [`BpfFn`](crate::contract::BpfFn): six integers in, one out.
pub(super) fn signature(isa: &dyn TargetIsa) -> Signature {
    let mut signature = Signature::new(CallConv::triple_default(isa.triple()));
    signature.params.extend([AbiParam::new(I64); 6]);
    signature.returns.push(AbiParam::new(I64));
    signature
}

/// Functions and helpers that one function calls, each declared once.
pub(super) struct Symbols {
    pub(super) signature: SigRef,
    funcs: HashMap<UserExternalName, FuncRef>,
    /// Tables of constants that the function reads.
    pub(super) tables: Vec<Vec<u8>>,
}

impl Symbols {
    pub(super) fn new(b: &mut FunctionBuilder<'_>, isa: &dyn TargetIsa) -> Symbols {
        let signature = b.import_signature(signature(isa));
        Symbols { signature, funcs: HashMap::new(), tables: vec![] }
    }

    fn func(&mut self, b: &mut FunctionBuilder<'_>, space: Space, index: u32) -> FuncRef {
        let (name, signature) = (space.name(index), self.signature);
        *self.funcs.entry(name.clone()).or_insert_with(|| {
            let name = ExternalName::user(b.func.declare_imported_user_function(name));
            // Helpers may be anywhere in the address space; functions of the program are in the image.
            let colocated = space == Space::Func;
            b.import_function(ExtFuncData { name, signature, colocated, patchable: false })
        })
    }
}

/// -E2BIG.
const TOO_BIG: i64 = -7;

impl Translator<'_, '_> {
    pub(super) fn load_const(&mut self, dst: Reg, value: Const) {
        let value = match value {
            Const::Number(number) => self.b.ins().iconst(I64, number as i64),
            Const::Map(map) => self.symbol(Space::Map, map.0, 0),
            Const::MapValue(map, off) => self.symbol(Space::MapValue, map.0, off),
            Const::Func(func) => {
                let func = self.symbols.func(&mut self.b, Space::Func, func);
                self.b.ins().func_addr(I64, func)
            }
        };
        self.set(dst, value);
    }

    /// Each use is a global of its own: sharing one would keep the constant in a register across calls,
    /// where loading it again is one instruction.
    fn symbol(&mut self, space: Space, index: u32, off: u32) -> Value {
        let name = self.b.func.declare_imported_user_function(space.name(index));
        let (name, offset) = (ExternalName::user(name), i64::from(off).into());
        let global = GlobalValueData::Symbol { name, offset, colocated: false, tls: false };
        let global = self.b.create_global_value(global);
        self.b.ins().symbol_value(I64, global)
    }

    /// The address of a table of constants, which is in the image.
    pub(super) fn table_address(&mut self, table: Vec<u8>) -> Value {
        let index = self.symbols.tables.len() as u32;
        self.symbols.tables.push(table);
        let name = self.b.func.declare_imported_user_function(Space::Table.name(index));
        let (name, offset) = (ExternalName::user(name), 0.into());
        let global = GlobalValueData::Symbol { name, offset, colocated: true, tls: false };
        let global = self.b.create_global_value(global);
        self.b.ins().symbol_value(I64, global)
    }

    /// r1-r5 and the run.
    pub(super) fn args(&mut self) -> [Value; 6] {
        std::array::from_fn(|i| match Reg::new(i as u8 + 1) {
            Some(reg) if i < 5 => self.get(reg),
            _ => self.run,
        })
    }

    fn call(&mut self, space: Space, index: u32) -> Value {
        self.origins.forget();
        let args = self.args();
        let func = self.symbols.func(&mut self.b, space, index);
        let call = self.b.ins().call(func, &args);
        self.b.inst_results(call)[0]
    }

    pub(super) fn call_helper(&mut self, at: usize, id: u32) {
        let values = self.frame.values.clone();
        let intrinsic = values.at(at).and_then(|regs| intrinsic::at(self.program, self.known.env, at, regs));
        if let Some(intrinsic) = intrinsic {
            let result = self.intrinsic(at, intrinsic);
            return self.called(result);
        }
        // Only helpers that call back into the program burn its fuel, or can see it aborted.
        let burns = self.program.has_callbacks();
        if burns || id == TAIL_CALL {
            self.store_fuel();
        }
        let result = self.call(Space::Helper, id);
        if burns {
            self.bail_if_stopped();
        }
        match id {
            TAIL_CALL => self.tail_call(result),
            _ => self.called(result),
        }
    }

    fn intrinsic(&mut self, at: usize, intrinsic: Intrinsic) -> Value {
        let (flags, run) = (run_flags(), self.run);
        match intrinsic {
            Intrinsic::Field(offset, 4) => self.b.ins().uload32(flags, run, offset),
            Intrinsic::Field(offset, _) => self.b.ins().load(I64, flags, run, offset),
            Intrinsic::Lookup(map, layout) => self.lookup(at, map, layout),
            Intrinsic::Overwrite(map, layout) => self.overwrite_element(at, map, layout),
            Intrinsic::Hash(op, layout) => self.hash(op, layout),
        }
    }

    /// The address of an element of an array, or 0.
    fn lookup(&mut self, at: usize, map: MapIdx, layout: ArrayLayout) -> Value {
        let (element, exists) = self.element(at, map, layout);
        let none = self.b.ins().iconst(I64, 0);
        self.b.ins().select(exists, element, none)
    }

    /// Where the element of the index in r2 is, if it exists.
    fn element(&mut self, at: usize, map: MapIdx, layout: ArrayLayout) -> (Value, Value) {
        let Some(key) = Reg::new(2) else { return (self.run, self.run) };
        let index = self.loaded(at, Size::W, false, key, 0);
        let mut base = self.symbol(Space::MapElements, map.0, 0);
        if let Some(stride) = layout.cpu_stride {
            let (flags, run) = (run_flags(), self.run);
            let cpu = self.b.ins().uload32(flags, run, CPU_OFFSET);
            let first = self.b.ins().imul_imm_s(cpu, stride as i64);
            base = self.b.ins().iadd(base, first);
        }
        let offset = self.b.ins().imul_imm_s(index, i64::from(layout.stride));
        let element = self.b.ins().iadd(base, offset);
        let exists = self.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, index, i64::from(layout.entries));
        (element, exists)
    }

    /// Writes a value over an element of an array: 0, or -E2BIG when it does not exist.
    fn overwrite_element(&mut self, at: usize, map: MapIdx, layout: ArrayLayout) -> Value {
        let (element, exists) = self.element(at, map, layout);
        self.origins.forget();
        let [write, missing, done] = std::array::from_fn(|_| self.b.create_block());
        let result = self.b.append_block_param(done, I64);
        self.b.ins().brif(exists, write, &[], missing, &[]);
        self.b.switch_to_block(write);
        let written = self.overwrite(element, layout.value_size);
        self.b.ins().jump(done, &[written.into()]);
        self.b.switch_to_block(missing);
        self.b.set_cold_block(missing);
        let refused = self.b.ins().iconst(I64, TOO_BIG);
        self.b.ins().jump(done, &[refused.into()]);
        self.b.switch_to_block(done);
        result
    }

    /// A call clobbers r1-r5. Zero rather than the old values, which would have to be kept over the call
    /// only to be passed as arguments that the next helper does not have.
    fn called(&mut self, result: Value) {
        let zero = self.b.ins().iconst(I64, 0);
        for reg in (1..=5).filter_map(Reg::new) {
            self.set(reg, zero);
        }
        self.set(Reg::R0, result);
    }

    /// The helper found a program: run it with our context and return what it returns. Else go on.
    fn tail_call(&mut self, target: Value) {
        let (found, go_on) = (self.b.create_block(), self.b.create_block());
        self.b.ins().brif(target, found, &[], go_on, &[]);
        self.b.switch_to_block(found);
        let ctx = self.args()[0];
        let zero = self.b.ins().iconst(I64, 0);
        let args = [ctx, zero, zero, zero, zero, self.run];
        let call = self.b.ins().call_indirect(self.symbols.signature, target, &args);
        let result = self.b.inst_results(call)[0];
        // Its fuel is in memory; ours in the register is stale.
        self.b.ins().return_(&[result]);
        self.b.switch_to_block(go_on);
        let failed = self.b.ins().iconst(I64, TAIL_CALL_FAILED);
        self.called(failed);
    }

    /// Translates a function in place of a call of it.
    fn inline(&mut self, index: usize) -> Value {
        let args = self.args();
        let done = self.b.create_block();
        let result = self.b.append_block_param(done, I64);
        let mut frame = Frame::new(self.known, index, &mut self.b);
        frame.done = Some(done);
        let caller = std::mem::replace(&mut self.frame, frame);
        let tabled = std::mem::take(&mut self.tabled);
        self.enter(index, &args[..5]);
        self.body();
        (self.frame, self.tabled) = (caller, tabled);
        self.b.switch_to_block(done);
        self.closed = false;
        result
    }

    pub(super) fn call_func(&mut self, func: u32) {
        self.burn();
        if self.known.inlined[func as usize] {
            let result = self.inline(func as usize);
            return self.called(result);
        }
        self.store_fuel();
        let result = self.call(Space::Func, func);
        self.bail_if_stopped();
        self.called(result);
    }
}
