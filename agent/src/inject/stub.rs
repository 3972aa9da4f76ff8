//! The page of code that runs in the target, and the data behind it.
//!
//! The stub calls one function and then makes a harmless system call (getpid) at an address that we know: the
//! stop at its entry tells us that the call is done. No int3 and no signal is needed, so the target's SIGTRAP
//! disposition never changes. When nobody stops there, because the injector was killed, the code behind that
//! system call puts signal mask, errno, vector state, flags and registers back by itself and jumps home. A
//! target therefore survives `kill -9` of the injector at any moment after the page is in place.
//!
//! ```text
//!   0        code                       read and execute only; written through /proc/PID/mem
//!   DATA     Home: what the way home needs
//!   XSTATE   the XSAVE area, 64-byte aligned as XRSTOR wants it
//! ```

use std::arch::global_asm;

use super::ptrace::Regs;

/// Offset of `Home` in the page.
const DATA: usize = 512;
/// Offset of the XSAVE area.
const XSTATE: usize = 1024;

global_asm!(
    ".pushsection .rodata.bpftime_inject_stub, \"a\"",
    ".balign 64",
    ".globl bpftime_stub_begin, bpftime_stub_marker, bpftime_stub_syscall, bpftime_stub_after_syscall",
    ".globl bpftime_stub_end",
    ".hidden bpftime_stub_begin",
    ".hidden bpftime_stub_marker",
    ".hidden bpftime_stub_syscall",
    ".hidden bpftime_stub_after_syscall",
    ".hidden bpftime_stub_end",
    // A call: rax = function, rdi/rsi/rdx = arguments, rsp 16-byte aligned.
    "bpftime_stub_begin:",
    "fninit",
    "ldmxcsr [rip + bpftime_stub_begin + {data} + {mxcsr}]",
    "call rax",
    "mov rbx, rax",
    "mov eax, {getpid}",
    "syscall",
    "bpftime_stub_marker:",
    "jmp 2f",
    // A system call with everything in registers.
    "bpftime_stub_syscall:",
    "syscall",
    "bpftime_stub_after_syscall:",
    // The way home. The tracer never lets us come here.
    "2:",
    "mov rcx, [rip + bpftime_stub_begin + {data} + {errno_at}]",
    "test rcx, rcx",
    "jz 3f",
    "mov eax, [rip + bpftime_stub_begin + {data} + {errno}]",
    "mov [rcx], eax",
    "3:",
    "mov eax, {rt_sigprocmask}",
    "mov edi, 2", // SIG_SETMASK
    "lea rsi, [rip + bpftime_stub_begin + {data} + {mask}]",
    "xor edx, edx",
    "mov r10d, 8",
    "syscall",
    "mov eax, -1",
    "mov edx, -1",
    "xrstor64 [rip + bpftime_stub_begin + {xstate}]",
    "push qword ptr [rip + bpftime_stub_begin + {data} + {rflags}]",
    "popfq",
    "mov rax, [rip + bpftime_stub_begin + {data} + {gpr}]",
    "mov rbx, [rip + bpftime_stub_begin + {data} + {gpr} + 8]",
    "mov rcx, [rip + bpftime_stub_begin + {data} + {gpr} + 16]",
    "mov rdx, [rip + bpftime_stub_begin + {data} + {gpr} + 24]",
    "mov rsi, [rip + bpftime_stub_begin + {data} + {gpr} + 32]",
    "mov rdi, [rip + bpftime_stub_begin + {data} + {gpr} + 40]",
    "mov rbp, [rip + bpftime_stub_begin + {data} + {gpr} + 48]",
    "mov r8, [rip + bpftime_stub_begin + {data} + {gpr} + 56]",
    "mov r9, [rip + bpftime_stub_begin + {data} + {gpr} + 64]",
    "mov r10, [rip + bpftime_stub_begin + {data} + {gpr} + 72]",
    "mov r11, [rip + bpftime_stub_begin + {data} + {gpr} + 80]",
    "mov r12, [rip + bpftime_stub_begin + {data} + {gpr} + 88]",
    "mov r13, [rip + bpftime_stub_begin + {data} + {gpr} + 96]",
    "mov r14, [rip + bpftime_stub_begin + {data} + {gpr} + 104]",
    "mov r15, [rip + bpftime_stub_begin + {data} + {gpr} + 112]",
    "mov rsp, [rip + bpftime_stub_begin + {data} + {rsp}]",
    "jmp qword ptr [rip + bpftime_stub_begin + {data} + {rip}]",
    "bpftime_stub_end:",
    ".popsection",
    data = const DATA,
    xstate = const XSTATE,
    mxcsr = const std::mem::offset_of!(Home, mxcsr),
    errno_at = const std::mem::offset_of!(Home, errno_at),
    errno = const std::mem::offset_of!(Home, errno),
    mask = const std::mem::offset_of!(Home, mask),
    rflags = const std::mem::offset_of!(Home, rflags),
    gpr = const std::mem::offset_of!(Home, gpr),
    rsp = const std::mem::offset_of!(Home, rsp),
    rip = const std::mem::offset_of!(Home, rip),
    getpid = const libc::SYS_getpid,
    rt_sigprocmask = const libc::SYS_rt_sigprocmask,
);

