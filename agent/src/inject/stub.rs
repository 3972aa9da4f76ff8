//! The code that runs in the target, and the data behind it.
//!
//! The stub calls one function and then makes a harmless system call (getpid) at an address that we know: the
//! stop at its entry tells us that the call is done. No int3 and no signal is needed, so the target's SIGTRAP
//! disposition never changes. When nobody stops there, because the injector was killed, the code behind that
//! system call puts signal mask, errno, vector state, flags and registers back by itself and jumps home. A
//! target therefore survives `kill -9` of the injector.
//!
//! It lies in the unused end of a library's last code page, so that it is there before the first system call
//! that we make in the target, and is zeroed again afterwards; in a page of its own where there is no such room.
//!
//! ```text
//!   0        code         written through /proc/PID/mem, like a debugger's breakpoint
//!   DATA     Home         what the way home needs; the target only reads it
//! ```

use std::arch::global_asm;

use super::ptrace::Regs;

/// Offset of `Home`.
const DATA: usize = 320;
/// Bytes of the whole stub.
pub(super) const LEN: usize = DATA + size_of::<Home>();

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
    "mov rcx, [rip + bpftime_stub_begin + {data} + {xstate_at}]",
    "test rcx, rcx",
    "jz 4f",
    "mov eax, -1",
    "mov edx, -1",
    "xrstor64 [rcx]",
    "4:",
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
    mxcsr = const std::mem::offset_of!(Home, mxcsr),
    xstate_at = const std::mem::offset_of!(Home, xstate_at),
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

/// Values for the way home.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Home {
    /// Address of errno; zero until it is known.
    errno_at: u64,
    /// Address of the XSAVE area, 64-byte aligned; zero while nothing has changed that state.
    xstate_at: u64,
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

/// Addresses of the stub's entries in the target.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stub {
    begin: u64,
}

impl Stub {
    pub(super) const fn at(begin: u64) -> Self {
        Self { begin }
    }

    pub(super) fn begin(self) -> u64 {
        self.begin
    }

    /// Calls the function in rax.
    pub(super) fn call(self) -> u64 {
        self.begin
    }

    /// rip at the entry and exit stop of the system call that ends a call.
    pub(super) fn marker(self) -> u64 {
        self.begin + offset(&raw const MARKER)
    }

    /// A syscall instruction that leads home when nobody watches.
    pub(super) fn syscall(self) -> u64 {
        self.begin + offset(&raw const SYSCALL)
    }

    /// What to write where so that the way home restores errno.
    pub(super) fn errno(self, at: u64, value: u32) -> [(u64, Vec<u8>); 2] {
        [
            (self.data(std::mem::offset_of!(Home, errno)), value.to_ne_bytes().to_vec()),
            (self.data(std::mem::offset_of!(Home, errno_at)), at.to_ne_bytes().to_vec()),
        ]
    }

    /// Where to write the address of the XSAVE area, or 0 when there is none.
    pub(super) fn xstate_at(self) -> u64 {
        self.data(std::mem::offset_of!(Home, xstate_at))
    }

    fn data(self, field: usize) -> u64 {
        self.begin + (DATA + field) as u64
    }
}

fn offset(at: *const u8) -> u64 {
    at as u64 - &raw const BEGIN as u64
}

/// The stub's bytes: code, and how to get back to `home` with this signal mask.
pub(super) fn contents(home: &Regs, mask: u64) -> Vec<u8> {
    let len = offset(&raw const END) as usize;
    debug_assert!(len <= DATA && offset(&raw const AFTER_SYSCALL) < DATA as u64);
    // SAFETY: BEGIN..END is one constant block, laid out by the global_asm above.
    let code = unsafe { std::slice::from_raw_parts(&raw const BEGIN, len) };
    let mut bytes = vec![0xcc; LEN];
    bytes[..len].copy_from_slice(code);
    for (i, word) in words(home, mask).into_iter().enumerate() {
        bytes[DATA + i * 8..][..8].copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// `Home` as the words it consists of.
fn words(r: &Regs, mask: u64) -> [u64; 22] {
    const MXCSR_DEFAULT: u64 = 0x1f80;
    let errno_and_mxcsr = MXCSR_DEFAULT << 32;
    [
        0,
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

const _: () = assert!(size_of::<Home>() == 22 * 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_before_its_data() {
        assert!(offset(&raw const END) <= DATA as u64);
        assert!(offset(&raw const MARKER) < offset(&raw const SYSCALL));
    }

    #[test]
    fn the_stub_holds_the_registers_where_the_code_reads_them() {
        // SAFETY: integers only.
        let mut regs: Regs = unsafe { std::mem::zeroed() };
        (regs.rip, regs.r15) = (0x1111, 0x2222);
        let bytes = contents(&regs, 3);
        let word = |at: usize| u64::from_ne_bytes(bytes[DATA + at..][..8].try_into().unwrap());
        assert_eq!(word(std::mem::offset_of!(Home, rip)), 0x1111);
        assert_eq!(word(std::mem::offset_of!(Home, gpr) + 14 * 8), 0x2222);
        assert_eq!(word(std::mem::offset_of!(Home, mask)), 3);
        assert_eq!(word(std::mem::offset_of!(Home, xstate_at)), 0);
    }
}
