//! Runs a list of programs: what `run::enter` does in the usual case, in as few instructions as it takes.
//!
//! One run: is the program enabled, and for this process; take the CPU slot; write the [`Run`]; call; give the slot
//! back. The thread's ids, its guard (guarded.rs) and what all runs of a hit have in common are written once. Whatever is not as
//! usual (CPU slot taken, out of fuel) is `run::enter`'s to deal with, after the vector registers and the direction flag
//! have been put aside: nothing here touches them.
//!
//! A list of which no program can use or lack any of that is run without ([`bare`]).
//!
//! Who calls one of these has entered a callback that is the thread's outermost, so no run is in progress, and nobody's
//! guard has to be put back: a guard counts only while its program runs.

use super::frame::{self, save_preserved};
use super::guarded::LIST;
use crate::hook::ThreadBlock;
use crate::run::enter::{self, Entry};
use crate::run::helpers::signal;
use crate::run::{FUEL, Hit, Run, TailCalls, held, process};
use bpftime_vm::RunHeader;
use std::arch::global_asm;
use std::mem::offset_of;

/// (rdi: first entry, rsi: behind the last, rdx: context, rcx: the thread's block, r9: [`Hit::func_ip`], rbp: PtRegs, of
/// which the scratch registers are there, rsp: [`frame::Below`]); clobbers what calls may.
pub(crate) type Routine = unsafe extern "C" fn();

/// The frame of a list.
#[repr(C, align(16))]
struct Frame {
    run: Run,
    /// Where 0 gives back what the run took: the slot's word, or `nothing`.
    slot: usize,
    nothing: usize,
    block: usize,
}

/// With the return address it is a multiple of 16.
const FRAME: usize = size_of::<Frame>() + 8;
/// Where the caller's [`frame::Below`] begins.
const BELOW: usize = FRAME + 8;
const HIT: usize = BELOW + frame::HIT;

/// The vector registers, unless that was done before in this hit.
macro_rules! keep_once {
    () => {
        "mov r10, [rsp + {vectors}]
        test r10, r10
        jz 20f
        mov qword ptr [rsp + {vectors}], 0
        call bpft_keep
        20:"
    };
}

