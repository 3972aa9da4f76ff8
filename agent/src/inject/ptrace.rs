//! One traced thread: the only file that calls ptrace(2) and waitid(2).
//!
//! Rules:
//!  - PTRACE_SEIZE, never PTRACE_ATTACH: attaching sends SIGSTOP, which the target and its parent could see.
//!  - Stops are consumed with waitid(WSTOPPED); an exit is only looked at (WNOWAIT). The target may be our own
//!    child, and its exit status belongs to whoever started it.
//!  - ptrace is a relation between two *threads*. Everything here runs on one thread (see `mod.rs`), whose end
//!    makes the kernel detach whatever is still attached.

use std::io;
use std::time::{Duration, Instant};

use libc::{c_int, c_long, c_uint, c_void};

/// `linux/ptrace.h`: event number of a PTRACE_INTERRUPT or group stop of a seized thread.
const PTRACE_EVENT_STOP: i32 = 128;
/// `linux/ptrace.h`, since Linux 3.11.
const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: c_uint = 0x4210;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: c_uint = 0x4211;
const PTRACE_GETSIGMASK: c_uint = 0x420a;
/// `linux/ptrace.h`, since Linux 3.11.
const PTRACE_SETSIGMASK: c_uint = 0x420b;
/// `linux/ptrace.h`, since Linux 5.13.
const PTRACE_GET_RSEQ_CONFIGURATION: c_uint = 0x420f;
/// `linux/elf.h`: the register set that holds x87, SSE, AVX, AVX-512, AMX, PKRU.
const NT_X86_XSTATE: usize = 0x202;
/// Room for every state component that exists (AMX needs 11 KiB).
const XSTATE_MAX: usize = 32 * 1024;

/// General purpose registers as PTRACE_GETREGS gives them.
pub(super) type Regs = libc::user_regs_struct;

/// Why a traced thread stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The trap that PTRACE_INTERRUPT asked for. The kernel decides about restarting an interrupted
    /// system call only after this stop, from the registers that it then finds.
    Interrupted,
    /// The process is stopped by job control; the signal that did it.
    Group(i32),
    /// Entry to or exit from a system call.
    Syscall,
    /// About to deliver this signal.
    Signal(i32),
}

/// Why a request on a traced thread failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum TraceError {
    /// The thread (or its process) ended.
    #[error("the thread exited")]
    Gone,
    /// The thread did not stop before the deadline.
    #[error("the thread did not stop in time")]
    Timeout,
    /// Anything else that ptrace(2) or waitid(2) said.
    #[error("{doing}: {source}")]
    Os { doing: &'static str, source: io::Error },
}

/// How a stopped thread goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resume {
    /// Until a signal or an interrupt.
    Run,
    /// Until the next system call entry or exit too.
    ToSyscall,
}

/// One thread that we trace. Dropping it detaches.
#[derive(Debug)]
pub(super) struct Tracee {
    tid: i32,
    stopped: bool,
    gone: bool,
}

impl Tracee {
    /// Begins to trace a thread without stopping it.
    ///
    /// Errors: EPERM (not allowed, or traced by another), ESRCH (no such thread).
    pub(super) fn seize(tid: i32) -> io::Result<Self> {
        request(libc::PTRACE_SEIZE, tid, 0, libc::PTRACE_O_TRACESYSGOOD as usize)?;
        Ok(Self { tid, stopped: false, gone: false })
    }

    pub(super) fn tid(&self) -> i32 {
        self.tid
    }

    /// Asks for a stop; `wait` sees it. In a stopped thread the stop follows after it is resumed.
    pub(super) fn interrupt(&mut self) -> Result<(), TraceError> {
        self.request("PTRACE_INTERRUPT", libc::PTRACE_INTERRUPT, 0, 0).map(drop)
    }

    /// Lets a stopped thread go on; `signal` is delivered to it unless 0.
    pub(super) fn resume(&mut self, how: Resume, signal: i32) -> Result<(), TraceError> {
        let req = match how {
            Resume::Run => libc::PTRACE_CONT,
            Resume::ToSyscall => libc::PTRACE_SYSCALL,
        };
        self.request("PTRACE_CONT", req, 0, signal as usize)?;
        self.stopped = false;
        Ok(())
    }

