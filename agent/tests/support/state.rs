//! The whole machine: every register is loaded, a function is called, and everything is compared.

use std::arch::global_asm;

// state_call loads everything from STATE_IN, calls STATE_F, and stores everything to STATE_OUT.
global_asm!(
    // The compiler may put those who call it elsewhere.
    ".irp name, STATE_IN,STATE_OUT,STATE_F,state_call,state_nop,state_leaf,state_inside,state_recurse,state_dirty",
    ".globl \\name",
    ".hidden \\name",
    ".endr",
    ".irp name, state_dirty_end,state_fault,state_fault_end,state_system,state_replaced",
    ".globl \\name",
    ".hidden \\name",
    ".endr",
    ".pushsection .bss",
    ".balign 64",
    "STATE_IN: .zero 768",
    "STATE_OUT: .zero 768",
    "STATE_F: .zero 8",
    ".popsection",
    ".pushsection .text",
    ".p2align 4",
    "state_call:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "fldcw [rip + STATE_IN + 140]",
    "fld qword ptr [rip + STATE_IN + 128]",
    "ldmxcsr [rip + STATE_IN + 136]",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovups ymm\\i, [rip + STATE_IN + 256 + 32 * \\i]",
    ".endr",
    "mov rcx, [rip + STATE_IN + 8]",
    "mov rdx, [rip + STATE_IN + 16]",
    "mov rbx, [rip + STATE_IN + 24]",
    "mov rbp, [rip + STATE_IN + 32]",
    "mov rsi, [rip + STATE_IN + 40]",
    "mov rdi, [rip + STATE_IN + 48]",
    ".irp i, 8,9,10,11,12,13,14,15",
    "mov r\\i, [rip + STATE_IN + 8 * (\\i - 1)]",
    ".endr",
    "push qword ptr [rip + STATE_IN + 120]",
    "popfq",
    "mov rax, [rip + STATE_IN]",
    "call [rip + STATE_F]",
    "mov [rip + STATE_OUT], rax",
    "mov [rip + STATE_OUT + 8], rcx",
    "mov [rip + STATE_OUT + 16], rdx",
    "mov [rip + STATE_OUT + 24], rbx",
    "mov [rip + STATE_OUT + 32], rbp",
    "mov [rip + STATE_OUT + 40], rsi",
    "mov [rip + STATE_OUT + 48], rdi",
    ".irp i, 8,9,10,11,12,13,14,15",
    "mov [rip + STATE_OUT + 8 * (\\i - 1)], r\\i",
    ".endr",
    "pushfq",
    "pop qword ptr [rip + STATE_OUT + 120]",
    "cld",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovups [rip + STATE_OUT + 256 + 32 * \\i], ymm\\i",
    ".endr",
    "vzeroupper",
    "stmxcsr [rip + STATE_OUT + 136]",
    "fnstcw [rip + STATE_OUT + 140]",
    "fstp qword ptr [rip + STATE_OUT + 128]",
    "fninit",
    "push 0x1f80",
    "ldmxcsr [rsp]",
    "pop rax",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    // Does nothing at all, twice; and a leaf that keeps something in its red zone over the second instruction.
    ".p2align 4",
    "state_nop: nop dword ptr [rax + rax]",
    "ret",
    ".p2align 4, 0xcc",
    "state_leaf: mov [rsp - 128], rdi",
    "mov [rsp - 8], rsi",
    "state_inside: nop dword ptr [rax + rax]",
    "mov rax, [rsp - 128]",
    "sub rax, [rsp - 8]",
    "ret",
    ".p2align 4, 0xcc",
    "state_recurse: sub rsp, 8",
    "dec rdi",
    "jle 2f",
    "call state_recurse",
    "2: add rsp, 8",
    "ret",
    ".p2align 4, 0xcc",
    // A program: every vector register is changed.
    "state_dirty: pcmpeqd xmm0, xmm0",
    ".irp i, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "movdqa xmm\\i, xmm0",
    ".endr",
    "xor eax, eax",
    "ret",
    "state_dirty_end:",
    // A program that is ended in the middle, when it has changed all that it must give back.
    "state_fault: xor ebx, ebx",
    ".irp r, ebp, r12d, r13d, r14d, r15d, eax",
    "xor \\r, \\r",
    ".endr",
    "mov rax, [rax]",
    "ret",
    "state_fault_end:",
    // System calls: with room for a jump in front, and where the jump replaces them as well.
    ".p2align 6",
    "state_system: nop dword ptr [rax + rax + 64]",
    "syscall",
    "ret",
    ".p2align 6",
    "state_replaced: nop dword ptr [rax]",
    "syscall",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    static mut STATE_IN: [u64; 96];
    static STATE_OUT: [u64; 96];
    static mut STATE_F: unsafe extern "C" fn();
    pub fn state_call();
    pub fn state_nop();
    pub fn state_leaf();
    pub fn state_inside();
    pub fn state_recurse();
    fn state_dirty();
    fn state_dirty_end();
    fn state_fault();
    fn state_fault_end();
    pub fn state_system();
    pub fn state_replaced();
}