global_asm!(
    ".pushsection .text.bpft_entry,\"ax\",@progbits",
    ".p2align 6",
    ".globl bpft_run_list",
    ".hidden bpft_run_list",
    ".type bpft_run_list,@function",
    "bpft_run_list:",
    ".cfi_startproc",
    "sub rsp, {frame}",
    ".cfi_adjust_cfa_offset {frame}",
    save_preserved!(),
    "mov [rsp + {end}], rsi",
    "mov [rsp + {ctx}], rdx",
    "mov [rsp + {regs}], rbp",
    "mov [rsp + {func_ip}], r9",
    "lea rax, [rsp + {below}]",
    "mov [rsp + {vectors}], rax",
    "mov byte ptr [rsp + {replaced}], 0",
    "lea rax, [rsp + {hit_at}]",
    "mov [rsp + {hit}], rax",
    "mov rax, [rcx + {usual}]", // pid << 32 | tid
    "mov [rsp + {pid_tgid}], rax",
    "lea rax, [rsp + {list}]",
    "mov [rcx + {recover}], rax",
    "mov [rsp + {block}], rcx",
    "2:", // an entry
    "mov [rsp + {bound}], rdi",
    "mov rax, [rdi + {enabled}]",
    "cmp byte ptr [rax], 0",
    "je 4f",
    "movsxd rax, dword ptr [rip + {rseq}]",
    "mov eax, fs:[rax]",
    "cmp eax, [rdi + {slot_count}]",
    "jae 6f",
    "mov [rsp + {cpu}], rax",
    "mov rsi, rax",
    "shl rsi, {slot_shift}",
    "add rsi, [rdi + {slots}]",
    "cmp dword ptr [rdi + {traits}], 0",
    "jne 8f",
    "21:",
    "mov rdx, [rdi + {owner}]",
    "mov edx, [rdx]",
    "shl rdx, 32",
    "mov eax, [rsp + {pid_tgid}]",
    "or rdx, rax",
    "mov [rsp + {run_owner}], rdx",
    "xor eax, eax",
    "lock cmpxchg [rsi], rdx", // Page::acquire
    "jne 6f",
    "22:",
    "mov [rsp + {slot}], rsi",
    "mov qword ptr [rsp + {fuel}], {full}",
    "mov rax, [rdi + {entry_cookie}]",
    "mov [rsp + {cookie}], rax",
    "mov byte ptr [rsp + {reads}], 0",
    "mov dword ptr [rsp + {tail_calls}], 0",
    "mov dword ptr [rsp + {held}], 0",
    "mov rax, [rdi + {func}]",
    "mov rdi, [rsp + {ctx}]",
    "mov r9, rsp",
    "call rax",
    "3:",
    "cmp qword ptr [rsp + {fuel}], 0",
    "jl 24f",
    "32:",
    "mov rax, [rsp + {slot}]",
    "mov qword ptr [rax], 0", // Page::release
    "4:",
    "mov rdi, [rsp + {bound}]",
    "add rdi, {entry}",
    "cmp rdi, [rsp + {end}]",
    "jne 2b",
    "cmp qword ptr [rsp + {vectors}], 0",
    "je 27f",
    "9:",
    ".cfi_remember_state",
    "add rsp, {frame}",
    ".cfi_adjust_cfa_offset -{frame}",
    "ret",
    ".cfi_restore_state",
    "27:", // a helper was called, or one of ours: perhaps one that sent signals, whose handlers may not come back
    "mov rdi, [rsp + {block}]",
    "cmp qword ptr [rdi + {signals}], 0",
    "jne 29f",
    "28:",
    "lea r10, [rsp + {below}]",
    "call bpft_give_back",
    "jmp 9b",
    "29:",
    "call {send_signals}",
    "jmp 28b",
    ".globl bpft_run_faulted",
    ".hidden bpft_run_faulted",
    "bpft_run_faulted:", // in the program: the signal handler put rsp back
    "mov rbp, [rsp + {regs}]",
    "mov r15, [rbp]",
    "mov r14, [rbp + 8]",
    "mov r13, [rbp + 16]",
    "mov r12, [rbp + 24]",
    "mov rbx, [rbp + 40]",
    "mov qword ptr [rsp + {fuel}], -1",
    "jmp 3b",
    "6:", // no CPU slot that easily
    keep_once!(),
    "mov rdi, [rsp + {bound}]",
    "lea rsi, [rsp + {hit_at}]",
    "mov rax, [rsp + {func_ip}]",
    "mov [rsp + {hit_func_ip}], rax",
    "call {run_one}",
    "jmp 4b",
    "8:", // something that most programs are not
    "mov edx, [rdi + {traits}]",
    "test dl, {one_process}",
    "jz 25f",
    "mov eax, [rdi + {only_pid}]",
    "cmp eax, [rsp + {pid_tgid} + 4]",
    "jne 4b",
    "25:",
    "test dl, {vector}",
    "jz 26f",
    keep_once!(),
    "26:",
    "test dl, {slotless}",
    "jz 21b",
    "lea rsi, [rsp + {nothing}]",
    "jmp 22b",
    "24:", // out of fuel, or a fault
    keep_once!(),
    "mov rdi, [rsp + {bound}]",
    "mov rsi, rsp",
    "call {give_up}",
    "jmp 32b",
    ".cfi_endproc",
    ".size bpft_run_list,.-bpft_run_list",
    ".popsection",
    frame = const FRAME,
    below = const BELOW,
    hit_at = const HIT,
    vectors = const HIT + offset_of!(Hit, vectors),
    end = const HIT + offset_of!(Hit, end),
    ctx = const HIT + offset_of!(Hit, ctx),
    regs = const HIT + offset_of!(Hit, regs),
    replaced = const HIT + offset_of!(Hit, replaced),
    hit_func_ip = const HIT + offset_of!(Hit, func_ip),
    pid_tgid = const offset_of!(RunHeader, pid_tgid),
    func_ip = const offset_of!(RunHeader, func_ip),
    cookie = const offset_of!(RunHeader, cookie),
    cpu = const offset_of!(RunHeader, cpu),
    fuel = const offset_of!(RunHeader, fuel),
    hit = const offset_of!(Run, hit),
    bound = const offset_of!(Run, bound),
    run_owner = const offset_of!(Run, owner),
    reads = const offset_of!(Run, reads),
    tail_calls = const offset_of!(Run, tail) + offset_of!(TailCalls, count),
    held = const offset_of!(Run, held) + held::COUNT,
    slot = const offset_of!(Frame, slot),
    nothing = const offset_of!(Frame, nothing),
    block = const offset_of!(Frame, block),
    usual = const frame::USUAL,
    signals = const offset_of!(ThreadBlock, run) + signal::QUEUE * 8,
    recover = const offset_of!(ThreadBlock, recover),
    list = const LIST,
    enabled = const enter::ENABLED,
    only_pid = const enter::ONLY_PID,
    slot_count = const enter::SLOT_COUNT,
    slots = const enter::SLOTS,
    traits = const enter::TRAITS,
    owner = const enter::OWNER,
    entry_cookie = const enter::COOKIE,
    one_process = const enter::ONE_PROCESS,
    func = const enter::FUNC,
    slotless = const enter::SLOTLESS,
    vector = const enter::VECTOR,
    entry = const size_of::<Entry>(),
    slot_shift = const bpftime_shm::session::page::SLOT_STRIDE.ilog2(),
    full = const FUEL,
    rseq = sym process::RSEQ_CPU_OFFSET,
    run_one = sym enter::run_one,
    give_up = sym enter::give_up,
    send_signals = sym enter::send_signals,
);

