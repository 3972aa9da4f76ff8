//! Around a system call: saves the machine, reports, restores the machine. As entry.rs, for thunks of system calls
//! (syscall.rs) and for calls that the kernel dispatched to us (dispatch.rs), which have one word more on the stack.
//!
//! ```text
//!   sp        value of rsp at the system call
//!   sp-128    the red zone, not touched
//!   sp-136    the site; dispatched: the address behind the instruction
//!   sp-144    return address; dispatched: that address again, and at sp-152 the return address
//!   ...       PtRegs, and so on: frame.rs
//! ```
//! The word above the return address is overwritten with the address at which the caller goes on (`jmp [rsp]`).
//! rcx and r11 need no restoring, since a system call clobbers them; rcx carries the number to the other side.
//!
//! A call of which nothing more has to be known is reported here (`syscalls::direct`); for all others, and from dispatched
//! calls, hook/syscall.rs is called.

use super::frame::{
    self, begin, call_rust, end, enter_or_8, fill_registers, leave, restore_flags, restore_scratch,
    save_preserved, save_scratch, thread_block,
};
use crate::hook::{self, SyscallSite, ThreadBlock};
use crate::run::enter::List;
use crate::run::process;
use crate::syscalls::direct::{CALLS, Call, NUMBERS};
use std::arch::global_asm;
use std::mem::offset_of;

/// The long way: `{call}`(word, regs) says where the thread goes on.
macro_rules! report {
    () => {
        concat!(
            fill_registers!(),
            "\n",
            call_rust!("mov rdi, [rbp + 176]\nmov rsi, rbp", "{call}"),
            "\nmov [rbp + 176], rax\n",
            restore_flags!(),
            "\n",
            restore_scratch!(),
            "\nret"
        )
    };
}

/// What programs get, the record of a tracepoint; then a word of ours.
#[repr(C, align(16))]
struct Record {
    words: [u64; 8],
    /// [`List::needs`].
    needs: u64,
}

/// From rbp down to where the room for [`frame::Below`] may begin.
const BELOW: usize = frame::BELOW + size_of::<Record>();
/// Where the record is from there.
const RECORD: usize = BELOW - size_of::<Record>() - 16;
const _: () = assert!(RECORD.is_multiple_of(16) && RECORD >= size_of::<frame::Below>());

/// The list for the call whose number is in `$nr`; goes to 7 if it takes the long way. `needs` in eax, the list's call
/// in r8; clobbers rdx.
macro_rules! find_or_7 {
    ($nr:literal) => {
        concat!(
            "cmp byte ptr [rcx + {dispatch}], 0 // see syscalls/dispatch.rs
        jne 7f
        mov edx, ",
            $nr,
            "
        cmp edx, {numbers}
        jae 7f
        mov r8, [rip + {table}]
        test r8, r8
        jz 7f
        shl edx, {shift}
        add r8, rdx
        mov eax, [r8 + {needs}]
        test al, {long_way}
        jnz 7f
        lea rsp, [rbp - {room}]
        and rsp, -16
        mov [rsp + {kept_needs}], rax"
        )
    };
}

/// The beginning of a record: the thread, and the number, which is in `$nr`. Clobbers rdx.
macro_rules! header {
    ($nr:literal) => {
        concat!(
            "mov edx, [rcx + {usual}] // the common header: flags and counts are nobody's business, then the thread
        shl rdx, 32
        mov [rsp + {record}], rdx
        movsxd rdx, dword ptr ",
            $nr,
            "
        mov [rsp + {record} + 8], rdx"
        )
    };
}