const FLAGS: usize = 15;
const DF: u64 = 0x400;

/// Code between two labels.
fn code_of(from: unsafe extern "C" fn(), to: unsafe extern "C" fn()) -> Vec<u8> {
    // SAFETY: text of this program.
    unsafe { std::slice::from_raw_parts(from as *const u8, to as usize - from as usize) }.to_vec()
}

/// A program that changes every vector register.
pub fn dirty() -> Vec<u8> {
    code_of(state_dirty, state_dirty_end)
}

/// A program that faults when it has changed every register that calls preserve.
pub fn fault() -> Vec<u8> {
    code_of(state_fault, state_fault_end)
}

/// A register file in which no two words are the same.
pub fn state(flags: u64) -> [u64; 96] {
    let mut s: [u64; 96] = std::array::from_fn(|i| 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(i as u64 + 1));
    s[FLAGS] = flags;
    s[16] = 1.25f64.to_bits();
    s[17] = 0x0e7f_0000_9fc0; // x87: all masked, round to zero; mxcsr: flush to zero, all masked
    s[18..32].fill(0);
    s
}

/// Runs the function on `before`, and gives what there is afterwards.
///
/// # Safety
/// One thread at a time; the function can be called with these registers.
pub unsafe fn run(f: unsafe extern "C" fn(), before: &[u64; 96]) -> [u64; 96] {
    // SAFETY: as promised.
    unsafe {
        STATE_IN = *before;
        STATE_F = f;
        state_call();
        (&raw const STATE_OUT).read_volatile()
    }
}

/// Compares everything but the words in `but`.
pub fn compare(after: &[u64; 96], before: &[u64; 96], but: &[usize], what: &str) {
    for i in (0..96).filter(|i| !but.contains(i)) {
        assert_eq!(
            after[i], before[i],
            "{what}, flags {:#x}: word {i} is {:#x}, was {:#x}",
            before[FLAGS], after[i], before[i]
        );
    }
}

/// Runs the function under `flags` and compares everything with what it was.
pub fn unchanged(f: unsafe extern "C" fn(), flags: u64, what: &str) -> [u64; 96] {
    let before = state(flags);
    // SAFETY: under the engine's lock; the function changes nothing.
    let after = unsafe { run(f, &before) };
    compare(&after, &before, &[], what);
    before
}

/// Every combination of the status flags, with the direction flag and without.
pub fn all_flags() -> impl Iterator<Item = u64> {
    let bits = [0x1, 0x4, 0x10, 0x40, 0x80, 0x800, DF];
    (0..128u64).map(move |n| {
        0x202 | bits.iter().enumerate().filter(|(i, _)| n >> i & 1 == 1).map(|(_, b)| b).sum::<u64>()
    })
}

pub fn avx() -> bool {
    std::arch::is_x86_feature_detected!("avx")
}
