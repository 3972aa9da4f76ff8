//! Moves instructions to another address with their meaning kept. Pure: bytes in, bytes out.
//!
//! Each instruction is encoded on its own, so that a branch to the probed instruction itself still goes to the
//! original address: the kernel counts such an iteration, and so must we. Branches to a *later* instruction of the
//! same displaced group go to its copy.
#![forbid(unsafe_code)]

use iced_x86::{Code, Encoder, FlowControl, Instruction, OpKind, Register};

/// Why an instruction cannot be moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotMove {
    /// Bytes that are no instruction.
    #[error("the bytes at {0:#x} are not an instruction")]
    NotCode(u64),
    /// An instruction whose effect depends on where it is in a way we do not reproduce.
    #[error("`{1:?}` at {0:#x} cannot run at another address")]
    Unmovable(u64, Code),
    /// iced-x86 refused; its words.
    #[error("the instruction at {0:#x} cannot be encoded elsewhere: {1}")]
    Encode(u64, String),
}

/// Displaced instructions as they run elsewhere.
#[derive(Debug, Default)]
pub struct Moved {
    /// Machine code, to be placed at the address that was asked for.
    pub code: Vec<u8>,
    /// For each instruction, its offset in `code`.
    pub starts: Vec<usize>,
}

/// Room that always suffices for `n` instructions and the jump back.
pub const fn max_len(n: usize) -> usize {
    n * 40 + 14
}

/// Moves `insns` to `at` and ends with a jump to the instruction behind them.
pub fn relocate(insns: &[Instruction], original: &[u8], at: u64) -> Result<Moved, CannotMove> {
    let first = insns.first().map_or(0, Instruction::ip);
    let mut out = Moved::default();
    let mut fixups = Vec::new(); // (instruction index of the target, offset of rel32)
    for insn in insns {
        out.starts.push(out.code.len());
        let from = (insn.ip() - first) as usize;
        let bytes = original.get(from..from + insn.len()).ok_or(CannotMove::NotCode(insn.ip()))?;
        let inner = inner_target(insn, insns);
        one(insn, bytes, at, inner.is_some(), &mut out.code)?;
        if let Some(k) = inner {
            fixups.push((k, out.code.len() - 4));
        }
    }
    for (k, pos) in fixups {
        let rel = out.starts[k] as i64 - (pos as i64 + 4);
        out.code[pos..pos + 4].copy_from_slice(&(rel as i32).to_le_bytes());
    }
    if let Some(last) = insns.last() {
        jump(&mut out.code, at, last.next_ip());
    }
    Ok(out)
}

/// Index of the displaced instruction, not the first, that `insn` branches to.
fn inner_target(insn: &Instruction, insns: &[Instruction]) -> Option<usize> {
    let jumps =
        matches!(insn.flow_control(), FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch);
    if !jumps || insn.op0_kind() != OpKind::NearBranch64 {
        return None;
    }
    insns.iter().skip(1).position(|i| i.ip() == insn.near_branch_target()).map(|k| k + 1)
}

fn one(insn: &Instruction, bytes: &[u8], at: u64, inner: bool, code: &mut Vec<u8>) -> Result<(), CannotMove> {
    let unmovable = || CannotMove::Unmovable(insn.ip(), insn.code());
    match insn.flow_control() {
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
            if insn.op0_kind() != OpKind::NearBranch64 {
                return Err(unmovable());
            }
            branch(insn, bytes, at, inner, code);
        }
        FlowControl::Call if insn.op0_kind() == OpKind::NearBranch64 => {
            push_imm64(code, insn.next_ip());
            jump(code, at, insn.near_branch_target());
        }
        FlowControl::IndirectCall => {
            indirect_call(insn, at, code)?;
        }
        FlowControl::Call if matches!(insn.code(), Code::Syscall) => code.extend_from_slice(bytes),
        FlowControl::Call | FlowControl::XbeginXabortXend | FlowControl::Interrupt => return Err(unmovable()),
        _ if insn.is_ip_rel_memory_operand() => rip_relative(insn, at, code)?,
        _ => code.extend_from_slice(bytes),
    }
    Ok(())
}

fn rel32(from: u64, to: u64) -> Option<i32> {
    i32::try_from(to.wrapping_sub(from) as i64).ok()
}

/// `jmp to`, by five bytes where they reach.
pub fn jump(code: &mut Vec<u8>, at: u64, to: u64) {
    let here = at + code.len() as u64;
    if let Some(rel) = rel32(here + 5, to) {
        code.push(0xe9);
        code.extend_from_slice(&rel.to_le_bytes());
    } else {
        code.extend_from_slice(&[0xff, 0x25, 0, 0, 0, 0]); // jmp [rip+0]
        code.extend_from_slice(&to.to_le_bytes());
    }
}

fn branch(insn: &Instruction, bytes: &[u8], at: u64, inner: bool, code: &mut Vec<u8>) {
    let to = insn.near_branch_target();
    if insn.flow_control() == FlowControl::ConditionalBranch {
        if insn.is_jcc_short_or_near() {
            // the inverted condition skips the jump: condition codes come in pairs that differ in bit 0
            let opcode = if insn.is_jcc_short() { bytes[bytes.len() - 2] } else { bytes[bytes.len() - 5] };
            let cc = opcode & 0x0f;
            code.extend_from_slice(&[0x70 | (cc ^ 1), 0]);
        } else {
            // loop, loope, loopne, jcxz: taken -> over the short jump that skips; address-size prefixes are kept
            code.extend_from_slice(&bytes[..bytes.len() - 1]);
            code.extend_from_slice(&[2, 0xeb, 0]);
        }
        let skip = code.len() - 1;
        if inner {
            code.extend_from_slice(&[0xe9, 0, 0, 0, 0]);
        } else {
            jump(code, at, to);
        }
        code[skip] = (code.len() - skip - 1) as u8;
    } else if inner {
        code.extend_from_slice(&[0xe9, 0, 0, 0, 0]);
    } else {
        jump(code, at, to);
    }
}

