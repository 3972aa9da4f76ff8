//! A thread of the target, borrowed: system calls and function calls in it, and giving it back.
//!
//! While borrowed, the thread runs on a stack of ours with every asynchronous signal blocked, so that no
//! handler of the target runs in between; what arrives stays pending in the kernel, or is held here and sent
//! again (SIGSTOP cannot be blocked). Giving back restores general, vector and x87 registers, errno and the
//! signal mask at a stop that lies before the kernel's decision about restarting an interrupted system call.

use std::time::{Duration, Instant};

use super::InjectError;
use super::procfs::{Memory, Status, mask_of};
use super::ptrace::{Dispatch, Regs, Resume, Stop, TraceError, Tracee};
use super::stub::{self, Stub};

/// Rust code and ld.so run here; committed only as far as touched.
const STACK_LEN: u64 = 512 * 1024;
/// The lower end of the stack holds strings for the target.
const SCRATCH_LEN: u64 = 64 * 1024;
/// Where the stub lies in no padding.
const STUB_PAGE: u64 = 4096;
/// How long the thread may take to stop when it is given back.
const RESTORE_TIME: Duration = Duration::from_secs(1);

/// Raised by the instruction itself: blocking them would make the kernel kill the process instead.
const SYNCHRONOUS: [i32; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

/// Results of an interrupted system call that never leave the kernel (`linux/errno.h`).
pub(super) const ERESTARTSYS: i64 = 512;
pub(super) const ERESTARTNOINTR: i64 = 513;
pub(super) const ERESTARTNOHAND: i64 = 514;
pub(super) const ERESTART_RESTARTBLOCK: i64 = 516;

/// `asm/unistd_64.h`.
const SYS_IO_PGETEVENTS: i64 = 333;

/// System calls that answer EINTR to a stop without a signal (signal(7), "Interruption of system calls and
/// library functions by stop signals"; sockets with a timeout likewise), and that change nothing when they
/// do, so that they can be made again. close() is not among them: it has closed.
const RESTARTED_BY_US: &[i64] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
    SYS_IO_PGETEVENTS,
    libc::SYS_io_uring_enter,
    libc::SYS_futex_waitv,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
];

/// Is this a system call that an interruption ends with EINTR, so that we have to restart it?
pub(super) fn needs_our_restart(nr: i64) -> bool {
    RESTARTED_BY_US.contains(&nr)
}

/// System calls that use the thread's single restart record even when nothing interrupts them.
fn uses_restart_record(nr: i64) -> bool {
    matches!(nr, libc::SYS_nanosleep | libc::SYS_clock_nanosleep)
}

/// A signal that we kept from the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    signal: i32,
    /// Sent to the thread (tgkill) and not to the process.
    to_thread: bool,
}

/// What of the target we use before anything of ours is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    /// Room for the stub; None: it gets a mapping.
    pub(super) padding: Option<u64>,
    /// A syscall instruction in the C library, to make that mapping and to undo it.
    pub(super) syscall_insn: u64,
}

/// A borrowed thread.
#[derive(Debug)]
pub(super) struct Borrowed<'a> {
    tracee: Tracee,
    mem: &'a Memory,
    pid: i32,
    deadline: Instant,
    places: Places,
    home: Regs,
    xstate: Vec<u8>,
    mask: u64,
    errno: Option<(u64, u32)>,
    stub: Option<Stub>,
    stack: u64,
    scratch_used: u64,
    held: Vec<Held>,
    /// The thread's syscall user dispatch, which is off while we have it: our calls are not the target's.
    dispatch: Option<Dispatch>,
    /// The code that we ran slept: the kernel no longer knows how to continue the target's own sleep.
    restart_record_used: bool,
    /// A call did not return: its stack stays mapped because the library may still point into it.
    abandoned: bool,
}

impl<'a> Borrowed<'a> {
    /// Takes a thread that is at `Stop::Interrupted`, puts the stub in place and maps a stack.
    pub(super) fn take(
        mut tracee: Tracee,
        mem: &'a Memory,
        pid: i32,
        places: Places,
        deadline: Instant,
    ) -> Result<Self, InjectError> {
        let (home, xstate, mask) =
            save(&mut tracee).map_err(|e| InjectError::trace("saving registers", e))?;
        let mut it = Self {
            tracee,
            mem,
            pid,
            deadline,
            places,
            home,
            xstate,
            mask,
            errno: None,
            stub: None,
            stack: 0,
            scratch_used: 0,
            held: Vec::new(),
            dispatch: None,
            restart_record_used: false,
            abandoned: false,
        };
        match it.prepare() {
            Ok(()) => Ok(it),
            Err(e) => {
                it.give_back()?;
                Err(e)
            }
        }
    }

