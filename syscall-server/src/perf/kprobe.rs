//! Kprobes that can be answered in user space: those on the kernel's functions for system calls.
//!
//! A program on `__x64_sys_NAME` gets the registers at that function's entry, whose first argument points to the
//! registers of the call, and a return probe gets the result. The targets' system calls are seen anyway
//! (`agent::syscalls`); only the context is this.

use crate::object::{PerfObject, ProgObject};
use crate::user;
use bpftime_abi::perf::{KPROBE_PMU_OURS, PerfEventAttr};
use bpftime_abi::syscall::SYSCALLS;
use bpftime_shm::session::wire::{CallContext, LinkKind, LinkSpec, Side, SyscallEvent};
use rustix::io::Errno;
use std::fmt::Write;

/// What the names of these functions begin with.
pub const PREFIX: &str = "__x64_sys_";
/// Addresses of these functions, as tools find them in `/proc/kallsyms`: in the kernel's text, one after the other.
const TEXT: u64 = 0xffff_ffff_8100_0000;
/// Distance between two of them.
const SPACING: u64 = 64;

/// Type number of the kprobe PMU: the kernel's where it has one.
pub fn pmu() -> u32 {
    crate::files::pmu::kernels_type("kprobe").unwrap_or(KPROBE_PMU_OURS)
}

/// What probes on system calls' functions a tool asks for; ENOENT for any other function, as for one that does not
/// exist.
pub fn event(a: &PerfEventAttr) -> Result<SyscallEvent, Errno> {
    let side = if a.config & 1 == 0 { Side::Enter } else { Side::Exit };
    let nr = match a.config1 {
        0 => by_address(a.config2).ok_or(Errno::NOENT)?,
        name => {
            // Only the first instruction has a meaning here.
            if a.config2 != 0 {
                return Err(Errno::INVAL);
            }
            // `KSYM_NAME_LEN`.
            let name = user::read_str(name, 511)?;
            by_name(std::str::from_utf8(&name).map_err(|_| Errno::NOENT)?).ok_or(Errno::NOENT)?
        }
    };
    Ok(SyscallEvent { side, nr: Some(nr), context: CallContext::Function, cookie: 0 })
}

fn by_name(function: &str) -> Option<u32> {
    let name = function.strip_prefix(PREFIX)?;
    SYSCALLS.iter().find(|s| s.name == name).map(|s| s.nr)
}

fn by_address(address: u64) -> Option<u32> {
    let at = address.checked_sub(TEXT)?;
    let row = SYSCALLS.get((at / SPACING) as usize).filter(|_| at % SPACING == 0)?;
    Some(row.nr)
}

/// Name and address of the function for a call.
pub fn function_of(call: &SyscallEvent) -> (String, u64) {
    let row = SYSCALLS.iter().enumerate().find(|(_, s)| Some(s.nr) == call.nr);
    row.map_or_else(Default::default, |(i, s)| (format!("{PREFIX}{}", s.name), TEXT + i as u64 * SPACING))
}

/// The kernel's symbols as tools see them: the functions that can be probed. The kernel's own list has a hundred
/// thousand others, and for an ordinary user no addresses.
pub fn symbols() -> String {
    let mut out = String::new();
    for (i, s) in SYSCALLS.iter().enumerate() {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{:016x} T {PREFIX}{}", TEXT + i as u64 * SPACING, s.name);
    }
    out
}

/// The link of a perf event that watches such a function.
pub fn spec_of(
    event: SyscallEvent,
    perf: &PerfObject,
    link: u32,
    prog: &ProgObject,
    cookie: u64,
) -> LinkSpec {
    LinkSpec {
        kind: LinkKind::Syscall(SyscallEvent { cookie, ..event }),
        link,
        prog: prog.spec.prog,
        ret: event.side == Side::Exit,
        pid: perf.pid,
        dev: 0,
        ino: 0,
        path: Vec::new(),
        points: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_functions_of_system_calls_have_probes() {
        assert_eq!(by_name("__x64_sys_kill"), Some(62));
        assert_eq!(by_name("__x64_sys_newstat"), Some(4));
        assert_eq!(by_name("__x64_sys_nosuch"), None);
        assert_eq!(by_name("tcp_v4_connect"), None);
    }

    #[test]
    fn a_symbols_address_means_its_function() {
        for line in symbols().lines() {
            let [address, kind, name] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            assert_eq!(kind, "T");
            let address = u64::from_str_radix(address, 16).expect("hexadecimal");
            assert_eq!(by_address(address), by_name(name), "{line}");
            assert_eq!(by_address(address + 1), None);
        }
        assert_eq!(by_address(0), None);
    }
}