/// A side of a call: its routine, the register of which the number is, what fills in the record behind its header, what
/// chooses where the thunk goes on (an address into rdx; site in rax, thunk in rdx), its list, the long way, operands of
/// its own.
// rip = site->after, kept in PtRegs::ip once the site's word is no more: DW_CFA_val_expression r16: CFA, const1u 136,
// minus, deref, deref
macro_rules! side {
    ($name:literal, $nr:literal, $record:expr, $go_on:expr, $list:ident, $call:path, $($own:tt)*) => {
        global_asm!(
            begin!($name, "144", "0x16,16,5, 0x08,136,0x1c,0x06,0x06"),
            save_scratch!(),
            "mov rax, [rbp + 176]",
            "mov rdx, [rax]",
            "mov [rbp + 128], rdx",
            ".cfi_offset rip, -184",
            enter_or_8!(),
            find_or_7!($nr),
            "test al, {nothing}",
            "jnz 6f",
            header!($nr),
            $record,
            "lea rdx, [rsp + {record}]",
            "mov rdi, [r8 + {first}]",
            "mov rsi, [r8 + {last}]",
            "xor r9d, r9d",
            "call [r8 + {run_list}]",
            thread_block!("rcx"),
            "6:",
            leave!(),
            "mov rax, [rbp + 176]",
            "mov rdx, [rax + {thunk}]",
            $go_on,
            "mov [rbp + 176], rdx",
            restore_flags!(),
            restore_scratch!(),
            "ret",
            ".cfi_def_cfa rbp, 312",
            ".cfi_offset rbp, -280",
            "7:",
            "dec qword ptr [rcx + {active}]",
            "8:",
            report!(),
            end!($name),
            call = sym $call,
            pid_page = sym process::PID_PAGE,
            usual_pid = const frame::USUAL_PID,
            usual = const frame::USUAL,
            active = const frame::ACTIVE,
            dispatch = const offset_of!(ThreadBlock, dispatch),
            below = const frame::BELOW,
            room = const BELOW,
            record = const RECORD,
            kept_needs = const RECORD + offset_of!(Record, needs),
            sp_after = const 312,
            numbers = const NUMBERS,
            table = sym CALLS,
            shift = const size_of::<Call>().ilog2(),
            needs = const offset_of!(Call, $list.needs),
            first = const offset_of!(Call, $list.first),
            last = const offset_of!(Call, $list.end),
            run_list = const offset_of!(Call, $list.run),
            long_way = const List::LONG_WAY,
            nothing = const Call::NOTHING,
            thunk = const SyscallSite::THUNK,
            $($own)*
        );
    };
}

// rdi, rsi, r10 and r9 are still what they were.
side!(
    "bpft_syscall_enter",
    "[rbp + 80]",
    "mov [rsp + {record} + 16], rdi
    mov [rsp + {record} + 24], rsi
    mov rdx, [rbp + 96]
    mov [rsp + {record} + 32], rdx
    mov [rsp + {record} + 40], r10
    mov rdx, [rbp + 72]
    mov [rsp + {record} + 48], rdx
    mov [rsp + {record} + 56], r9",
    "test byte ptr [rsp + {kept_needs}], {exit_too}
    jnz 4f
    add rdx, [rax + {quiet}]
    jmp 5f
    4:
    mov ecx, [rbp + 80]
    mov [rbp + 88], rcx
    add rdx, [rax + {events}]
    5:",
    enter,
    hook::on_syscall_enter,
    exit_too = const Call::EXIT_TOO,
    quiet = const SyscallSite::QUIET,
    events = const SyscallSite::EVENTS,
);

side!(
    "bpft_syscall_exit",
    "[rbp + 88]",
    "mov rdx, [rbp + 80]
    mov [rsp + {record} + 16], rdx
    mov qword ptr [rsp + {record} + 24], 0
    mov qword ptr [rsp + {record} + 32], 0
    mov qword ptr [rsp + {record} + 40], 0
    mov qword ptr [rsp + {record} + 48], 0
    mov qword ptr [rsp + {record} + 56], 0",
    "mov rcx, [rax]
    mov [rbp + 88], rcx
    add rdx, [rax + {leave_part}]",
    exit,
    hook::on_syscall_exit,
    leave_part = const SyscallSite::LEAVE,
);

/// For calls that the kernel dispatched: rip is the word itself.
macro_rules! dispatched {
    ($name:literal, $call:path) => {
        global_asm!(
            begin!($name, "152", "0x16,16,4, 0x08,136,0x1c,0x06"),
            save_scratch!(),
            "mov rax, [rbp + 176]",
            "mov [rbp + 128], rax",
            report!(),
            end!($name),
            call = sym $call,
            below = const frame::BELOW,
            sp_after = const 320,
        );
    };
}
dispatched!("bpft_dispatch_enter", hook::on_dispatch_enter);
dispatched!("bpft_dispatch_exit", hook::on_dispatch_exit);

unsafe extern "C" {
    fn bpft_syscall_enter();
    fn bpft_syscall_exit();
}

/// Addresses of the routines that thunks call before and after a system call.
pub(crate) fn syscall_common() -> (usize, usize) {
    (bpft_syscall_enter as *const () as usize, bpft_syscall_exit as *const () as usize)
}
