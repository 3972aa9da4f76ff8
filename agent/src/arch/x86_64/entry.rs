//! Where every thunk lands: saves the machine, runs what is wanted, restores the machine.
//!
//! A thunk (hook/thunk.rs) arrives with a call, so that the return predictor stays balanced:
//!
//! ```text
//!   sp      value of rsp at the probed instruction
//!   sp-128  the red zone, not touched
//!   sp-136  site pointer      <- overwritten with the address the thunk resumes at (`jmp [rsp]`)
//!   sp-144  return address into the thunk
//!   sp-312  PtRegs, and so on: frame.rs
//! ```
//! What usually happens at a probe is done here, on few registers and without touching a vector register: run the
//! site's list (runner.rs), take a return slot. Anything unusual goes the long way: all is saved, and `on_entry` is
//! called.
//!
//! The unwind information makes the probed instruction the caller, like a signal frame: a debugger that stops in
//! a helper shows the target's stack.

use super::frame::{self, fill_registers, restore_flags, restore_scratch, save_scratch};
use super::stubs;
use crate::hook::{self, ThreadBlock};
use crate::run::Hit;
use crate::run::enter::Direct;
use std::arch::global_asm;
use std::mem::offset_of;

/// Begins a routine that thunks call.
macro_rules! begin {
    ($name:literal) => {
        concat!(
            ".pushsection .text.bpft_entry,\"ax\",@progbits
            .p2align 6
            .globl ",
            $name,
            "
            .hidden ",
            $name,
            "
            .type ",
            $name,
            ",@function
            ",
            $name,
            ":
            .cfi_startproc
            .cfi_signal_frame
            .cfi_def_cfa rsp, 144
            // rip = site->addr: DW_CFA_val_expression r16: CFA, const1u 136, minus, deref, deref
            .cfi_escape 0x16,16,5, 0x08,136,0x1c,0x06,0x06"
        )
    };
}

macro_rules! end {
    ($name:literal) => {
        concat!(".cfi_endproc\n.size ", $name, ",.-", $name, "\n.popsection")
    };
}

/// The thread's block into a register; 0 in a thread that has none yet.
macro_rules! thread_block {
    ($reg:literal) => {
        concat!(
            "mov ",
            $reg,
            ", qword ptr [rip + bpft_tls_block@GOTTPOFF]\nmov ",
            $reg,
            ", qword ptr fs:[",
            $reg,
            "]"
        )
    };
}

/// The site's address into PtRegs::ip, where unwinders find it from then on; the site stays in rax. Clobbers rdx.
macro_rules! site_and_ip {
    () => {
        "mov rax, [rbp + 176]
        mov rdx, [rax]
        mov [rbp + 128], rdx
        .cfi_offset rip, -184"
    };
}

/// Everything is saved, then `{call}`(site, regs) says where the thunk goes on.
macro_rules! long_way {
    () => {
        concat!(
            fill_registers!(),
            "
        lea rsp, [rbp - {below}]
        and rsp, -16
        mov r10, rsp
        call bpft_keep
        mov rdi, [rbp + 176]
        mov rsi, rbp
        call {call}
        mov [rbp + 176], rax
        mov r10, rsp
        call bpft_give_back"
        )
    };
}

/// What `hook::returns::push` does in the usual case: the block is in rcx; the words with the site, the return
/// address and the one below that are named. Jumps to 9 when it cannot, with nothing changed; clobbers rax, rdx, rsi
/// and rdi.
macro_rules! push_return {
    ($site:literal, $ra:literal, $below:literal) => {
        concat!(
            "mov rdx, [rcx + {cursor}]
        mov esi, edx
        shr rdx, 32
        cmp esi, {run} // full, or no run yet
        jae 9f
        mov eax, edx
        shl eax, {run_shift}
        add eax, esi
        lea rax, [rax + rax*4]
        shl rax, 3 // the slot's offset, and the stub's
        lea rdi, [rip + bpft_slots]
        add rdi, rax
        test esi, esi
        jz 2f
        lea rsi, ",
            $ra,
            "
        cmp [rdi - {stride} + {sp}], rsi // the newest slot is of a caller?
        ja 3f
        jmp 9f
        2: // the first slot of a run: of the first run?
        cmp rdx, [rcx + {first_run}]
        jne 9f
        3:
        mov rdx, rax
        lea rsi, [rip + bpft_stubs]
        mov rax, ",
            $ra,
            "
        sub rax, rsi
        cmp rax, {pool} // tail-called by a probed function?
        jb 9f
        add rsi, rdx // the stub
        xor eax, eax
        mov rdx, -1
        cmpxchg [rdi + {sp}], rdx
        jne 9f
        inc qword ptr [rcx + {cursor}]
        mov rax, ",
            $site,
            "
        mov [rdi + {site}], rax
        mov rax, [rax + {thunk}]
        lea rcx, [rax + {copy}]
        mov [rdi + {target}], rcx
        add rax, {leave}
        mov ",
            $site,
            ", rax
        mov rax, ",
            $ra,
            "
        mov [rdi + {ra}], rax
        mov [rdi + {real}], rax
        mov ",
            $below,
            ", rsi
        add rsi, {ret_off}
        mov ",
            $ra,
            ", rsi
        lea rax, ",
            $ra,
            "
        mov [rdi + {sp}], rax"
        )
    };
}
// idx * 40 is spelled out above
const _: () = assert!(stubs::STRIDE == 40);

