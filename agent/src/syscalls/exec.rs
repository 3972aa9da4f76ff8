//! execve succeeds in one program and returns in the next, where another copy of this library lives.
//!
//! That copy reports the end; and the beginning too, where the process came from a program without us. It cannot see
//! its own beginning, so the old copy leaves a note in the pages of the sessions that it told.

use super::{SideList, published, run, who};
use crate::arch::PtRegs;
use crate::hook::ThreadBlock;
use bpftime_shm::session::wire::Side;
use std::ffi::{CStr, c_char};

/// The sessions of `enter` have been told that process `pid` calls `nr`.
pub(super) fn note(enter: &SideList, nr: i32, pid: u32) {
    enter.of(nr).for_each(|l| l.entry.session.page.note_exec(pid));
}

/// Reports the execve that started this program. Called once, by its first thread, when the links stand.
///
/// # Safety
/// `argv` and `envp` are those of `main`.
pub unsafe fn report_exec(argv: *const *const c_char, envp: *const *const c_char) {
    let Some(block) = ThreadBlock::current() else { return };
    block.enter();
    if let Some(listeners) = published() {
        // SAFETY: the auxiliary vector's string stays on the stack.
        let file = unsafe { libc::getauxval(libc::AT_EXECFN) };
        let nr = number(file as *const c_char) as i32;
        let mut regs = PtRegs { orig_ax: nr as u64, di: file, ..PtRegs::default() };
        (regs.si, regs.dx) = (argv as u64, envp as u64);
        let pid = who(block).pid;
        let unseen = |l: &&super::Listener| !l.entry.session.page.exec_noted(pid);
        run(&listeners.enter, Side::Enter, block, nr, &regs, unseen);
        // SAFETY: null, or the kernel's terminated string.
        let path = (file != 0).then(|| unsafe { CStr::from_ptr(file as *const c_char) }.to_bytes());
        super::tasks::began(block, path.unwrap_or_default(), &regs);
        regs.ax = 0;
        run(&listeners.exit, Side::Exit, block, nr, &regs, |_| true);
        listeners.enter.of(nr).for_each(|l| l.entry.session.page.forget_exec(pid));
    }
    block.leave();
}

/// fexecve names the file by its descriptor.
fn number(file: *const c_char) -> i64 {
    // SAFETY: null, or the kernel's terminated string.
    let by_fd = !file.is_null() && unsafe { CStr::from_ptr(file) }.to_bytes().starts_with(b"/dev/fd/");
    if by_fd { libc::SYS_execveat } else { libc::SYS_execve }
}
