//! Fuel: what makes every run end. Each back-edge and each local call takes one unit.

use super::translate::Translator;
use crate::contract::FUEL_OFFSET;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{Block, InstBuilder, MemFlagsData, Value};

impl Translator<'_, '_> {
    /// Takes one unit of fuel; leaves the function when there was none. Looks at the fuel before, not after:
    /// that way nothing but the test and the branch comes before the jump.
    pub(super) fn burn(&mut self) {
        let Some(fuel) = self.fuel else { return };
        let old = self.b.use_var(fuel);
        let none = self.b.ins().icmp_imm_s(IntCC::SignedLessThanOrEqual, old, 0);
        self.leave_if(none, self.exhausted);
        let left = self.b.ins().iadd_imm_s(old, -1);
        self.b.def_var(fuel, left);
    }

    /// Takes one unit of fuel and jumps back; leaves the function when there was none. One conditional jump does both,
    /// and the loop ends with it. The block is finished.
    pub(super) fn burn_and_jump(&mut self, to: Block) {
        match self.fuel {
            Some(fuel) => {
                let old = self.b.use_var(fuel);
                let left = self.b.ins().iadd_imm_s(old, -1);
                self.b.def_var(fuel, left);
                let some = self.b.ins().icmp_imm_s(IntCC::SignedGreaterThanOrEqual, left, 0);
                let exhausted = self.exhausted;
                self.b.ins().brif(some, to, &[], exhausted, &[]);
            }
            None => _ = self.b.ins().jump(to, &[]),
        }
    }

    pub(super) fn leave_if(&mut self, condition: Value, exit: Block) {
        let go_on = self.b.create_block();
        self.b.ins().brif(condition, exit, &[], go_on, &[]);
        self.b.switch_to_block(go_on);
    }

    /// Memory to register, at entry and after calls that may burn.
    pub(super) fn load_fuel(&mut self) {
        if let Some(fuel) = self.fuel {
            let left = self.fuel_in_memory();
            self.b.def_var(fuel, left);
        }
    }

    /// Register to memory, before anybody else looks.
    pub(super) fn store_fuel(&mut self) {
        if let Some(fuel) = self.fuel {
            let (left, run) = (self.b.use_var(fuel), self.run);
            self.b.ins().store(run_flags(), left, run, FUEL_OFFSET);
        }
    }

    /// After a call that may have run out of fuel or aborted: leave as well.
    pub(super) fn bail_if_stopped(&mut self) {
        let left = self.fuel_in_memory();
        if let Some(fuel) = self.fuel {
            self.b.def_var(fuel, left);
        }
        let negative = self.b.ins().icmp_imm_s(IntCC::SignedLessThan, left, 0);
        self.leave_if(negative, self.stopped);
    }

    fn fuel_in_memory(&mut self) -> Value {
        let run = self.run;
        self.b.ins().load(I64, run_flags(), run, FUEL_OFFSET)
    }
}

pub(super) fn run_flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap().with_aligned()
}