    fn prepare(&mut self) -> Result<(), InjectError> {
        self.dispatch = self.tracee.suspend_dispatch();
        let block = !SYNCHRONOUS.iter().fold(0, |set, &s| set | mask_of(s));
        self.tracee.set_sigmask(block).map_err(|e| InjectError::trace("blocking signals", e))?;
        let begin = match self.places.padding {
            Some(begin) => begin,
            None => self.map(STUB_PAGE, libc::PROT_READ | libc::PROT_EXEC)?,
        };
        let contents = stub::contents(&self.way_home(), self.mask);
        self.write(begin, &contents)?;
        let stub = Stub::at(begin);
        self.stub = Some(stub);
        self.stack = self.map(STACK_LEN, libc::PROT_READ | libc::PROT_WRITE)?;
        let area = self.xstate_at();
        self.mem.write(area, &self.xstate).map_err(|e| InjectError::os("writing to the target", e))?;
        self.write(stub.xstate_at(), &area.to_ne_bytes())
    }

    /// The saved vector state lies at the upper end of the stack.
    fn xstate_at(&self) -> u64 {
        (self.stack + STACK_LEN - self.xstate.len() as u64) & !63
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), InjectError> {
        self.mem.write(at, bytes).map_err(|e| InjectError::os("writing to the target", e))
    }

    /// Runs a system call in the thread; Err(errno) inside when the kernel refused it.
    pub(super) fn syscall(&mut self, nr: i64, args: [u64; 6]) -> Result<Result<u64, i32>, InjectError> {
        let insn = self.stub.map_or(self.places.syscall_insn, Stub::syscall);
        self.syscall_at(insn, nr, args).map_err(|e| self.failed("a system call in the target", e))
    }

    /// Calls a C function of at most three integer arguments in the thread.
    pub(super) fn call(
        &mut self,
        what: &'static str,
        function: u64,
        args: [u64; 3],
    ) -> Result<u64, InjectError> {
        self.call_stub(function, args).map_err(|e| self.failed(what, e))
    }

