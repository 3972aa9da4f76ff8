//! Runs a site's list of programs: what `run::enter` does in the usual case, in as few instructions as it takes.
//!
//! One run: is the program enabled, and for this process; take the CPU slot; write the [`Run`]; call; give the slot
//! back. The thread's ids, its guard (guarded.rs) and what all runs of a hit have in common are written once. Whatever is not as
//! usual (ids unknown, CPU slot taken, out of fuel) is `run::enter`'s to deal with, after the vector registers and
//! the direction flag have been put aside: nothing here touches them.

use super::entry::thread_block;
use super::guarded::LIST;
use crate::hook::ThreadBlock;
use crate::run::enter::{self, Entry};
use crate::run::helpers::signal;
use crate::run::{FUEL, Hit, Run, TailCalls, held, process};
use bpftime_vm::RunHeader;
use std::arch::global_asm;
use std::mem::offset_of;

/// The frame: the run, and some words.
#[repr(C, align(16))]
struct Frame {
    run: Run,
    /// The guard of the run that was interrupted, if any.
    outer: usize,
    /// Where 0 gives back what the run took: the slot's word, or `nothing`.
    slot: usize,
    nothing: usize,
}

/// The vector registers, unless that was done before in this hit.
macro_rules! keep_once {
    () => {
        "mov r10, [r12 + {vectors}]
        test r10, r10
        jz 20f
        mov qword ptr [r12 + {vectors}], 0
        call bpft_keep
        20:"
    };
}

