//! Does a function leave vector registers and the direction flag alone? Asked of its machine code.

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::Relaxed;

/// Instructions looked at before the answer is no: far more than any helper has that is worth it.
const BUDGET: usize = 20_000;
/// The longest instruction.
const LONGEST: usize = 15;
const PAGE: usize = 4096;

/// Whether the function at `address`, and whatever it calls, changes neither a vector register (nor x87, nor a mask) nor the
/// direction flag. The function at `saving` may be called: it saves them. Calls and jumps through `pointer`, which does not
/// change any more, lead where it points to, and so do those through constants. Other indirect ones make the answer no, as
/// does everything that is not understood.
pub fn leaves_vectors_alone(address: usize, pointer: &AtomicPtr<()>, saving: usize) -> bool {
    let mut walker =
        Walker { pointer, constants: relocated(), seen: BTreeSet::from([saving]), pending: vec![address] };
    while let Some(at) = walker.pending.pop() {
        if !walker.walk(at) {
            return false;
        }
    }
    true
}

struct Walker<'a> {
    pointer: &'a AtomicPtr<()>,
    /// Words that nobody changes any more.
    constants: Range<usize>,
    seen: BTreeSet<usize>,
    /// Branch targets to be walked.
    pending: Vec<usize>,
}

impl Walker<'_> {
    /// Instructions from `at` on until flow ends or is known.
    fn walk(&mut self, mut at: usize) -> bool {
        let mut forwards = false;
        while self.seen.insert(at) {
            let insn = decode(at).filter(|insn| self.seen.len() < BUDGET && is_lean(insn, forwards));
            match insn.map(|insn| (insn, insn.flow_control())) {
                Some((_, FlowControl::Next)) => {}
                // The kernel keeps what a system call's caller has.
                Some((insn, FlowControl::Call)) if insn.mnemonic() == Mnemonic::Syscall => {}
                Some((_, FlowControl::Return | FlowControl::Exception)) => return true,
                Some((insn, flow)) => {
                    let Some(target) = self.target(&insn) else { return false };
                    self.pending.push(target);
                    if matches!(flow, FlowControl::UnconditionalBranch | FlowControl::IndirectBranch) {
                        return true;
                    }
                }
                None => return false,
            }
            let Some(insn) = insn else { return false };
            forwards = insn.mnemonic() == Mnemonic::Cld;
            at += insn.len();
        }
        true
    }

    /// Where a call or a branch leads, if that can be said.
    fn target(&self, insn: &Instruction) -> Option<usize> {
        use FlowControl::*;
        match (insn.flow_control(), insn.op0_kind()) {
            (Call | ConditionalBranch | UnconditionalBranch, OpKind::NearBranch64) => {
                Some(insn.near_branch64() as usize)
            }
            (IndirectCall | IndirectBranch, OpKind::Memory) if insn.is_ip_rel_memory_operand() => {
                self.constant(insn.ip_rel_memory_address() as usize)
            }
            _ => None,
        }
    }

    /// The word at `address`, if nobody changes it any more.
    fn constant(&self, address: usize) -> Option<usize> {
        if address == std::ptr::from_ref(self.pointer) as usize {
            return Some(self.pointer.load(Relaxed) as usize);
        }
        let constant = address.is_multiple_of(8) && self.constants.contains(&address);
        // SAFETY: mapped and readable (`relocated`), and aligned.
        constant.then(|| unsafe { (address as *const usize).read() })
    }
}

/// What the loader makes read-only of this library once it is relocated: among others the global offset table, through
/// which a function may call another.
fn relocated() -> Range<usize> {
    unsafe extern "C" {
        /// The linker's: where this library begins.
        static __ehdr_start: libc::Elf64_Ehdr;
    }
    let base = &raw const __ehdr_start as usize;
    // SAFETY: the headers of a loaded library are mapped, where the first of them says.
    let headers = unsafe {
        let header = &__ehdr_start;
        let first = (base + header.e_phoff as usize) as *const libc::Elf64_Phdr;
        std::slice::from_raw_parts(first, header.e_phnum.into())
    };
    let found = headers.iter().find(|header| header.p_type == libc::PT_GNU_RELRO);
    found.map_or(0..0, |found| {
        let start = base + found.p_vaddr as usize;
        start..start + found.p_memsz as usize
    })
}

