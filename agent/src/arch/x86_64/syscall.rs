//! What replaces a `syscall` instruction: the code of its thunk.
//!
//! A thunk keeps nothing across the system call but two words on the stack, and nothing at all across those that may
//! come back on another stack or with somebody else's use of this one (clone, clone3, vfork). So signals, restarts,
//! children and calls that never return need no cleaning up. rcx and r11 are free to use: the kernel clobbers them.
//!
//! ```text
//!            the displaced instructions before the system call
//!   GATE     skip the events unless TABLE[al]: no flag is touched
//!            sp-128, push site, call enter_common, jmp [rsp]   -> to one of:
//!   EVENTS   push site, push rcx (the number), call do_syscall, pop rcx, AFTER
//!   AFTER    call exit_common, jmp [rsp]                       -> LEAVE
//!   FORK k   the system call on the program's own stack pointer, ecx = its number (or -1: our own thread's), AFTER
//!   LEAVE    sp+136, DONE
//!   DONE     jump behind the original system call
//!   QUIET    do_syscall without events, sp+144, DONE
//!   GATE no  QUIET, or the original instruction where that is still in place
//!   PLAIN    the system call on the program's own stack pointer, in a thread that we know nothing of
//! ```
//! A thread whose calls are dispatched (dispatch.rs) goes by QUIET and EVENTS, whose `syscall` is in our own text.

use super::relocate;
use std::arch::global_asm;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

// Called from thunks with: sp+152 the program's sp, sp+16 the site. The system call runs here and not in the thunk,
// so that unwinders (a thread cancelled while it blocks, a debugger, a profiler) find their way from it: the frame
// is that of the instruction behind the original system call.
global_asm!(
    ".pushsection .text.bpft_syscall,\"ax\",@progbits",
    ".p2align 4",
    ".globl bpft_do_syscall",
    ".hidden bpft_do_syscall",
    ".type bpft_do_syscall,@function",
    "bpft_do_syscall:",
    ".cfi_startproc",
    ".cfi_signal_frame",
    ".cfi_def_cfa rsp, 152",
    // rip = site->after: DW_CFA_val_expression r16: CFA, const1u 136, minus, deref, deref
    ".cfi_escape 0x16,16,5, 0x08,136,0x1c,0x06,0x06",
    "syscall",
    "ret",
    ".cfi_endproc",
    ".size bpft_do_syscall,.-bpft_do_syscall",
    ".popsection",
);

unsafe extern "C" {
    fn bpft_do_syscall();
}

/// The `syscall` that thunks make.
pub(crate) fn instruction() -> usize {
    bpft_do_syscall as *const () as usize
}

/// By the low byte of a system call's number: whether the events have to be looked at. Sharing a byte costs some
/// nanoseconds, no more.
///
/// Some are looked at always, also through thunks that nobody wants any more: calls that must not run on a lowered
/// stack pointer, and those after which more code may run.
pub static TABLE: [AtomicU8; 256] = {
    let mut table = [const { AtomicU8::new(0) }; 256];
    let mut i = 0;
    while i < OPEN.len() {
        table[OPEN[i]] = AtomicU8::new(1);
        i += 1;
    }
    table
};

/// Low bytes of rt_sigreturn, clone, fork, vfork, clone3; of mmap, mprotect, pkey_mprotect; of exit and exit_group, which end
/// a task.
const OPEN: [usize; 10] = [15, 56, 57, 58, 435 & 0xff, 9, 10, 329 & 0xff, 60, 231];

/// Opens or closes the gate for the numbers with this low byte.
pub fn set_gate(low: usize, open: bool) {
    if !OPEN.contains(&low) {
        TABLE[low & 0xff].store(open.into(), Relaxed);
    }
}

/// `FORK` variants, by the number they put into ecx.
pub const FORKS: [i32; 4] = [libc::SYS_clone as i32, libc::SYS_vfork as i32, libc::SYS_clone3 as i32, OWN];
/// The number that says: this child is a thread of our own.
pub const OWN: i32 = -1;

/// Where the parts of a thunk went, as offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// See above.
    pub events: usize,
    /// In the order of [`FORKS`].
    pub forks: [usize; 4],
    /// See above.
    pub leave: usize,
    /// See above.
    pub quiet: usize,
    /// See above.
    pub plain: usize,
}

/// What a thunk refers to.
#[derive(Clone, Copy, Debug)]
pub struct Refs {
    /// Its site, which begins with the address behind the system call.
    pub site: usize,
    /// `enter_common` and `exit_common`.
    pub common: (usize, usize),
    /// Address behind the original system call.
    pub after: u64,
    /// The original instruction is still in place, at `after - 2`.
    pub in_place: bool,
}

/// Room that always suffices behind the displaced instructions.
pub const ROOM: usize = 400;

