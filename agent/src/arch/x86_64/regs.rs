//! The register file as BPF programs see it.

/// The kernel's `struct pt_regs` on x86-64 (arch/x86/include/uapi/asm/ptrace.h): the context of uprobe programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PtRegs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub bp: u64,
    pub bx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub ax: u64,
    pub cx: u64,
    pub dx: u64,
    pub si: u64,
    pub di: u64,
    pub orig_ax: u64,
    pub ip: u64,
    pub cs: u64,
    pub flags: u64,
    pub sp: u64,
    pub ss: u64,
}

impl PtRegs {
    /// The registers in memory.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: words without padding, borrowed as long as self.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

// The assembly in frame.rs, and what uses it, spells these offsets out.
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<PtRegs>() == 168);
    assert!(offset_of!(PtRegs, r15) == 0 && offset_of!(PtRegs, r14) == 8 && offset_of!(PtRegs, r13) == 16);
    assert!(offset_of!(PtRegs, r12) == 24 && offset_of!(PtRegs, bp) == 32 && offset_of!(PtRegs, bx) == 40);
    assert!(offset_of!(PtRegs, r11) == 48 && offset_of!(PtRegs, r10) == 56 && offset_of!(PtRegs, r9) == 64);
    assert!(offset_of!(PtRegs, r8) == 72 && offset_of!(PtRegs, ax) == 80 && offset_of!(PtRegs, cx) == 88);
    assert!(offset_of!(PtRegs, dx) == 96 && offset_of!(PtRegs, si) == 104 && offset_of!(PtRegs, di) == 112);
    assert!(offset_of!(PtRegs, cs) == 136);
    assert!(offset_of!(PtRegs, orig_ax) == 120 && offset_of!(PtRegs, ip) == 128);
    assert!(
        offset_of!(PtRegs, flags) == 144 && offset_of!(PtRegs, sp) == 152 && offset_of!(PtRegs, ss) == 160
    );
};
