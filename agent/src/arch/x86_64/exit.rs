//! Where every return stub lands: saves the machine, runs what is wanted, frees the slot, restores the machine.
//!
//! As in entry.rs the usual case is done here and the rest by `on_return`.

use super::frame::{
    self, call_rust, enter_or_8, fill_registers, leave, restore_flags, restore_scratch, save_preserved,
    save_scratch, thread_block,
};
use super::stubs;
use crate::hook;
use crate::run::enter::{Direct, List};
use crate::run::process;
use std::arch::global_asm;
use std::mem::offset_of;

// On entry: [rsp] = the stub's second return address, [rsp+8] = the caller's return address in its own place. For the
// unwinder the stub does not exist: this was called from the caller.
global_asm!(
    ".pushsection .text.bpft_entry,\"ax\",@progbits",
    ".p2align 6",
    ".globl bpft_exit_common",
    ".hidden bpft_exit_common",
    ".type bpft_exit_common,@function",
    "bpft_exit_common:",
    ".cfi_startproc",
    ".cfi_def_cfa rsp, 16",
    ".cfi_offset rip, -8",
    save_scratch!(),
    enter_or_8!(),
    "mov rax, [rbp + 168]",
    "lea rdi, [rip + bpft_stubs + {after_call}]",
    "sub rax, rdi",
    "lea rdi, [rip + bpft_slots]",
    "add rax, rdi",
    "mov [rbp - {slot}], rax",
    "mov r8, [rax + {site}]",
    "mov r9, [r8]",
    "mov r8, [r8 + {direct}]",
    "cmp dword ptr [r8 + {needs}], 0",
    "jne 7f",
    "2:",
    "lea rsp, [rbp - {below}]",
    "and rsp, -16",
    "mov rdi, [r8 + {first}]",
    "mov rsi, [r8 + {last}]",
    "mov rdx, rbp",
    "call [r8 + {run_list}]",
    thread_block!("rcx"),
    leave!(),
    // What `hook::returns::pop` does when this was the newest slot of its run, and not the first of a later one. `before`
    // is read first: a signal handler may take the slot as soon as it is free.
    "mov rdi, [rbp - {slot}]",
    "mov rsi, [rdi + {before}]",
    "mov qword ptr [rdi + {sp}], 0",
    "movabs rax, {step}",
    "add rax, rsi",
    "cmpxchg [rcx + {cursor}], rsi",
    "jne 9f",
    "5:",
    restore_flags!(), // hand-written functions return results in the carry flag
    restore_scratch!(),
    "ret",
    ".cfi_def_cfa rbp, 184",
    ".cfi_offset rbp, -152",
    "9:",
    call_rust!("mov rdi, [rbp + 168]", "{settled}"),
    "jmp 5b",
    "7:",
    "test dword ptr [r8 + {needs}], {long_way}",
    "jnz 75f",
    "mov rdx, [rax + {real}]",
    "mov [rbp + 128], rdx",
    fill_registers!(),
    "jmp 2b",
    "75:",
    "dec qword ptr [rcx + {active}]",
    "8:",
    fill_registers!(), // on_return knows the ip
    call_rust!("mov rdi, [rbp + 168]\nmov rsi, rbp", "{on_return}"),
    "jmp 5b",
    ".cfi_endproc",
    ".size bpft_exit_common,.-bpft_exit_common",
    ".popsection",
    on_return = sym hook::on_return,
    settled = sym hook::settled,
    pid_page = sym process::PID_PAGE,
    usual_pid = const frame::USUAL_PID,
    usual = const frame::USUAL,
    active = const frame::ACTIVE,
    after_call = const stubs::AFTER_CALL,
    below = const frame::BELOW,
    sp_after = const 184,
    direct = const hook::DIRECT_OFFSET,
    needs = const offset_of!(Direct, ret.needs),
    long_way = const List::LONG_WAY,
    first = const offset_of!(Direct, ret.first),
    last = const offset_of!(Direct, ret.end),
    run_list = const offset_of!(Direct, ret.run),
    cursor = const hook::CURSOR_OFFSET,
    step = const hook::STEP,
    slot = const frame::SPARE,
    before = const offset_of!(stubs::Slot, before),
    real = const offset_of!(stubs::Slot, real),
    site = const offset_of!(stubs::Slot, site),
    sp = const offset_of!(stubs::Slot, sp),
);