/// Pushes without touching registers or flags.
fn push_imm64(code: &mut Vec<u8>, value: u64) {
    code.push(0x68); // push imm32, sign-extended
    code.extend_from_slice(&(value as u32).to_le_bytes());
    code.extend_from_slice(&[0xc7, 0x44, 0x24, 0x04]); // mov dword [rsp+4], imm32
    code.extend_from_slice(&((value >> 32) as u32).to_le_bytes());
}

fn encode(insn: &Instruction, at: u64, code: &mut Vec<u8>) -> Result<(), String> {
    let mut encoder = Encoder::new(64);
    encoder.encode(insn, at + code.len() as u64).map_err(|e| e.to_string())?;
    code.extend_from_slice(&encoder.take_buffer());
    Ok(())
}

/// A call pushes the *original* return address, so that unwinding and the callee see what they always saw.
fn indirect_call(insn: &Instruction, at: u64, code: &mut Vec<u8>) -> Result<(), CannotMove> {
    let unmovable = || CannotMove::Unmovable(insn.ip(), insn.code());
    let jump_code = match insn.code() {
        Code::Call_rm64 => Code::Jmp_rm64,
        _ => return Err(unmovable()),
    };
    if insn.op0_kind() == OpKind::Register && insn.op0_register() == Register::RSP {
        return Err(unmovable());
    }
    let mut jmp = *insn;
    jmp.set_code(jump_code);
    if insn.op0_kind() == OpKind::Memory && insn.memory_base() == Register::RSP {
        // The operand is read after our push.
        jmp.set_memory_displacement64(insn.memory_displacement64().wrapping_add(8));
        jmp.set_memory_displ_size(8);
    }
    push_imm64(code, insn.next_ip());
    encode(&jmp, at, code).map_err(|e| CannotMove::Encode(insn.ip(), e))
}

fn rip_relative(insn: &Instruction, at: u64, code: &mut Vec<u8>) -> Result<(), CannotMove> {
    let target = insn.ip_rel_memory_address();
    if rel32(at + code.len() as u64 + 16, target).is_some_and(|r| r.unsigned_abs() < 0x7fff_ff00) {
        return encode(insn, at, code).map_err(|e| CannotMove::Encode(insn.ip(), e));
    }
    rip_relative_far(insn, target, at, code)
}

/// The operand is beyond 2 GiB from the copy: go through a register that the instruction does not name.
fn rip_relative_far(insn: &Instruction, target: u64, at: u64, code: &mut Vec<u8>) -> Result<(), CannotMove> {
    let dest = insn.op0_register();
    if matches!(insn.code(), Code::Lea_r64_m) {
        return mov_imm64(dest, target, at, code);
    }
    if matches!(insn.code(), Code::Mov_r64_rm64 | Code::Mov_r32_rm32) {
        mov_imm64(dest.full_register(), target, at, code)?;
        let mut load = *insn;
        set_base(&mut load, dest.full_register());
        return encode(&load, at, code).map_err(|e| CannotMove::Encode(insn.ip(), e));
    }
    if insn.flow_control() != FlowControl::Next || insn.is_stack_instruction() {
        return Err(CannotMove::Unmovable(insn.ip(), insn.code()));
    }
    let mut factory = iced_x86::InstructionInfoFactory::new();
    let used: Vec<_> =
        factory.info(insn).used_registers().iter().map(|r| r.register().full_register()).collect();
    let scratch = [Register::RAX, Register::RCX, Register::RDX, Register::RSI, Register::RDI, Register::RBX]
        .into_iter()
        .find(|r| !used.contains(r));
    let (Some(scratch), false) = (scratch, used.contains(&Register::RSP)) else {
        return Err(CannotMove::Unmovable(insn.ip(), insn.code()));
    };
    let n = scratch.number() as u8; // 0-7: no REX needed
    code.extend_from_slice(&[0x48, 0x8d, 0x64, 0x24, 0x80, 0x50 + n]); // lea rsp,[rsp-128]; push
    mov_imm64(scratch, target, at, code)?;
    let mut moved = *insn;
    set_base(&mut moved, scratch);
    encode(&moved, at, code).map_err(|e| CannotMove::Encode(insn.ip(), e))?;
    code.extend_from_slice(&[0x58 + n, 0x48, 0x8d, 0xa4, 0x24, 0x80, 0, 0, 0]); // pop; lea rsp,[rsp+128]
    Ok(())
}

fn set_base(insn: &mut Instruction, base: Register) {
    insn.set_memory_base(base);
    insn.set_memory_displacement64(0);
    insn.set_memory_displ_size(0);
}

fn mov_imm64(reg: Register, value: u64, at: u64, code: &mut Vec<u8>) -> Result<(), CannotMove> {
    let failed = |e: iced_x86::IcedError| CannotMove::Encode(value, e.to_string());
    let insn = Instruction::with2(Code::Mov_r64_imm64, reg, value).map_err(failed)?;
    encode(&insn, at, code).map_err(|e| CannotMove::Encode(value, e))
}