unsafe extern "C" {
    #[link_name = "bpftime_stub_begin"]
    static BEGIN: u8;
    #[link_name = "bpftime_stub_marker"]
    static MARKER: u8;
    #[link_name = "bpftime_stub_syscall"]
    static SYSCALL: u8;
    #[link_name = "bpftime_stub_after_syscall"]
    static AFTER_SYSCALL: u8;
    #[link_name = "bpftime_stub_end"]
    static END: u8;
}

/// Values for the way home, written once before the first call. The target only reads them.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Home {
    /// Zero until the address is known.
    errno_at: u64,
    mask: u64,
    rflags: u64,
    rsp: u64,
    rip: u64,
    errno: u32,
    /// The value at process start: all exceptions masked, round to nearest.
    mxcsr: u32,
    /// rax rbx rcx rdx rsi rdi rbp r8 to r15.
    gpr: [u64; 15],
}

const _: () = assert!(size_of::<Home>() <= XSTATE - DATA);

/// Addresses of the stub's entries in the target.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stub {
    page: u64,
}

impl Stub {
    pub(super) const fn at(page: u64) -> Self {
        Self { page }
    }

    pub(super) fn page(self) -> u64 {
        self.page
    }

    /// Calls the function in rax.
    pub(super) fn call(self) -> u64 {
        self.page
    }

    /// rip at the entry and exit stop of the system call that ends a call.
    pub(super) fn marker(self) -> u64 {
        self.page + offset(&raw const MARKER)
    }

    /// A syscall instruction that leads home when nobody watches.
    pub(super) fn syscall(self) -> u64 {
        self.page + offset(&raw const SYSCALL)
    }

    /// Where the page wants the address of errno and its value, and these bytes.
    pub(super) fn errno(self, at: u64, value: u32) -> [(u64, Vec<u8>); 2] {
        let data = self.page + DATA as u64;
        [
            (data + std::mem::offset_of!(Home, errno) as u64, value.to_ne_bytes().to_vec()),
            (data + std::mem::offset_of!(Home, errno_at) as u64, at.to_ne_bytes().to_vec()),
        ]
    }
}

fn offset(at: *const u8) -> u64 {
    at as u64 - &raw const BEGIN as u64
}

/// Bytes to map for a saved vector state of this length.
pub(super) fn mapped_len(xstate: usize) -> u64 {
    (XSTATE + xstate).next_multiple_of(4096) as u64
}

/// The page's content: code, and how to get back to `home` with this mask and vector state.
pub(super) fn contents(home: &Regs, mask: u64, xstate: &[u8]) -> Vec<u8> {
    let len = offset(&raw const END) as usize;
    debug_assert!(len <= DATA && offset(&raw const AFTER_SYSCALL) < DATA as u64);
    // SAFETY: BEGIN..END is one constant block, laid out by the global_asm above.
    let code = unsafe { std::slice::from_raw_parts(&raw const BEGIN, len) };
    let mut page = vec![0xcc; XSTATE];
    page[..len].copy_from_slice(code);
    for (i, word) in words(home, mask).into_iter().enumerate() {
        page[DATA + i * 8..][..8].copy_from_slice(&word.to_ne_bytes());
    }
    page.extend_from_slice(xstate);
    page
}

/// `Home` as the words it consists of.
fn words(r: &Regs, mask: u64) -> [u64; 21] {
    const MXCSR_DEFAULT: u64 = 0x1f80;
    let errno_and_mxcsr = MXCSR_DEFAULT << 32;
    [
        0,
        mask,
        r.eflags,
        r.rsp,
        r.rip,
        errno_and_mxcsr, //
        r.rax,
        r.rbx,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        r.rbp,
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15,
    ]
}

const _: () = assert!(size_of::<Home>() == 21 * 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_before_its_data() {
        assert!(offset(&raw const END) <= DATA as u64);
        assert!(offset(&raw const MARKER) < offset(&raw const SYSCALL));
    }

    #[test]
    fn the_page_holds_the_registers_where_the_code_reads_them() {
        // SAFETY: integers only.
        let mut regs: Regs = unsafe { std::mem::zeroed() };
        (regs.rip, regs.r15) = (0x1111, 0x2222);
        let page = contents(&regs, 3, &[7; 64]);
        let word = |at: usize| u64::from_ne_bytes(page[DATA + at..][..8].try_into().unwrap());
        assert_eq!(word(std::mem::offset_of!(Home, rip)), 0x1111);
        assert_eq!(word(std::mem::offset_of!(Home, gpr) + 14 * 8), 0x2222);
        assert_eq!(word(std::mem::offset_of!(Home, mask)), 3);
        assert_eq!(page[XSTATE..], [7; 64]);
    }
}
