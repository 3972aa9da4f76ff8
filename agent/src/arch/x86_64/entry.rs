//! Where every thunk lands: saves the machine, runs what is wanted, restores the machine.
//!
//! A thunk (hook/thunk.rs) arrives with a call, so that the return predictor stays balanced:
//!
//! ```text
//!   sp      value of rsp at the probed instruction
//!   sp-128  the red zone, not touched
//!   sp-136  where the thunk goes on (`jmp [rsp + 8]`): changed where that is not the displaced instructions
//!   sp-144  site pointer
//!   sp-152  return address into the thunk
//!   sp-320  PtRegs, and so on: frame.rs
//! ```
//! What usually happens at a probe is done here, on few registers and without touching a vector register: run the
//! site's list (runner.rs), take a return slot. Anything unusual goes the long way: all is saved, and `on_entry` is
//! called.
//!
//! The unwind information makes the probed instruction the caller, like a signal frame: a debugger that stops in
//! a helper shows the target's stack.

use super::frame::{
    self, begin, call_rust, end, enter_or_8, fill_registers, leave, restore_flags, restore_scratch,
    save_preserved, save_scratch, thread_block,
};
use super::stubs;
use crate::hook::{self, ThreadBlock};
use crate::run::enter::{Direct, List};
use crate::run::process;
use std::arch::global_asm;
use std::mem::offset_of;

/// PtRegs is completed; the site is in rax. Clobbers rax and rdx.
macro_rules! registers {
    () => {
        concat!("mov rdx, [rax]\nmov [rbp + 128], rdx\n", fill_registers!())
    };
}

