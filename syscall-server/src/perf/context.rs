//! Whether what a program reads of its context is there: known when it is attached, not when it is loaded.

use super::tracepoint::Tracepoint;
use crate::files::tracefs;
use crate::object::ProgObject;
use bpftime_abi::syscall;
use bpftime_shm::session::wire::{CallContext, Side, SyscallEvent};
use rustix::io::Errno;

/// Before the arguments of a call: the common header and the number, with padding.
const BEFORE_ARGS: u32 = 16;
/// Arguments of the raw tracepoints `sys_enter` and `sys_exit`.
const RAW_ARGS: u32 = 2;

/// Refuses a program that reads more than the event has: EACCES for a record, EINVAL for a raw tracepoint's
/// arguments, as the kernel.
pub fn fits(event: &Tracepoint, prog: &ProgObject) -> Result<(), Errno> {
    let (limit, errno) = match event {
        Tracepoint::Call(call) if call.context == CallContext::Arguments => (RAW_ARGS * 8, Errno::INVAL),
        // The verifier has seen to it: registers are what every program of the type gets.
        Tracepoint::Call(call) if call.context == CallContext::Function => return Ok(()),
        Tracepoint::Call(call) => (record_size(call), Errno::ACCESS),
        Tracepoint::Task(kind) => (tracefs::task_record_size(*kind), Errno::ACCESS),
    };
    if prog.ctx_bytes <= limit { Ok(()) } else { Err(errno) }
}

/// The end of the last field of an event's record.
fn record_size(event: &SyscallEvent) -> u32 {
    match (event.side, event.nr) {
        (Side::Exit, _) => BEFORE_ARGS + 8,
        (Side::Enter, None) => BEFORE_ARGS + 6 * 8,
        (Side::Enter, Some(nr)) => {
            let args = syscall::SYSCALLS.iter().find(|s| s.nr == nr).map_or(6, |s| s.args.len() as u32);
            // Without arguments the number, of four bytes, is the last field.
            if args == 0 { 12 } else { BEFORE_ARGS + 8 * args }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_end_where_their_format_says() {
        let size =
            |side, nr| record_size(&SyscallEvent { side, nr, context: CallContext::Record, cookie: 0 });
        assert_eq!(size(Side::Enter, Some(62)), 32, "kill(pid, sig)");
        assert_eq!(size(Side::Enter, Some(39)), 12, "getpid()");
        assert_eq!(size(Side::Exit, Some(62)), 24);
        assert_eq!(size(Side::Enter, None), 64);
    }
}
