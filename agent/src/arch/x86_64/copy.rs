//! Reads of memory that may not be there: plain loads, with the SIGSEGV/SIGBUS handler as the exception path.
//!
//! 1.5 ns for 8 bytes against 1000 ns for process_vm_readv. Only usable while the thread does not block SIGSEGV (the
//! kernel kills a thread that faults with it blocked): ask [`crate::signals::faults_blocked`] once per program
//! run, and use [`probe_read_slow`] if so.

use super::sys;
use std::arch::global_asm;

global_asm!(
    ".pushsection .text.bpft_copy,\"ax\",@progbits",
    // size_t bpft_probe_read(dst rdi, src rsi, len rdx) -> bytes not copied.
    // A fault anywhere between bpft_copy_words and bpft_copy_end lands at bpft_copy_fixup with rcx = bytes left.
    ".p2align 6",
    ".type bpft_probe_read,@function",
    ".globl bpft_probe_read",
    ".hidden bpft_probe_read",
    "bpft_probe_read:",
    ".cfi_startproc",
    "mov rcx, rdx",
    ".globl bpft_copy_begin",
    ".hidden bpft_copy_begin",
    "bpft_copy_begin:",
    "cmp rcx, 8",
    "jb 3f",
    "cmp rcx, 512",
    "jae 6f",
    "2:",
    "mov rax, [rsi]",
    "mov [rdi], rax",
    "add rsi, 8",
    "add rdi, 8",
    "sub rcx, 8",
    "cmp rcx, 8",
    "jae 2b",
    "3:",
    "test cl, 4",
    "je 4f",
    "mov eax, [rsi]",
    "mov [rdi], eax",
    "add rsi, 4",
    "add rdi, 4",
    "sub rcx, 4",
    "4:",
    "test rcx, rcx",
    "je 5f",
    "mov al, [rsi]",
    "mov [rdi], al",
    "inc rsi",
    "inc rdi",
    "dec rcx",
    "jmp 4b",
    "6:",
    "rep movsb",
    "5:",
    ".globl bpft_copy_end",
    ".hidden bpft_copy_end",
    "bpft_copy_end:",
    ".globl bpft_copy_fixup",
    ".hidden bpft_copy_fixup",
    "bpft_copy_fixup:",
    "mov rax, rcx",
    "ret",
    ".cfi_endproc",
    ".size bpft_probe_read,.-bpft_probe_read",
    // ssize_t bpft_probe_read_str(dst rdi, src rsi, size rdx) -> bytes with the NUL, or -14. size > 0.
    // Words while they cannot cross into the next page, so that a string at the end of memory reads whole.
    ".p2align 6",
    ".type bpft_probe_read_str,@function",
    ".globl bpft_probe_read_str",
    ".hidden bpft_probe_read_str",
    "bpft_probe_read_str:",
    ".cfi_startproc",
    "mov r8, rdi",
    "mov r9, 0x0101010101010101",
    "mov r10, 0x8080808080808080",
    ".globl bpft_str_begin",
    ".hidden bpft_str_begin",
    "bpft_str_begin:",
    "2:",
    "cmp rdx, 8",
    "jb 4f",
    "mov eax, esi",
    "and eax, 4095",
    "cmp eax, 4088",
    "ja 4f",
    "mov rax, [rsi]",
    "mov rcx, rax",
    "mov r11, rax",
    "sub rcx, r9",
    "not r11",
    "and rcx, r11",
    "and rcx, r10",
    "jne 4f", // a NUL among the eight: byte by byte
    "mov [rdi], rax",
    "add rsi, 8",
    "add rdi, 8",
    "sub rdx, 8",
    "jmp 2b",
    "4:", // bytes, at most until the next word boundary of the loop above
    "test rdx, rdx",
    "je 6f",
    "mov al, [rsi]",
    "mov [rdi], al",
    "inc rsi",
    "inc rdi",
    "dec rdx",
    "test al, al",
    "je 5f",
    "test esi, 7",
    "jne 4b",
    "jmp 2b",
    "6:",
    "mov byte ptr [rdi - 1], 0", // truncated: the kernel terminates the copy
    ".globl bpft_str_end",
    ".hidden bpft_str_end",
    "bpft_str_end:",
    "5:",
    "mov rax, rdi",
    "sub rax, r8",
    "ret",
    ".globl bpft_str_fixup",
    ".hidden bpft_str_fixup",
    "bpft_str_fixup:",
    "mov byte ptr [r8], 0",
    "mov rax, -14",
    "ret",
    ".cfi_endproc",
    ".size bpft_probe_read_str,.-bpft_probe_read_str",
    ".popsection",
);