// Two variants: status flags are mostly dead where a probe sits (flow.rs decides).
macro_rules! probe_landing {
    ($name:literal, $flags:expr) => {
        global_asm!(
            begin!($name),
            save_scratch!(),
            site_and_ip!(),
            thread_block!("rcx"),
            "test rcx, rcx",
            "jz 8f",
            "cmp qword ptr [rcx + {mute}], 0",
            "jne 8f",
            "inc qword ptr [rcx + {active}]", // ThreadBlock::enter
            "mov r8, [rax + {direct}]",
            "test r8, r8",
            "jz 7f",
            "test dword ptr [r8 + {needs}], {registers}",
            "jz 2f",
            "mov r9, rax",
            fill_registers!(),
            "mov rax, r9",
            "2:",
            "lea rsp, [rbp - {below}]",
            "and rsp, -16",
            "lea rdx, [rsp + {hit}]",
            "mov [rdx + {vectors}], rsp",
            "mov [rdx + {ctx}], rbp",
            "mov [rdx + {regs}], rbp",
            "mov byte ptr [rdx + {replaced}], 0",
            "mov rdi, [r8 + {first}]",
            "mov rsi, [r8 + {last}]",
            "call bpft_run", // block in rcx
            thread_block!("rcx"),
            "mov rax, [rcx + {active}]", // ThreadBlock::leave
            "lea rdx, [rax - 1]",
            "lea rsi, [rax + 0xffff]",
            "cmp ax, 1",
            "cmove rdx, rsi",
            "mov [rcx + {active}], rdx",
            "mov rax, [rbp + 176]",
            "test byte ptr [rax + {want}], {only_return}",
            "jnz 4f",
            "mov rdx, [rax + {thunk}]",
            "add rdx, {go_on}",
            "mov [rbp + 176], rdx",
            "5:",
            "cmp qword ptr [rsp + {kept}], 0",
            "je 6f",
            "55:",
            $flags,
            restore_scratch!(),
            "ret",
            ".cfi_def_cfa rbp, 312",
            ".cfi_offset rbp, -280",
            "6:",
            "mov r10, rsp",
            "call bpft_give_back",
            "jmp 55b",
            "4:",
            push_return!("[rbp + 176]", "[rbp + 312]", "[rbp + 304]"),
            "jmp 5b",
            "9:", // no slot that easily
            "cmp qword ptr [rsp + {kept}], 0",
            "je 3f",
            "mov r10, rsp",
            "call bpft_keep",
            "3:",
            "mov rdi, [rbp + 176]",
            "lea rsi, [rbp + 312]",
            "call {by_stub}",
            "mov [rbp + 176], rax",
            "jmp 6b",
            "7:",
            "dec qword ptr [rcx + {active}]",
            "8:",
            long_way!(),
            "jmp 55b",
            end!($name),
            call = sym hook::on_entry,
            by_stub = sym hook::by_stub,
            below = const frame::BELOW,
            kept = const frame::VECTORS,
            hit = const frame::HIT,
            sp_after = const 312,
            vectors = const offset_of!(Hit, vectors),
            ctx = const offset_of!(Hit, ctx),
            regs = const offset_of!(Hit, regs),
            replaced = const offset_of!(Hit, replaced),
            direct = const hook::DIRECT_OFFSET,
            needs = const offset_of!(Direct, entry.needs),
            registers = const Direct::REGISTERS,
            first = const offset_of!(Direct, entry.first),
            last = const offset_of!(Direct, entry.end),
            active = const offset_of!(ThreadBlock, active),
            mute = const offset_of!(ThreadBlock, mute),
            want = const hook::WANT_OFFSET,
            only_return = const hook::RETURN_ONLY,
            thunk = const hook::THUNK_OFFSET,
            go_on = const hook::GO_ON,
            leave = const hook::LEAVE,
            copy = const hook::COPY,
            cursor = const hook::CURSOR_OFFSET,
            first_run = const hook::FIRST_RUN_OFFSET,
            run = const hook::RUN,
            run_shift = const hook::RUN.ilog2(),
            stride = const stubs::STRIDE,
            pool = const stubs::STUBS * stubs::STRIDE,
            ret_off = const stubs::RET_OFF,
            target = const offset_of!(stubs::Slot, target),
            ra = const offset_of!(stubs::Slot, ra),
            real = const offset_of!(stubs::Slot, real),
            site = const offset_of!(stubs::Slot, site),
            sp = const offset_of!(stubs::Slot, sp),
        );
    };
}