    /// Copies bytes to where the target can read them until it is given back.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<u64, InjectError> {
        let at = self.stack + self.scratch_used;
        if self.scratch_used + bytes.len() as u64 > SCRATCH_LEN {
            return Err(InjectError::os("copying a path", std::io::Error::from_raw_os_error(libc::E2BIG)));
        }
        self.write(at, bytes)?;
        self.scratch_used += (bytes.len() as u64).next_multiple_of(16);
        Ok(at)
    }

    /// A NUL-terminated copy.
    pub(super) fn put_str(&mut self, text: &[u8]) -> Result<u64, InjectError> {
        let mut bytes = text.to_vec();
        bytes.push(0);
        self.put(&bytes)
    }

    /// Remembers errno, which the calls to come will change.
    pub(super) fn keep_errno(&mut self, errno_location: u64) -> Result<(), InjectError> {
        let at = self.call("reading errno", errno_location, [0; 3])?;
        let mut value = [0; 4];
        self.mem.read(at, &mut value).map_err(|e| InjectError::os("reading errno", e))?;
        let value = u32::from_ne_bytes(value);
        self.errno = Some((at, value));
        if let Some(stub) = self.stub {
            for (place, bytes) in stub.errno(at, value) {
                self.write(place, &bytes)?;
            }
        }
        Ok(())
    }

    /// Restores the thread and lets it go, whatever happened before.
    pub(super) fn give_back(mut self) -> Result<(), InjectError> {
        let restored = self.restore();
        let tid = self.tracee.tid();
        self.tracee.detach();
        for held in &self.held {
            resend(self.pid, tid, *held);
        }
        match restored {
            // Nothing is left to restore; the caller's own error says more.
            Err(TraceError::Gone) => Err(InjectError::Gone { pid: self.pid }),
            other => other.map_err(|e| InjectError::trace("giving the thread back", e)),
        }
    }

    fn restore(&mut self) -> Result<(), TraceError> {
        self.deadline = Instant::now() + RESTORE_TIME;
        if !self.tracee.is_stopped() {
            self.tracee.interrupt()?;
            self.tracee.wait(self.deadline)?;
        }
        self.tracee.set_xstate(&mut self.xstate)?;
        if !self.abandoned {
            self.unmap()?;
        }
        self.stop_before_restart_decision()?;
        if let Some((at, value)) = self.errno {
            let _ = self.mem.write(at, &value.to_ne_bytes());
        }
        if let Some(dispatch) = self.dispatch.take() {
            self.tracee.resume_dispatch(dispatch);
        }
        let home = continued(&self.home, self.restart_record_used || self.abandoned);
        self.tracee.set_regs(&home)?;
        self.tracee.set_sigmask(self.mask)?;
        if let (Some(begin), Some(_)) = (self.places.padding, self.stub.take()) {
            let _ = self.mem.write(begin, &[0; stub::LEN]);
        }
        Ok(())
    }

    fn unmap(&mut self) -> Result<(), TraceError> {
        let Some(stub) = self.stub else { return Ok(()) };
        if self.stack != 0 {
            // The vector state is back already, and its copy goes with the stack.
            let _ = self.mem.write(stub.xstate_at(), &0u64.to_ne_bytes());
            let stack = std::mem::take(&mut self.stack);
            let _ = self.syscall_at(stub.syscall(), libc::SYS_munmap, [stack, STACK_LEN, 0, 0, 0, 0])?;
        }
        if self.places.padding.is_none() {
            let args = [stub.begin(), STUB_PAGE, 0, 0, 0, 0];
            let _ = self.syscall_at(self.places.syscall_insn, libc::SYS_munmap, args)?;
        }
        Ok(())
    }

    /// Ends in `Stop::Interrupted`. Only there does the kernel look at orig_rax and the result afterwards,
    /// as it would have done without us.
    fn stop_before_restart_decision(&mut self) -> Result<(), TraceError> {
        self.tracee.interrupt()?;
        loop {
            self.tracee.resume(Resume::Run, 0)?;
            match self.tracee.wait(self.deadline)? {
                Stop::Interrupted => return Ok(()),
                Stop::Signal(signal) if !self.abandoned => self.hold(signal)?,
                // Job control stopped the process meanwhile: it stays so, we only pass through.
                Stop::Group(_) | Stop::Syscall | Stop::Signal(_) => {}
            }
        }
    }

    fn map(&mut self, len: u64, prot: i32) -> Result<u64, InjectError> {
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        self.syscall(libc::SYS_mmap, [0, len, prot as u64, flags, u64::MAX, 0])?.map_err(|errno| {
            InjectError::os("mapping memory in the target", std::io::Error::from_raw_os_error(errno))
        })
    }

    fn syscall_at(&mut self, insn: u64, nr: i64, args: [u64; 6]) -> Result<Result<u64, i32>, TraceError> {
        let mut regs = self.call_regs();
        (regs.rip, regs.rax) = (insn, nr as u64);
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
        self.tracee.set_regs(&regs)?;
        self.next_syscall_stop()?;
        self.next_syscall_stop()?;
        let result = self.tracee.regs()?.rax as i64;
        Ok(if (-4095..0).contains(&result) { Err(-result as i32) } else { Ok(result as u64) })
    }

    fn call_stub(&mut self, function: u64, args: [u64; 3]) -> Result<u64, TraceError> {
        let Some(stub) = self.stub else { return Err(TraceError::Gone) };
        let mut regs = self.call_regs();
        (regs.rip, regs.rax) = (stub.call(), function);
        [regs.rdi, regs.rsi, regs.rdx] = args;
        self.tracee.set_regs(&regs)?;
        loop {
            let stop = self.next_syscall_stop()?;
            let regs = self.tracee.regs()?;
            self.restart_record_used |= uses_restart_record(regs.orig_rax as i64);
            if regs.rip != stub.marker() {
                continue;
            }
            if stop == Stop::Syscall {
                // That was the entry. The exit stop leaves a thread that takes new registers.
                self.next_syscall_stop()?;
            }
            // The agent may have turned it on.
            self.dispatch = self.tracee.suspend_dispatch().or(self.dispatch);
            return Ok(regs.rbx);
        }
    }

    /// Registers for code of ours: own stack below which nothing lies, no system call to restart.
    fn call_regs(&self) -> Regs {
        let mut regs = self.home;
        if self.stack != 0 {
            regs.rsp = self.xstate_at() - 64;
            regs.rbp = 0;
        } else {
            // The way home pushes one word: below the red zone.
            regs.rsp = (regs.rsp - 256) & !15;
        }
        regs.eflags = 0x202; // interrupts on (always so in user mode), direction up
        regs.orig_rax = u64::MAX;
        regs
    }

    /// Runs to the next entry or exit of a system call, or to the stub's own that was dispatched as SIGSYS instead.
    fn next_syscall_stop(&mut self) -> Result<Stop, TraceError> {
        let mut signal = 0;
        loop {
            self.tracee.resume(Resume::ToSyscall, signal)?;
            signal = match self.tracee.wait(self.deadline)? {
                Stop::Syscall => return Ok(Stop::Syscall),
                Stop::Signal(libc::SIGSYS) if self.is_at_marker()? => return Ok(Stop::Signal(libc::SIGSYS)),
                Stop::Signal(s) if self.is_fault(s)? => self.fault(s)?,
                Stop::Signal(s) => {
                    self.hold(s)?;
                    0
                }
                Stop::Interrupted | Stop::Group(_) => 0,
            };
        }
    }

    fn is_at_marker(&mut self) -> Result<bool, TraceError> {
        let Some(stub) = self.stub else { return Ok(false) };
        Ok(self.tracee.regs()?.rip == stub.marker())
    }

    /// Did the thread's own instruction raise this signal?
    fn is_fault(&mut self, signal: i32) -> Result<bool, TraceError> {
        Ok(SYNCHRONOUS.contains(&signal) && self.tracee.signal_code()? > 0)
    }

    /// A fault in code that we run: the handler's business if there is one (the agent's own probe reads
    /// rely on it), else the end of the call. Never the end of the target.
    fn fault(&mut self, signal: i32) -> Result<i32, TraceError> {
        let caught = Status::read(&self.pid.to_string()).is_ok_and(|s| s.catches(signal));
        if caught {
            return Ok(signal);
        }
        let source = std::io::Error::other(format!("signal {signal} in the called code"));
        Err(TraceError::Os { doing: "the call crashed", source })
    }

    fn hold(&mut self, signal: i32) -> Result<(), TraceError> {
        let held = Held { signal, to_thread: self.tracee.signal_code()? == libc::SI_TKILL };
        if !self.held.contains(&held) {
            self.held.push(held);
        }
        Ok(())
    }

    fn failed(&mut self, during: &'static str, e: TraceError) -> InjectError {
        self.abandoned = true;
        match e {
            TraceError::Gone => InjectError::Gone { pid: self.pid },
            TraceError::Timeout => InjectError::TimedOut { during },
            e => InjectError::trace(during, e),
        }
    }

    /// Registers for the case that the injector dies: the stub jumps to them directly, so the restart that
    /// the kernel would do has to be in them.
    fn way_home(&self) -> Regs {
        let mut regs = self.home;
        if regs.orig_rax as i64 >= 0 {
            match -(regs.rax as i64) {
                ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
                    regs.rip -= 2;
                    regs.rax = regs.orig_rax;
                }
                ERESTART_RESTARTBLOCK => regs.rax = -i64::from(libc::EINTR) as u64,
                _ => {}
            }
        }
        regs
    }
}