unsafe extern "C" {
    fn bpft_probe_read(dst: *mut u8, src: *const u8, len: usize) -> usize;
    fn bpft_probe_read_str(dst: *mut u8, src: *const u8, size: usize) -> isize;
    fn bpft_copy_begin();
    fn bpft_copy_end();
    fn bpft_copy_fixup();
    fn bpft_str_begin();
    fn bpft_str_end();
    fn bpft_str_fixup();
}

/// Copies `len` bytes and returns how many at the end could not be read (0 = all were).
///
/// # Safety
/// `dst` is `len` writable bytes. `src` may be anything, non-canonical addresses included. The SIGSEGV handler is
/// installed ([`crate::signals::install`]) and this thread blocks neither SIGSEGV nor SIGBUS.
#[inline]
pub unsafe fn probe_read(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: the caller's promise is the assembly's.
    unsafe { bpft_probe_read(dst, src, len) }
}

/// Copies a string of at most `size` bytes with its NUL: the length with the NUL, or -EFAULT with `dst` empty. A
/// longer string is cut and terminated (strncpy_from_user_nofault).
///
/// # Safety
/// As for [`probe_read`], with `size` writable bytes at `dst`.
#[inline]
pub unsafe fn probe_read_str(dst: *mut u8, src: *const u8, size: usize) -> isize {
    if size == 0 {
        return 0;
    }
    // SAFETY: the caller's promise is the assembly's, and size is not 0.
    unsafe { bpft_probe_read_str(dst, src, size) }
}

/// [`probe_read`] by the kernel, for threads that block SIGSEGV. Not under a seccomp filter, which may kill for an
/// unexpected call ([`crate::signals::seccomp_filtered`]).
///
/// # Safety
/// `dst` is `len` writable bytes.
pub unsafe fn probe_read_slow(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let local = [dst as usize, len];
    let remote = [src as usize, len];
    let args = [sys::getpid() as usize, local.as_ptr() as usize, 1, remote.as_ptr() as usize, 1, 0];
    // SAFETY: the kernel writes to `dst` only, and checks `src`.
    let got = unsafe { sys::syscall(libc::SYS_process_vm_readv, args) };
    if got < 0 { len } else { len - got as usize }
}

/// Whether the page at `addr` may be read now: the kernel is asked to take a signal mask from there, by a way to use it
/// that does not exist. For threads that block SIGSEGV, whose mask was asked for by the same call: no seccomp filter sees
/// anything new. About 115 ns.
pub fn readable(addr: usize) -> bool {
    // Eight bytes of the page that holds `addr`.
    let args = [usize::MAX, addr & !7, 0, 8, 0, 0];
    // SAFETY: nothing is changed: `how` is invalid. The kernel checks the address.
    let rc = unsafe { sys::syscall(libc::SYS_rt_sigprocmask, args) };
    rc == -(libc::EINVAL as isize)
}

/// Where execution goes on after a fault at `rip`, if `rip` is in a guarded copy. For the SIGSEGV handler.
#[inline]
pub(crate) fn fixup(rip: usize) -> Option<usize> {
    let within = |begin: unsafe extern "C" fn(), end: unsafe extern "C" fn()| {
        (begin as *const () as usize..end as *const () as usize).contains(&rip)
    };
    if within(bpft_copy_begin, bpft_copy_end) {
        return Some(bpft_copy_fixup as *const () as usize);
    }
    within(bpft_str_begin, bpft_str_end).then_some(bpft_str_fixup as *const () as usize)
}