fn decode(at: usize) -> Option<Instruction> {
    // What lies on the page is mapped; the next page only if the instruction goes on there.
    let here = PAGE - at % PAGE;
    [here.min(LONGEST), LONGEST].into_iter().find_map(|len| {
        // SAFETY: code of this process, which is not unmapped while we are in it or it is linked to; see above.
        let bytes = unsafe { std::slice::from_raw_parts(at as *const u8, len) };
        let insn = Decoder::with_ip(64, bytes, at as u64, DecoderOptions::NONE).decode();
        (!insn.is_invalid()).then_some(insn)
    })
}

/// Integer instructions; string instructions only where the direction is said just before.
fn is_lean(insn: &Instruction, forwards: bool) -> bool {
    use CpuidFeature::*;
    let integers = |feature: &CpuidFeature| {
        matches!(
            *feature,
            INTEL8086
                | INTEL186
                | INTEL286
                | INTEL386
                | INTEL486
                | X64
                | CMOV
                | BMI1
                | BMI2
                | LZCNT
                | POPCNT
                | MOVBE
                | CX8
                | CMPXCHG16B
                | MULTIBYTENOP
                | TSC
                | RDTSCP
                | RDPID
                | ADX
                | CET_IBT
                | SYSCALL
        )
    };
    let fence = matches!(insn.code(), Code::Lfence | Code::Mfence | Code::Pause);
    let vector = (0..insn.op_count())
        .filter(|n| insn.op_kind(*n) == OpKind::Register)
        .map(|n| insn.op_register(n))
        .any(|r: Register| r.is_vector_register() || r.is_st() || r.is_mm() || r.is_k() || r.is_tmm());
    let integer = insn.cpuid_features().iter().all(integers) || fence;
    integer && !vector && insn.mnemonic() != Mnemonic::Std && (!insn.is_string_instruction() || forwards)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::arch::naked_asm;

    static POINTER: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

    fn leaves(function: unsafe extern "C" fn()) -> bool {
        leaves_vectors_alone(function as usize, &POINTER, saving as *const () as usize)
    }

    macro_rules! code {
        ($name:ident: $($line:literal),*) => {
            #[unsafe(naked)]
            unsafe extern "C" fn $name() {
                naked_asm!($($line),*)
            }
        };
    }

    code!(integers: "mov rax, rdi", "lock cmpxchg [rsi], rdx", "jne 2f", "mul rdx", "2: bt rax, 32", "rdtscp", "ret");
    code!(loops: "2: dec rdi", "jnz 2b", "lfence", "ret");
    code!(vector_behind_branch: "test edi, edi", "je 2f", "ret", "2: pxor xmm3, xmm3", "ret");
    code!(calls_vector: "call 2f", "ret", "2: movups [rdi], xmm0", "ret");
    code!(x87: "fld1", "ret");
    code!(upper: "vzeroupper", "ret");
    code!(masks: "kmovq k1, rax", "ret");
    code!(string: "rep movsb", "ret");
    code!(string_forwards: "pushfq", "cld", "rep movsb", "popfq", "ret");
    code!(backwards: "std", "ret");
    code!(through_some_pointer: "call [rdi]", "ret");
    code!(jump_through_pointer: "jmp rax");
    code!(nonsense: ".byte 0x06", "ret");

    #[test]
    fn integer_code_is_lean() {
        for function in [integers, loops, string_forwards] {
            assert!(leaves(function));
        }
    }

    #[test]
    fn whatever_may_change_a_vector_register_or_the_direction_is_found() {
        for (at, function) in [
            vector_behind_branch,
            calls_vector,
            x87,
            upper,
            masks,
            string,
            backwards,
            through_some_pointer,
            jump_through_pointer,
            nonsense,
        ]
        .into_iter()
        .enumerate()
        {
            assert!(!leaves(function), "case {at}");
        }
    }

    code!(saving: "movups [rdi], xmm0", "pxor xmm0, xmm0", "ret");

    #[unsafe(naked)]
    unsafe extern "C" fn goes_on_saving() {
        naked_asm!("test edi, edi", "je {saving}", "call {saving}", "ret", saving = sym saving)
    }

    #[test]
    fn the_function_that_saves_may_be_called() {
        assert!(leaves(goes_on_saving));
        assert!(!leaves_vectors_alone(goes_on_saving as *const () as usize, &POINTER, 0));
    }

    #[unsafe(naked)]
    unsafe extern "C" fn through_pointer() {
        naked_asm!("call [rip + {p}]", "jmp [rip + {p}]", p = sym POINTER)
    }

    #[test]
    fn a_call_through_the_pointer_is_as_good_as_where_it_leads() {
        for (target, lean) in [(integers as *mut (), true), (x87 as *mut (), false)] {
            POINTER.store(target, Relaxed);
            assert_eq!(leaves(through_pointer), lean);
        }
    }
}