    /// The next stop of this thread.
    pub(super) fn wait(&mut self, deadline: Instant) -> Result<Stop, TraceError> {
        let mut pause = Pause::default();
        loop {
            if let Some(stop) = self.poll_stop()? {
                self.stopped = true;
                return Ok(stop);
            }
            if Instant::now() >= deadline {
                return Err(TraceError::Timeout);
            }
            pause.wait();
        }
    }

    /// True while the thread waits for us.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    pub(super) fn regs(&mut self) -> Result<Regs, TraceError> {
        // SAFETY: user_regs_struct is integers only, for which zeroes are a value.
        let mut regs: Regs = unsafe { std::mem::zeroed() };
        self.request("PTRACE_GETREGS", libc::PTRACE_GETREGS, 0, &raw mut regs as usize)?;
        Ok(regs)
    }

    pub(super) fn set_regs(&mut self, regs: &Regs) -> Result<(), TraceError> {
        self.request("PTRACE_SETREGS", libc::PTRACE_SETREGS, 0, std::ptr::from_ref(regs) as usize).map(drop)
    }

    /// Vector and x87 state in the layout of XSAVE (standard format, usable by XRSTOR).
    pub(super) fn xstate(&mut self) -> Result<Vec<u8>, TraceError> {
        let mut area = vec![0u8; XSTATE_MAX];
        let mut iov = libc::iovec { iov_base: area.as_mut_ptr().cast(), iov_len: area.len() };
        self.request("PTRACE_GETREGSET", libc::PTRACE_GETREGSET, NT_X86_XSTATE, &raw mut iov as usize)?;
        area.truncate(iov.iov_len);
        Ok(area)
    }

    /// Puts back what `xstate` gave.
    pub(super) fn set_xstate(&mut self, area: &mut [u8]) -> Result<(), TraceError> {
        let mut iov = libc::iovec { iov_base: area.as_mut_ptr().cast(), iov_len: area.len() };
        self.request("PTRACE_SETREGSET", libc::PTRACE_SETREGSET, NT_X86_XSTATE, &raw mut iov as usize)
            .map(drop)
    }

    /// The thread's signal mask; inside ppoll and the like, the one it will have afterwards.
    pub(super) fn sigmask(&mut self) -> Result<u64, TraceError> {
        let mut mask = 0u64;
        self.request("PTRACE_GETSIGMASK", PTRACE_GETSIGMASK, 8, &raw mut mask as usize)?;
        Ok(mask)
    }

    pub(super) fn set_sigmask(&mut self, mask: u64) -> Result<(), TraceError> {
        self.request("PTRACE_SETSIGMASK", PTRACE_SETSIGMASK, 8, &raw const mask as usize).map(drop)
    }

    /// `si_code` of the signal that the thread is about to receive.
    pub(super) fn signal_code(&mut self) -> Result<i32, TraceError> {
        // SAFETY: siginfo_t is integers and raw pointers, for which zeroes are a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        self.request("PTRACE_GETSIGINFO", libc::PTRACE_GETSIGINFO, 0, &raw mut info as usize)?;
        Ok(info.si_code)
    }

    /// Turns the thread's syscall user dispatch off; what it was, where it was on and the kernel can tell (since Linux 6.4).
    pub(super) fn suspend_dispatch(&mut self) -> Option<Dispatch> {
        let (mut on, off) = (Dispatch::default(), Dispatch::default());
        let size = size_of::<Dispatch>();
        request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, self.tid, size, &raw mut on as usize).ok()?;
        if on.mode == off.mode {
            return None;
        }
        request(PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG, self.tid, size, &raw const off as usize).ok()?;
        Some(on)
    }

    /// Turns it on again.
    pub(super) fn resume_dispatch(&mut self, dispatch: Dispatch) {
        let (size, data) = (size_of::<Dispatch>(), &raw const dispatch as usize);
        let _ = request(PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG, self.tid, size, data);
    }

    /// Address of the thread's `struct rseq`, if it has registered one.
    pub(super) fn rseq_area(&mut self) -> Option<u64> {
        // struct ptrace_rseq_configuration: u64 pointer, u32 size, u32 signature, u32 flags, u32 pad
        let mut conf = [0u64; 3];
        let size = size_of_val(&conf);
        request(PTRACE_GET_RSEQ_CONFIGURATION, self.tid, size, &raw mut conf as usize).ok()?;
        (conf[0] != 0).then_some(conf[0])
    }

    /// Ends tracing; a running thread is stopped first because ptrace allows it no other way.
    pub(super) fn detach(&mut self) {
        if self.gone {
            return;
        }
        if !self.stopped && self.interrupt().is_ok() {
            let _ = self.wait(Instant::now() + Duration::from_millis(200));
        }
        if self.stopped {
            let _ = request(libc::PTRACE_DETACH, self.tid, 0, 0);
        }
        self.gone = true;
    }

    fn poll_stop(&mut self) -> Result<Option<Stop>, TraceError> {
        // One look for both, because a trace stop is reported whether or not WSTOPPED asks for it.
        let exited = match waitid(self.tid, libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT) {
            Ok(None) => return Ok(None),
            Ok(Some((libc::CLD_TRAPPED | libc::CLD_STOPPED, _))) => false,
            Ok(Some(_)) | Err(TraceError::Gone) => true,
            Err(e) => return Err(e),
        };
        if exited {
            self.gone = true;
            return Err(TraceError::Gone);
        }
        Ok(waitid(self.tid, libc::WSTOPPED)?.map(|(_, status)| decode(status)))
    }

    fn request(
        &mut self,
        doing: &'static str,
        req: c_uint,
        addr: usize,
        data: usize,
    ) -> Result<c_long, TraceError> {
        request(req, self.tid, addr, data).map_err(|source| match source.raw_os_error() {
            // ESRCH also means "not stopped", but we ask only stopped threads: SIGKILL came between.
            Some(libc::ESRCH) => TraceError::Gone,
            _ => TraceError::Os { doing, source },
        })
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        self.detach();
    }
}