// bpft_run(rdi: first entry, rsi: behind the last, rdx: hit, rcx: the thread's block)
global_asm!(
    ".pushsection .text.bpft_entry,\"ax\",@progbits",
    ".p2align 6",
    ".globl bpft_run",
    ".hidden bpft_run",
    ".type bpft_run,@function",
    "bpft_run:",
    ".cfi_startproc",
    "push rbx",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset rbx, 0",
    "push r12",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset r12, 0",
    "push r13",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset r13, 0",
    "sub rsp, {frame}",
    ".cfi_adjust_cfa_offset {frame}",
    "mov rbx, rdi",
    "mov r12, rdx",
    "mov r13, rcx",
    "mov [r12 + {end}], rsi",
    "cmp rdi, rsi",
    "je 9f",
    "mov rax, [rip + {pid_page}]",
    "mov ecx, [r13 + {ids} + 4]",
    "cmp ecx, [rax]",
    "jne 7f",
    "cmp byte ptr [rip + {orphan}], 0",
    "jne 7f",
    "mov rdx, [r13 + {ids}]", // pid << 32 | tid
    "mov [rsp + {pid_tgid}], rdx",
    "mov [rsp + {hit}], r12",
    "mov rax, [r13 + {recover}]",
    "mov [rsp + {outer}], rax",
    "lea rax, [rsp + {list}]",
    "mov [r13 + {recover}], rax",
    "2:", // an entry
    "mov rax, [rbx + {enabled}]",
    "cmp byte ptr [rax], 0",
    "je 4f",
    "movsxd rax, dword ptr [rip + {rseq}]",
    "mov ecx, fs:[rax]",
    "cmp ecx, [rbx + {slot_count}]",
    "jae 6f",
    "mov [rsp + {cpu}], rcx",
    "mov rsi, rcx",
    "shl rsi, {slot_shift}",
    "add rsi, [rbx + {slots}]",
    "cmp dword ptr [rbx + {traits}], 0",
    "jne 8f",
    "21:",
    "mov rdx, [rbx + {owner}]",
    "mov edx, [rdx]",
    "shl rdx, 32",
    "mov eax, [r13 + {ids}]",
    "or rdx, rax",
    "mov [rsp + {run_owner}], rdx",
    "xor eax, eax",
    "lock cmpxchg [rsi], rdx", // Page::acquire
    "jne 6f",
    "22:",
    "mov [rsp + {slot}], rsi",
    "mov qword ptr [rsp + {fuel}], {full}",
    "mov rax, [rbx + {entry_cookie}]",
    "mov [rsp + {cookie}], rax",
    "mov rax, [rbx + {entry_func_ip}]",
    "mov [rsp + {func_ip}], rax",
    "mov [rsp + {bound}], rbx",
    "mov byte ptr [rsp + {reads}], 0",
    "mov dword ptr [rsp + {tail_calls}], 0",
    "mov dword ptr [rsp + {held}], 0",
    "mov rdi, [r12 + {ctx}]",
    "mov r9, rsp",
    "call [rbx + {func}]",
    "3:",
    "cmp qword ptr [rsp + {fuel}], 0",
    "jl 24f",
    "32:",
    "mov rax, [rsp + {slot}]",
    "mov qword ptr [rax], 0", // Page::release
    "4:",
    "add rbx, {entry}",
    "cmp rbx, [r12 + {end}]",
    "jne 2b",
    "mov rax, [rsp + {outer}]",
    "mov [r13 + {recover}], rax",
    "9:",
    "cmp qword ptr [r13 + {signals}], 0",
    "jne 27f",
    "92:",
    ".cfi_remember_state",
    "add rsp, {frame}",
    ".cfi_adjust_cfa_offset -{frame}",
    "pop r13",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_restore r13",
    "pop r12",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_restore r12",
    "pop rbx",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_restore rbx",
    "ret",
    ".cfi_restore_state",
    ".globl bpft_run_faulted",
    ".hidden bpft_run_faulted",
    "bpft_run_faulted:", // in the program: the signal handler put rsp back
    "mov rbx, [rsp + {bound}]",
    "mov r12, [rsp + {hit}]",
    thread_block!("r13"),
    "mov qword ptr [rsp + {fuel}], -1",
    "jmp 3b",
    "6:", // no CPU slot that easily
    keep_once!(),
    "mov rdi, rbx",
    "mov rsi, r12",
    "mov rdx, r13",
    "call {run_one}",
    "jmp 4b",
    "7:", // a new thread, a new process, or one without a control thread
    keep_once!(),
    "mov rdi, rbx",
    "mov rsi, [r12 + {end}]",
    "mov rdx, r12",
    "mov rcx, r13",
    "call {run_all}",
    "jmp 9b",
    "8:", // something that most programs are not
    "mov edx, [rbx + {traits}]",
    "test dl, {one_process}",
    "jz 25f",
    "mov eax, [rbx + {only_pid}]",
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
    "mov rdi, rbx",
    "mov rsi, rsp",
    "call {give_up}",
    "jmp 32b",
    "27:", // signals that programs of this hit sent: their handlers may not come back
    keep_once!(),
    "mov rdi, r13",
    "call {signals_wait}",
    "jmp 92b",
    ".cfi_endproc",
    ".size bpft_run,.-bpft_run",
    ".popsection",
    frame = const size_of::<Frame>(),
    vectors = const offset_of!(Hit, vectors),
    pid_tgid = const offset_of!(Frame, run) + offset_of!(RunHeader, pid_tgid),
    func_ip = const offset_of!(Frame, run) + offset_of!(RunHeader, func_ip),
    cookie = const offset_of!(Frame, run) + offset_of!(RunHeader, cookie),
    cpu = const offset_of!(Frame, run) + offset_of!(RunHeader, cpu),
    fuel = const offset_of!(Frame, run) + offset_of!(RunHeader, fuel),
    hit = const offset_of!(Frame, run) + offset_of!(Run, hit),
    bound = const offset_of!(Frame, run) + offset_of!(Run, bound),
    run_owner = const offset_of!(Frame, run) + offset_of!(Run, owner),
    reads = const offset_of!(Frame, run) + offset_of!(Run, reads),
    tail_calls = const offset_of!(Frame, run) + offset_of!(Run, tail) + offset_of!(TailCalls, count),
    held = const offset_of!(Frame, run) + offset_of!(Run, held) + held::COUNT,
    signals = const offset_of!(ThreadBlock, run) + signal::QUEUE * 8,
    recover = const offset_of!(ThreadBlock, recover),
    list = const LIST,
    outer = const offset_of!(Frame, outer),
    slot = const offset_of!(Frame, slot),
    nothing = const offset_of!(Frame, nothing),
    end = const offset_of!(Hit, end),
    ctx = const offset_of!(Hit, ctx),
    ids = const offset_of!(ThreadBlock, run),
    enabled = const enter::ENABLED,
    only_pid = const enter::ONLY_PID,
    slot_count = const enter::SLOT_COUNT,
    slots = const enter::SLOTS,
    traits = const enter::TRAITS,
    owner = const enter::OWNER,
    entry_cookie = const enter::COOKIE,
    entry_func_ip = const enter::FUNC_IP,
    one_process = const enter::ONE_PROCESS,
    func = const enter::FUNC,
    slotless = const enter::SLOTLESS,
    vector = const enter::VECTOR,
    entry = const size_of::<Entry>(),
    slot_shift = const bpftime_shm::session::page::SLOT_STRIDE.ilog2(),
    full = const FUEL,
    pid_page = sym process::PID_PAGE,
    rseq = sym process::RSEQ_CPU_OFFSET,
    orphan = sym process::ORPHAN,
    run_one = sym enter::run_one,
    run_all = sym enter::run_all,
    give_up = sym enter::give_up,
    signals_wait = sym enter::signals_wait,
);
// The run comes first: its address, the last argument of every program, is rsp. rsp must be aligned after three pushes.
const _: () = assert!(offset_of!(Frame, run) == 0 && size_of::<Frame>().is_multiple_of(16));
// Words that are written as a whole: cpu with the reserved half behind it.
const _: () = assert!(offset_of!(RunHeader, reserved) == offset_of!(RunHeader, cpu) + 4);
const _: () = assert!(FUEL <= i32::MAX as i64);

/// Does not compile when a run gets a field: what has to be written of it at the start of a run is to be written above.
const _: fn(Run) = |run| {
    let Run { header, bound: _, hit: _, owner: _, reads: _, tail: _, held: _ } = run;
    let RunHeader { fuel: _, pid_tgid: _, cookie: _, func_ip: _, cpu: _, reserved: _ } = header;
};
