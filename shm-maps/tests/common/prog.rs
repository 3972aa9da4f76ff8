//! Smallest kernel programs, run by BPF_PROG_TEST_RUN: the oracle for helpers.

use super::{Answer, bpf, bpf_mut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

fn insn(op: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    u64::from(op) | u64::from(dst | src << 4) << 8 | u64::from(off as u16) << 16 | u64::from(imm as u32) << 32
}

/// A raw tracepoint program that calls `helper(args...)` with up to 512 bytes of 0xab on the stack.
pub struct Program(OwnedFd);

pub enum Arg {
    Ctx,
    Map(i32),
    Data(u32),
    Number(i32),
}

impl Program {
    pub fn calling(helper: i32, args: &[Arg]) -> Answer<Program> {
        let mut code = vec![insn(0xbf, 6, 1, 0, 0)];
        let bytes = args.iter().map(|a| if let Arg::Data(n) = a { *n } else { 0 }).max().unwrap_or(0);
        code.extend((1..=bytes.div_ceil(8)).map(|i| insn(0x7a, 10, 0, -8 * i as i16, 0xab)));
        for (reg, arg) in (1u8..).zip(args) {
            match arg {
                Arg::Ctx => code.push(insn(0xbf, reg, 6, 0, 0)),
                Arg::Map(fd) => code.extend([insn(0x18, reg, 1, 0, *fd), 0]),
                Arg::Data(n) => {
                    code.push(insn(0xbf, reg, 10, 0, 0));
                    code.push(insn(0x07, reg, 0, 0, -(n.next_multiple_of(8) as i32)));
                }
                Arg::Number(n) => code.push(insn(0xb4, reg, 0, 0, *n)),
            }
        }
        code.extend([insn(0x85, 0, 0, 0, helper), insn(0x95, 0, 0, 0, 0)]);
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Load {
            prog_type: u32,
            insn_cnt: u32,
            insns: u64,
            license: u64,
            rest: [u64; 12],
        }
        const RAW_TRACEPOINT: u32 = 17;
        let load = Load {
            prog_type: RAW_TRACEPOINT,
            insn_cnt: code.len() as u32,
            insns: code.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            rest: [0; 12],
        };
        let fd = bpf(5, &load)?;
        // SAFETY: a descriptor the kernel just made for us.
        Ok(Program(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Runs on CPU 0 and returns what the helper returned.
    pub fn run(&self) -> i32 {
        #[repr(C)]
        struct Run([u32; 2], [u32; 2], [u64; 2], [u32; 2], [u32; 2], [u64; 2], [u32; 4]);
        const ON_CPU: u32 = 1;
        let mut run =
            Run([self.0.as_raw_fd() as u32, 0], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2], [ON_CPU, 0, 0, 0]);
        bpf_mut(10, &mut run).expect("BPF_PROG_TEST_RUN");
        run.0[1] as i32
    }
}