// The run comes first: its address, the last argument of every program, is rsp, which is aligned there.
const _: () = assert!(offset_of!(Frame, run) == 0 && (FRAME + 8).is_multiple_of(16));
const _: () = assert!(offset_of!(Run, header) == 0);
// Words that are written as a whole: cpu with the reserved half behind it.
const _: () = assert!(offset_of!(RunHeader, reserved) == offset_of!(RunHeader, cpu) + 4);
const _: () = assert!(FUEL <= i32::MAX as i64);

/// Does not compile when a run gets a field: what has to be written of it at the start of a run is to be written above.
const _: fn(Run) = |run| {
    let Run { header, bound: _, hit: _, owner: _, reads: _, tail: _, held: _ } = run;
    let RunHeader { fuel: _, pid_tgid: _, cookie: _, func_ip: _, cpu: _, reserved: _ } = header;
};

/// The frame of a bare list: entry, end, context.
const BARE: usize = 40;

// One that is alone returns to our caller by itself.
//
// A program gets a run that nobody writes and that tells it nothing: there is no helper that could look at it, and what
// the program computes from it nobody sees.
global_asm!(
    ".pushsection .text.bpft_entry,\"ax\",@progbits",
    ".p2align 6",
    ".globl bpft_run_bare",
    ".hidden bpft_run_bare",
    ".type bpft_run_bare,@function",
    "bpft_run_bare:",
    ".cfi_startproc",
    "sub rsp, {frame}",
    ".cfi_adjust_cfa_offset {frame}",
    "mov [rsp + 8], rsi",
    "mov [rsp + 16], rdx",
    "2:",
    "mov [rsp], rdi",
    "mov rax, [rdi + {enabled}]",
    "cmp byte ptr [rax], 0",
    "je 4f",
    "mov rax, [rdi + {func}]",
    "mov rdi, [rsp + 16]",
    "lea r9, [rsp + {frame} + 8]",
    "call rax",
    "4:",
    "mov rdi, [rsp]",
    "add rdi, {entry}",
    "cmp rdi, [rsp + 8]",
    "jne 2b",
    "add rsp, {frame}",
    ".cfi_adjust_cfa_offset -{frame}",
    ".globl bpft_run_nothing",
    ".hidden bpft_run_nothing",
    "bpft_run_nothing:",
    "ret",
    ".cfi_endproc",
    ".size bpft_run_bare,.-bpft_run_bare",
    ".p2align 6",
    ".globl bpft_run_bare_one",
    ".hidden bpft_run_bare_one",
    ".type bpft_run_bare_one,@function",
    "bpft_run_bare_one:",
    ".cfi_startproc",
    "mov rax, [rdi + {enabled}]",
    "cmp byte ptr [rax], 0",
    "je bpft_run_nothing",
    "mov rax, [rdi + {func}]",
    "mov rdi, rdx",
    "lea r9, [rsp + 8]",
    "jmp rax",
    ".cfi_endproc",
    ".size bpft_run_bare_one,.-bpft_run_bare_one",
    ".popsection",
    frame = const BARE,
    enabled = const enter::ENABLED,
    func = const enter::FUNC,
    entry = const size_of::<Entry>(),
);
const _: () = assert!((BARE + 8).is_multiple_of(16));
// The run that programs get: whatever lies there, as large as what they may read.
const _: () = assert!(size_of::<frame::Below>() >= size_of::<RunHeader>());

unsafe extern "C" {
    fn bpft_run_list();
    fn bpft_run_bare();
    fn bpft_run_bare_one();
    fn bpft_run_nothing();
}

/// Runs any list.
pub(crate) const fn list() -> Routine {
    bpft_run_list
}

/// Runs a list of programs that can neither use nor lack anything: local ones that run through, and for all processes.
pub(crate) const fn bare() -> Routine {
    bpft_run_bare
}

/// As [`bare`], for a list of one.
pub(crate) const fn bare_one() -> Routine {
    bpft_run_bare_one
}

/// Runs no program.
pub(crate) const fn nothing() -> Routine {
    bpft_run_nothing
}
