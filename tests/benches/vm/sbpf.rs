//! solana-sbpf's JIT as it ships: every access is checked against a table of regions, instructions are counted, and the
//! code is hardened against programs that choose its bytes.

use super::engine::{Failure, Run};
use solana_sbpf::aligned_memory::AlignedMemory;
use solana_sbpf::elf::Executable;
use solana_sbpf::error::StableResult;
use solana_sbpf::memory_region::{MemoryMapping, MemoryRegion};
use solana_sbpf::program::{BuiltinProgram, FunctionRegistry, SBPFVersion};
use solana_sbpf::verifier::RequisiteVerifier;
use solana_sbpf::vm::{ContextObject, EbpfVm, ExecutionMode};
use solana_sbpf::{ebpf, vm::CallFrame};
use std::ptr::NonNull;
use std::sync::Arc;

/// The first with the instruction set that clang makes for `-mcpu=v3`.
const VERSION: SBPFVersion = SBPFVersion::V3;

/// Instructions that a run may take: never that many, and far from where its arithmetic wraps.
const METER: u64 = 1 << 40;

/// What a run may see.
struct Context {
    mapping: MemoryMapping,
    left: u64,
}

impl ContextObject for Context {
    fn consume(&mut self, amount: u64) {
        self.left = self.left.saturating_sub(amount);
    }
    fn get_remaining(&self) -> u64 {
        self.left
    }
    fn active_mapping_ptr(&mut self) -> NonNull<MemoryMapping> {
        NonNull::from(&mut self.mapping)
    }
}

/// Functions that the program calls; it wants them declared.
fn functions(bytecode: &[u8]) -> Result<FunctionRegistry<usize>, Failure> {
    let mut functions = FunctionRegistry::default();
    for (pc, insn) in bytecode.chunks_exact(8).enumerate() {
        if insn[0] == ebpf::CALL_IMM && insn[1] >> 4 == 1 {
            let imm = i32::from_le_bytes([insn[4], insn[5], insn[6], insn[7]]);
            let target = VERSION.calculate_call_imm_target_pc(pc, imm.into());
            functions.register_function(
                target,
                format!("function_{target}").into_bytes(),
                target as usize,
            )?;
        }
    }
    Ok(functions)
}

/// Verified and compiled, ready to run.
pub fn load(bytecode: &[u8], _path: &str) -> Result<Run, Failure> {
    let loader = Arc::new(BuiltinProgram::new_mock());
    let functions = functions(bytecode)?;
    let executable = Executable::<Context>::from_text_bytes(bytecode, loader.clone(), VERSION, functions)?;
    executable.verify::<RequisiteVerifier>()?;
    executable.jit_compile()?;
    let config = executable.get_config().clone();
    let mut stack = AlignedMemory::<{ ebpf::HOST_ALIGN }>::zero_filled(config.stack_size());
    let mut frames = vec![CallFrame::default(); config.max_call_depth];
    let mut known: Option<(*const u8, Context)> = None;
    Ok(Box::new(move |memory| {
        if known.as_ref().is_none_or(|(at, _)| *at != memory.as_ptr()) {
            let regions = vec![
                executable.get_ro_region(),
                MemoryRegion::new(&mut stack, ebpf::MM_STACK_START),
                MemoryRegion::new(&raw mut *memory, ebpf::MM_INPUT_START),
            ];
            // SAFETY: the stack and the program live as long as this closure, the memory longer than its runs.
            let mapping = unsafe { MemoryMapping::new(regions, &config, VERSION) }.expect("regions apart");
            known = Some((memory.as_ptr(), Context { mapping, left: METER }));
        }
        let Some((_, context)) = known.as_mut() else { return u64::MAX };
        context.left = METER;
        let mut vm = EbpfVm::new(loader.clone(), VERSION, context, stack.len());
        (vm.registers[1], vm.registers[2]) = (ebpf::MM_INPUT_START, memory.len() as u64);
        let (_, result) = vm.execute_program(&executable, &mut ExecutionMode::Jit, &mut frames);
        match result {
            StableResult::Ok(result) => result,
            // Refused while it runs, as helper calls are: no result that could be taken for the right one.
            StableResult::Err(error) => panic!("{error}"),
        }
    }))
}