/// Appends everything behind the displaced instructions to `code`, which is going to be at `at`.
pub fn assemble(code: &mut Vec<u8>, at: u64, refs: &Refs) -> Parts {
    let mut a = Assembler { code, data: Vec::new() };
    let mut parts = Parts::default();
    a.load(&[0x4c, 0x8b, 0x1d], TABLE.as_ptr() as usize); // mov r11, [rip+TABLE]
    a.bytes(&[0x0f, 0xb6, 0xc8]); // movzx ecx, al
    a.bytes(&[0x41, 0x0f, 0xb6, 0x0c, 0x0b]); // movzx ecx, byte [r11+rcx]
    a.bytes(&[0xe3, 0]); // jrcxz
    let closed = a.code.len();
    a.bytes(DOWN);
    a.load(PUSH, refs.site);
    a.load(CALL, refs.common.0);
    a.bytes(JMP_RSP);
    // The gate's short jump lands here, within its reach.
    let here = a.code.len();
    a.code[closed - 1] = (here - closed) as u8;
    if refs.in_place {
        relocate::jump(a.code, at, refs.after - 2);
    } else {
        a.bytes(DOWN);
        a.bytes(&[0xeb, UP_ONE.len() as u8]); // over QUIET's first instruction
    }
    parts.quiet = a.code.len();
    a.bytes(UP_ONE);
    a.load(PUSH, refs.site);
    a.bytes(&[0x51]); // push rcx
    a.load(CALL, bpft_do_syscall as *const () as usize);
    a.bytes(&[0x48, 0x8d, 0xa4, 0x24, 0x90, 0, 0, 0]); // lea rsp, [rsp+144]
    relocate::jump(a.code, at, refs.after);
    parts.events = a.code.len();
    a.bytes(UP_ONE);
    a.load(PUSH, refs.site);
    a.bytes(&[0x51]); // push rcx
    a.load(CALL, bpft_do_syscall as *const () as usize);
    a.bytes(&[0x59]); // pop rcx
    a.load(CALL, refs.common.1);
    a.bytes(JMP_RSP);
    let after = a.code.len();
    a.bytes(DOWN);
    a.load(PUSH, refs.site);
    a.load(CALL, refs.common.1);
    a.bytes(JMP_RSP);
    for (part, nr) in parts.forks.iter_mut().zip(FORKS) {
        *part = a.code.len();
        a.bytes(UP);
        a.bytes(SYSCALL);
        a.bytes(&[0xb9]); // mov ecx, imm32
        a.bytes(&nr.to_le_bytes());
        let rel = after as i64 - (a.code.len() as i64 + 5);
        a.bytes(&[0xe9]);
        a.bytes(&(rel as i32).to_le_bytes());
    }
    parts.plain = a.code.len();
    a.bytes(UP);
    if refs.in_place {
        relocate::jump(a.code, at, refs.after - 2);
    } else {
        a.bytes(SYSCALL);
        relocate::jump(a.code, at, refs.after);
    }
    parts.leave = a.code.len();
    a.bytes(UP);
    relocate::jump(a.code, at, refs.after);
    a.finish(at);
    parts
}

const DOWN: &[u8] = &[0x48, 0x8d, 0x64, 0x24, 0x80]; // lea rsp, [rsp-128]
const UP: &[u8] = &[0x48, 0x8d, 0xa4, 0x24, 0x88, 0, 0, 0]; // lea rsp, [rsp+136]
const UP_ONE: &[u8] = &[0x48, 0x8d, 0x64, 0x24, 8]; // lea rsp, [rsp+8]
const SYSCALL: &[u8] = &[0x0f, 0x05];
const PUSH: &[u8] = &[0xff, 0x35]; // push [rip+x]
const CALL: &[u8] = &[0xff, 0x15]; // call [rip+x]
const JMP_RSP: &[u8] = &[0xff, 0x24, 0x24];

/// Code with constants behind it.
struct Assembler<'a> {
    code: &'a mut Vec<u8>,
    /// Offset of a rip-relative displacement, and what it is to refer to.
    data: Vec<(usize, usize)>,
}

impl Assembler<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    /// An instruction whose operand is the constant `value` in memory.
    fn load(&mut self, opcode: &[u8], value: usize) {
        self.bytes(opcode);
        self.data.push((self.code.len(), value));
        self.bytes(&[0; 4]);
    }

    fn finish(self, at: u64) {
        let pad = (at as usize + self.code.len()).next_multiple_of(8) - at as usize;
        self.code.resize(pad, 0xcc);
        let mut values: Vec<usize> = Vec::new();
        for (pos, value) in self.data {
            let i = values.iter().position(|v| *v == value).unwrap_or_else(|| {
                values.push(value);
                values.len() - 1
            });
            let rel = (pad + 8 * i) as i64 - (pos as i64 + 4);
            self.code[pos..pos + 4].copy_from_slice(&(rel as i32).to_le_bytes());
        }
        values.iter().for_each(|v| self.code.extend_from_slice(&(*v as u64).to_le_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thunk_fits_its_room_and_decodes() {
        for in_place in [false, true] {
            let mut code = Vec::new();
            let refs = Refs { site: 1, common: (2, 3), after: 0x2000, in_place };
            let parts = assemble(&mut code, 0x1000, &refs);
            assert!(code.len() <= ROOM, "{}", code.len());
            let starts: Vec<u64> = super::super::flow::decode(&code, 0).map(|i| i.ip()).collect();
            for part in [parts.events, parts.leave, parts.quiet, parts.plain].into_iter().chain(parts.forks) {
                assert!(starts.contains(&(part as u64)));
            }
        }
    }
}