fn save(tracee: &mut Tracee) -> Result<(Regs, Vec<u8>, u64), TraceError> {
    Ok((tracee.regs()?, tracee.xstate()?, tracee.sigmask()?))
}

/// The registers with which the thread goes on as though nothing had happened.
fn continued(home: &Regs, restart_record_used: bool) -> Regs {
    let mut regs = *home;
    let nr = regs.orig_rax as i64;
    if nr < 0 {
        return regs;
    }
    let result = -(regs.rax as i64);
    if result == i64::from(libc::EINTR) && needs_our_restart(nr) {
        // Restarts unless a handler runs, in which case the caller gets the EINTR it would have got.
        regs.rax = -ERESTARTNOHAND as u64;
    }
    if result == ERESTART_RESTARTBLOCK && restart_record_used {
        // A sleep has written the remaining time already and may end early; others wait anew.
        let lost = if uses_restart_record(nr) { i64::from(libc::EINTR) } else { ERESTARTNOHAND };
        regs.rax = -lost as u64;
    }
    regs
}

fn resend(pid: i32, tid: i32, held: Held) {
    // SAFETY: plain system calls without pointers.
    unsafe {
        if held.to_thread {
            libc::syscall(libc::SYS_tgkill, pid, tid, held.signal);
        } else {
            libc::kill(pid, held.signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_syscall(nr: i64, result: i64) -> Regs {
        // SAFETY: integers only.
        let mut regs: Regs = unsafe { std::mem::zeroed() };
        (regs.orig_rax, regs.rax, regs.rip) = (nr as u64, result as u64, 0x1002);
        regs
    }

    #[test]
    fn epoll_wait_is_restarted_and_close_is_not() {
        let eintr = -i64::from(libc::EINTR);
        let epoll = continued(&in_syscall(libc::SYS_epoll_wait, eintr), false);
        assert_eq!(epoll.rax as i64, -ERESTARTNOHAND);
        let close = continued(&in_syscall(libc::SYS_close, eintr), false);
        assert_eq!(close.rax as i64, eintr);
    }

    #[test]
    fn a_sleep_is_left_to_the_kernel_unless_its_record_is_lost() {
        let home = in_syscall(libc::SYS_clock_nanosleep, -ERESTART_RESTARTBLOCK);
        assert_eq!(continued(&home, false).rax as i64, -ERESTART_RESTARTBLOCK);
        assert_eq!(continued(&home, true).rax as i64, -i64::from(libc::EINTR));
        let poll = in_syscall(libc::SYS_poll, -ERESTART_RESTARTBLOCK);
        assert_eq!(continued(&poll, true).rax as i64, -ERESTARTNOHAND);
    }

    #[test]
    fn a_thread_outside_a_system_call_keeps_its_registers() {
        let home = in_syscall(-1, -i64::from(libc::EINTR));
        assert_eq!(continued(&home, true).rax, home.rax);
    }
}