fn request(req: c_uint, tid: i32, addr: usize, data: usize) -> io::Result<c_long> {
    // SAFETY: for every request used in this file `data` is an integer or a live local of the right type,
    // and `addr` an integer; no request writes into our memory beyond it.
    let r = unsafe { libc::ptrace(req, tid, addr as *mut c_void, data as *mut c_void) };
    if r == -1 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

/// `si_code` and `si_status` of a thread that has something to report.
fn waitid(tid: i32, what: c_int) -> Result<Option<(i32, i32)>, TraceError> {
    // SAFETY: siginfo_t is integers and raw pointers, for which zeroes are a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = what | libc::WNOHANG | libc::__WALL;
    // SAFETY: `info` is a live siginfo_t.
    if unsafe { libc::waitid(libc::P_PID, tid as libc::id_t, &raw mut info, flags) } == 0 {
        // SAFETY: waitid fills the SIGCHLD form; it leaves si_pid 0 when there is nothing.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        return Ok((pid != 0).then_some((info.si_code, status)));
    }
    let source = io::Error::last_os_error();
    match source.raw_os_error() {
        Some(libc::EINTR) => Ok(None),
        Some(libc::ECHILD) => Err(TraceError::Gone),
        _ => Err(TraceError::Os { doing: "waitid", source }),
    }
}

fn decode(status: i32) -> Stop {
    let (signal, event) = (status & 0xff, status >> 8);
    match (event, signal) {
        (PTRACE_EVENT_STOP, libc::SIGTRAP) => Stop::Interrupted,
        (PTRACE_EVENT_STOP, signal) => Stop::Group(signal),
        // PTRACE_O_TRACESYSGOOD marks a system call stop with bit 7.
        (0, s) if s == libc::SIGTRAP | 0x80 => Stop::Syscall,
        (_, signal) => Stop::Signal(signal),
    }
}

/// `struct ptrace_sud_config` of `linux/ptrace.h`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Dispatch {
    mode: u64,
    selector: u64,
    offset: u64,
    len: u64,
}

/// Waits a little longer each time: stops normally come within microseconds.
#[derive(Default)]
pub(super) struct Pause(u32);

impl Pause {
    pub(super) fn wait(&mut self) {
        self.0 += 1;
        match self.0 {
            0..=50 => std::thread::yield_now(),
            51..=150 => std::thread::sleep(Duration::from_micros(50)),
            _ => std::thread::sleep(Duration::from_micros(500)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_status_names_the_kind_of_stop() {
        assert_eq!(decode(libc::SIGTRAP | PTRACE_EVENT_STOP << 8), Stop::Interrupted);
        assert_eq!(decode(libc::SIGTSTP | PTRACE_EVENT_STOP << 8), Stop::Group(libc::SIGTSTP));
        assert_eq!(decode(libc::SIGTRAP | 0x80), Stop::Syscall);
        assert_eq!(decode(libc::SIGSTOP), Stop::Signal(libc::SIGSTOP));
    }
}
