//! The kernel as a third engine: a sample of the instruction set through BPF_PROG_TEST_RUN. Skipped, with
//! the reason printed, where bpf(2) is not allowed.

use super::engines::{Engines, narrowed};
use bpftime_vm::Insn;
use bpftime_vm::asm::assemble;
use bpftime_vm::isa::{AluOp, AtomicOp, Cond, Width};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const SOCKET_FILTER: u32 = 1;
/// Length of an Ethernet header, the least that a test run takes.
const PACKET: [u8; 64] = [0; 64];

/// `union bpf_attr` of PROG_LOAD, up to `kern_version`.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// `union bpf_attr` of PROG_TEST_RUN, up to `duration`.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a bpf_attr prefix of the size passed; pointers in it outlive the call.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn load(insns: &[Insn]) -> io::Result<File> {
    load_with_log(insns, &mut [])
}

fn load_with_log(insns: &[Insn], log: &mut [u8]) -> io::Result<File> {
    let mut attr = LoadAttr {
        prog_type: SOCKET_FILTER,
        insn_cnt: insns.len() as u32,
        insns: insns.as_ptr().expose_provenance() as u64,
        license: c"GPL".as_ptr().expose_provenance() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: log.len() as u32,
        log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr().expose_provenance() as u64 },
        ..LoadAttr::default()
    };
    let fd = bpf(PROG_LOAD, &mut attr)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { File::from_raw_fd(fd as i32) })
}

fn run(program: &File) -> io::Result<u32> {
    let mut attr = RunAttr {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: PACKET.len() as u32,
        data_in: PACKET.as_ptr().expose_provenance() as u64,
        ..RunAttr::default()
    };
    bpf(PROG_TEST_RUN, &mut attr)?;
    Ok(attr.retval)
}

/// Whether the kernel lets us; says so once if not.
pub fn kernel_runs() -> bool {
    match load(&assemble("mov r0, 7; exit").unwrap()).and_then(|program| run(&program)) {
        Ok(7) => true,
        Ok(other) => panic!("the kernel returns {other} for 7"),
        Err(error) => {
            eprintln!("skipped: bpf(2): {error}");
            false
        }
    }
}

/// What the kernel returns for a program; `None` when its verifier refuses it.
pub fn kernel_result(source: &str) -> Option<u32> {
    let program = load(&assemble(source).unwrap()).ok()?;
    Some(run(&program).unwrap())
}

/// The end of the kernel's verifier log for a program.
pub fn kernel_log(source: &str) -> String {
    let mut log = vec![0; 1 << 24];
    let error = load_with_log(&assemble(source).unwrap(), &mut log).err();
    let text = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = text.trim_end_matches('\0').lines().collect();
    format!("{error:?}\n{}", lines[lines.len().saturating_sub(12)..].join("\n"))
}

/// Runs `body`, which leaves its result in r0, here and there; both halves of r0 are compared. Programs
/// that this kernel does not know (older than ISA v4) are skipped, the caller counts.
fn agrees(body: &str) -> bool {
    let low = format!("{body}; exit");
    let high = format!("{body}; rsh r0, 32; exit");
    for source in [low, high] {
        let Some(kernel) = kernel_result(&source) else { return false };
        let ours = Engines::assemble(&source).run(&[]).r0;
        assert_eq!(ours.map(|r0| r0 as u32), Some(kernel), "{source}");
    }
    true
}

const SAMPLE: &[u64] = &[0, 1, 63, 0x8000_0000, 0xffff_ffff, 1 << 63, u64::MAX, 0x0123_4567_89ab_cdef];

fn pairs() -> impl Iterator<Item = (u64, u64)> {
    SAMPLE.iter().flat_map(|a| SAMPLE.iter().map(|b| (*a, *b)))
}

#[test]
fn alu_like_the_kernel() {
    if !kernel_runs() {
        return;
    }
    let mut compared = 0;
    for op in AluOp::ALL {
        for width in Width::ALL {
            let name = narrowed(op.mnemonic(), width.bits());
            for (a, b) in pairs() {
                compared += u32::from(agrees(&format!("lddw r0, {a:#x}; lddw r4, {b:#x}; {name} r0, r4")));
            }
        }
    }
    println!("{compared} ALU cases compared");
    assert!(compared > 1000);
}

#[test]
fn conditions_like_the_kernel() {
    if !kernel_runs() {
        return;
    }
    for cond in Cond::ALL {
        for width in Width::ALL {
            let name = narrowed(cond.mnemonic(), width.bits());
            for (a, b) in pairs() {
                let source = format!(
                    "lddw r3, {a:#x}; lddw r4, {b:#x}; mov r0, 1; {name} r3, r4, out; mov r0, 0; out: mov r0, r0"
                );
                assert!(agrees(&source), "{source}");
            }
        }
    }
}

#[test]
fn atomics_like_the_kernel() {
    if !kernel_runs() {
        return;
    }
    for op in AtomicOp::ALL {
        for (prefix, suffix) in [("", ""), ("", "32"), ("fetch_", ""), ("fetch_", "32")] {
            let prefix = if op.always_fetches() { "" } else { prefix };
            let (name, load) = (op.mnemonic(), if suffix == "32" { "ldxw" } else { "ldxdw" });
            for (a, b) in pairs() {
                // New memory, old value and r0 all end up in r0.
                let source = format!(
                    "lddw r3, {a:#x}; stxdw [r10-8], r3; lddw r4, {b:#x}; lddw r0, 0xffffffff
                     lock {prefix}{name}{suffix} [r10-8], r4; xor r0, r4; mul r0, 31; {load} r5, [r10-8]; xor r0, r5"
                );
                assert!(agrees(&source), "{source}");
            }
        }
    }
}

#[test]
fn sign_extension_and_byte_order_like_the_kernel() {
    if !kernel_runs() {
        return;
    }
    let ops = ["movsx8 r0, r0", "movsx16 r0, r0", "movsx32 r0, r0", "movsx8_32 r0, r0", "movsx16_32 r0, r0"];
    let swaps =
        ["le16 r0", "le32 r0", "le64 r0", "be16 r0", "be32 r0", "be64 r0", "bswap16 r0", "bswap32 r0"];
    let loads = ["ldxsb r0, [r10-7]", "ldxsh r0, [r10-6]", "ldxsw r0, [r10-4]", "neg r0", "neg32 r0"];
    for op in ops.iter().chain(&swaps).chain(&loads) {
        for a in SAMPLE {
            // Kernels before ISA v4 refuse some of them.
            agrees(&format!("lddw r0, {a:#x}; stxdw [r10-8], r0; {op}"));
        }
    }
}