probe_landing!("bpft_entry_common", "");
probe_landing!("bpft_entry_common_flags", restore_flags!());

// For sites with a return probe only: nobody will look at the registers, so this saves five of them.
global_asm!(
    begin!("bpft_entry_return"),
    "lea rsp, [rsp - 48]",
    ".cfi_adjust_cfa_offset 48",
    "mov [rsp], rax",
    "lahf",
    "seto al",
    "mov [rsp + 40], rax",
    "mov [rsp + 8], rcx",
    "mov [rsp + 16], rdx",
    "mov [rsp + 24], rsi",
    "mov [rsp + 32], rdi",
    "mov rax, [rsp + 56]",
    "cmp dword ptr [rax + {want}], {only_return}",
    "jne 9f",
    thread_block!("rcx"),
    "test rcx, rcx",
    "jz 9f",
    "cmp qword ptr [rcx + {mute}], 0",
    "jne 9f",
    push_return!("[rsp + 56]", "[rsp + 192]", "[rsp + 184]"),
    "mov rax, [rsp + 40]",
    "add al, 0x7f", // OF; sahf leaves it alone
    "sahf",
    "mov rax, [rsp]",
    "mov rcx, [rsp + 8]",
    "mov rdx, [rsp + 16]",
    "mov rsi, [rsp + 24]",
    "mov rdi, [rsp + 32]",
    "lea rsp, [rsp + 48]",
    "ret",
    "9:",
    "mov rax, [rsp + 40]",
    "add al, 0x7f",
    "sahf",
    "mov rax, [rsp]",
    "mov rcx, [rsp + 8]",
    "mov rdx, [rsp + 16]",
    "mov rsi, [rsp + 24]",
    "mov rdi, [rsp + 32]",
    "lea rsp, [rsp + 48]",
    "jmp bpft_entry_common_flags",
    end!("bpft_entry_return"),
    want = const hook::WANT_OFFSET,
    only_return = const hook::RETURN_ONLY,
    thunk = const hook::THUNK_OFFSET,
    leave = const hook::LEAVE,
    copy = const hook::COPY,
    mute = const offset_of!(ThreadBlock, mute),
    cursor = const hook::CURSOR_OFFSET,
    first_run = const hook::FIRST_RUN_OFFSET,
    run = const hook::RUN,
    run_shift = const hook::RUN.ilog2(),
    stride = const stubs::STRIDE,
    pool = const stubs::STUBS * stubs::STRIDE,
    ret_off = const stubs::RET_OFF,
    target = const offset_of!(stubs::Slot, target),
    ra = const offset_of!(stubs::Slot, ra),
    real = const offset_of!(stubs::Slot, real),
    site = const offset_of!(stubs::Slot, site),
    sp = const offset_of!(stubs::Slot, sp),
);

unsafe extern "C" {
    fn bpft_entry_common();
    fn bpft_entry_common_flags();
    fn bpft_entry_return();
}

/// Where a thunk calls: `flags` says that the status flags are live at the site, `only_return` that it was made for a
/// return probe alone (if more is wanted later, that routine notices, and passes on).
pub(crate) fn landing(flags: bool, only_return: bool) -> usize {
    let f = match (flags, only_return) {
        (_, true) => bpft_entry_return,
        (true, false) => bpft_entry_common_flags,
        (false, false) => bpft_entry_common,
    };
    f as unsafe extern "C" fn() as usize
}

pub(super) use thread_block;