/// What `hook::returns::push` does in the usual case: the block is in rcx; the words with the site, where the thunk
/// goes on, the return address and the one below that are named. Jumps to 9 when it cannot, with nothing changed;
/// clobbers rax, rdx, rsi and rdi.
macro_rules! push_return {
    ($site:literal, $go_on:literal, $ra:literal, $below:literal) => {
        concat!(
            "mov rdx, [rcx + {cursor}]
        mov esi, edx
        shr rdx, 32 // the slot's offset, and the stub's
        cmp esi, {run} // full, or no run yet
        jae 9f
        lea rdi, [rip + bpft_slots]
        add rdi, rdx
        test esi, esi
        jz 2f
        lea rsi, ",
            $ra,
            "
        cmp [rdi - {stride} + {sp}], rsi // the newest slot is of a caller?
        ja 3f
        jmp 9f
        2: // the first slot of a run: of the first run?
        imul rax, [rcx + {first_run}], {run_bytes}
        cmp rax, rdx
        jne 9f
        3:
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
        movabs rax, {step}
        xadd [rcx + {cursor}], rax
        mov [rdi + {before}], rax
        mov rax, ",
            $site,
            "
        mov [rdi + {site}], rax
        mov rax, [rax + {thunk}]
        lea rcx, [rax + {copy}]
        mov [rdi + {target}], rcx
        add rax, {leave}
        mov ",
            $go_on,
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

/// `global_asm` of a routine that uses `push_return`, with what that needs.
macro_rules! with_return {
    ($($rest:tt)*) => {
        global_asm!(
            $($rest)*
            want = const hook::WANT_OFFSET,
            only_return = const hook::RETURN_ONLY,
            thunk = const hook::THUNK_OFFSET,
            leave = const hook::LEAVE,
            copy = const hook::COPY,
            cursor = const hook::CURSOR_OFFSET,
            first_run = const hook::FIRST_RUN_OFFSET,
            run = const hook::RUN,
            run_bytes = const hook::RUN * stubs::STRIDE,
            step = const hook::STEP,
            stride = const stubs::STRIDE,
            pool = const stubs::STUBS * stubs::STRIDE,
            ret_off = const stubs::RET_OFF,
            target = const offset_of!(stubs::Slot, target),
            ra = const offset_of!(stubs::Slot, ra),
            real = const offset_of!(stubs::Slot, real),
            site = const offset_of!(stubs::Slot, site),
            sp = const offset_of!(stubs::Slot, sp),
            before = const offset_of!(stubs::Slot, before),
        );
    };
}

// For unwinders: rip = site->addr: DW_CFA_val_expression r16: CFA, const1u 144, minus, deref, deref.
//
// Two variants: status flags are mostly dead where a probe sits (flow.rs decides).
macro_rules! probe_landing {
    ($name:literal, $flags:expr) => {
        with_return!(
            begin!($name, "152", "0x16,16,5, 0x08,144,0x1c,0x06,0x06"),
            save_scratch!(),
            "mov rax, [rbp + 176]",
            enter_or_8!(),
            "mov r8, [rax + {direct}]",
            "mov r9, [rax]",
            "cmp dword ptr [r8 + {needs}], 0",
            "jne 7f",
            "22:",
            "lea rsp, [rbp - {below}]",
            "and rsp, -16",
            "mov rdi, [r8 + {first}]",
            "mov rsi, [r8 + {last}]",
            "mov rdx, rbp",
            "call [r8 + {run_list}]",
            thread_block!("rcx"),
            leave!(),
            "mov rax, [rbp + 176]",
            "test byte ptr [rax + {want}], {only_return}",
            "jnz 4f",
            "5:",
            $flags,
            restore_scratch!(),
            "ret",
            ".cfi_def_cfa rbp, 320",
            ".cfi_offset rbp, -288",
            "4:",
            push_return!("[rbp + 176]", "[rbp + 184]", "[rbp + 320]", "[rbp + 312]"),
            "jmp 5b",
            "9:", // no slot that easily
            call_rust!("mov rdi, [rbp + 176]\nlea rsi, [rbp + 320]", "{by_stub}"),
            "mov [rbp + 184], rax",
            "jmp 5b",
            "7:",
            "test dword ptr [r8 + {needs}], {long_way}",
            "jnz 75f",
            registers!(),
            "jmp 22b",
            "75:",
            "dec qword ptr [rcx + {active}]",
            "8:",
            registers!(),
            call_rust!("mov rdi, [rbp + 176]\nmov rsi, rbp", "{on_entry}"),
            "mov [rbp + 184], rax",
            "jmp 5b",
            end!($name),
            on_entry = sym hook::on_entry,
            by_stub = sym hook::by_stub,
            pid_page = sym process::PID_PAGE,
            usual_pid = const frame::USUAL_PID,
            usual = const frame::USUAL,
            active = const frame::ACTIVE,
            below = const frame::BELOW,
            sp_after = const 320,
            direct = const hook::DIRECT_OFFSET,
            needs = const offset_of!(Direct, entry.needs),
            long_way = const List::LONG_WAY,
            first = const offset_of!(Direct, entry.first),
            last = const offset_of!(Direct, entry.end),
            run_list = const offset_of!(Direct, entry.run),
        );
    };
}

probe_landing!("bpft_entry_common", "");
probe_landing!("bpft_entry_common_flags", restore_flags!());

/// The reverse of how `return_landing` begins.
macro_rules! restore_five {
    () => {
        "mov rax, [rsp]
        mov rcx, [rsp + 8]
        mov rdx, [rsp + 16]
        mov rsi, [rsp + 24]
        mov rdi, [rsp + 32]
        lea rsp, [rsp + 48]
        .cfi_adjust_cfa_offset -48"
    };
}

// For sites with a return probe only: nobody will look at the registers, so this saves five of them.
macro_rules! return_landing {
    ($name:literal, $flags:expr, $otherwise:literal) => {
        with_return!(
            begin!($name, "152", "0x16,16,5, 0x08,144,0x1c,0x06,0x06"),
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
            push_return!("[rsp + 56]", "[rsp + 64]", "[rsp + 200]", "[rsp + 192]"),
            $flags,
            ".cfi_remember_state",
            restore_five!(),
            "ret",
            ".cfi_restore_state",
            "9:",
            "mov rax, [rsp + 40]",
            "add al, 0x7f", // OF; sahf leaves it alone
            "sahf",
            restore_five!(),
            $otherwise,
            end!($name),
            mute = const offset_of!(ThreadBlock, mute),
        );
    };
}

return_landing!("bpft_entry_return", "", "jmp bpft_entry_common");
return_landing!(
    "bpft_entry_return_flags",
    "mov rax, [rsp + 40]\nadd al, 0x7f\nsahf",
    "jmp bpft_entry_common_flags"
);

unsafe extern "C" {
    fn bpft_entry_common();
    fn bpft_entry_common_flags();
    fn bpft_entry_return();
    fn bpft_entry_return_flags();
}

/// Where a thunk calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Landing {
    /// The status flags are live at the site.
    pub flags: bool,
    /// It was made for a return probe alone (if more is wanted later, that routine notices, and passes on).
    pub only_return: bool,
}

impl Landing {
    /// The routine.
    pub fn address(self) -> usize {
        let f = match (self.flags, self.only_return) {
            (true, true) => bpft_entry_return_flags,
            (false, true) => bpft_entry_return,
            (true, false) => bpft_entry_common_flags,
            (false, false) => bpft_entry_common,
        };
        f as unsafe extern "C" fn() as usize
    }
}
