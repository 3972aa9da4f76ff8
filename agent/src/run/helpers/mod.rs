//! The helpers: `abi::helper` names them, one function each here. A row without a function does not compile.

pub mod control;
mod dynptr;
mod format;
pub(crate) mod hash;
pub mod lean;
pub mod map;
pub mod number;
pub mod print;
pub mod probe;
pub mod ring;
pub mod session;
pub mod signal;
pub mod stack;
pub mod task;
pub mod time;
pub mod user;
pub mod walk;

use super::image::Func;
use rustix::io::Errno;

/// A negative errno as a helper returns it.
pub const fn errno(e: Errno) -> u64 {
    -(e.raw_os_error() as i64) as u64
}

/// `-EINVAL`.
pub const EINVAL: u64 = errno(Errno::INVAL);
/// `-EFAULT`.
pub const EFAULT: u64 = errno(Errno::FAULT);

use control::override_return;
use dynptr::{
    dynptr_data, dynptr_from_mem, dynptr_read, dynptr_write, ringbuf_discard_dynptr, ringbuf_reserve_dynptr,
    ringbuf_submit_dynptr, user_ringbuf_drain,
};
use map::{
    map_delete_elem, map_lookup_elem, map_lookup_percpu_elem, map_peek_elem, map_pop_elem, map_push_elem,
    map_update_elem, tail_call, task_storage_delete, task_storage_get,
};
use number::{strtol, strtoul};
use print::{snprintf, trace_printk, trace_vprintk};
use probe::{
    probe_read, probe_read_kernel, probe_read_kernel_str, probe_read_str, probe_read_user,
    probe_read_user_str,
};
use ring::{
    perf_event_output, ringbuf_discard, ringbuf_output, ringbuf_query, ringbuf_reserve, ringbuf_submit,
};
use session::{session_cookie, session_is_return};
use signal::{send_signal, send_signal_thread};
use stack::{get_stack, get_stackid, get_task_stack};
use task::{
    current_task_under_cgroup, get_attach_cookie, get_current_ancestor_cgroup_id, get_current_cgroup_id,
    get_current_comm, get_current_pid_tgid, get_current_task, get_current_task_btf, get_current_uid_gid,
    get_func_ip, get_ns_current_pid_tgid, get_numa_node_id, get_prandom_u32, get_smp_processor_id,
    task_pt_regs,
};
use time::{jiffies64, ktime_get_boot_ns, ktime_get_coarse_ns, ktime_get_ns, ktime_get_tai_ns};
use user::{copy_from_user, copy_from_user_task, probe_write_user};
use walk::{bpf_loop, for_each_map_elem, strncmp};

macro_rules! addresses {
    ($($id:literal $name:ident;)*) => {
        /// The address of helper `id`, for the image linker.
        pub fn address(id: u32) -> Option<Func> {
            match id {
                $($id => Some($name::CHOICE.of($name)),)*
                _ => None,
            }
        }
    };
}
bpftime_abi::for_each_helper!(addresses);

/// Declares a helper with the names of the arguments it takes; the rest of the five registers are ignored.
macro_rules! helper {
    ($(#[$m:meta])* fn $name:ident($run:ident $(, $arg:ident)*) $body:block) => {
        helper!(@pad [$(#[$m])*] $name $run $body [$($arg)*] [_a _b _c _d _e]);
    };
    (@pad [$($m:tt)*] $name:ident $run:ident $body:block [$a:ident $($rest:ident)*] [$_p:ident $($pads:ident)*] $($done:ident)*) => {
        helper!(@pad [$($m)*] $name $run $body [$($rest)*] [$($pads)*] $($done)* $a);
    };
    (@pad [$($m:tt)*] $name:ident $run:ident $body:block [] [$p:ident $($pads:ident)*] $($done:ident)*) => {
        helper!(@pad [$($m)*] $name $run $body [] [$($pads)*] $($done)* $p);
    };
    (@pad [$($m:tt)*] $name:ident $run:ident $body:block [] [] $a:ident $b:ident $c:ident $d:ident $e:ident) => {
        $($m)*
        ///
        /// Saves the vector registers first, unless a helper of the same hit has done so. Programs are linked to the body
        /// itself where it leaves them alone: see [`Choice`](crate::run::helpers::lean::Choice).
        ///
        /// # Safety
        /// Called by compiled BPF code with arguments its verifier accepted and the run they belong to.
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($a: u64, $b: u64, $c: u64, $d: u64, $e: u64, run: *mut Run) -> u64 {
            std::arch::naked_asm!(
                "mov r11, [r9 + {hit}]",
                "mov r10, [r11 + {vectors}]",
                "test r10, r10",
                "jnz 2f",
                "jmp {body}",
                "2:",
                "mov qword ptr [r11 + {vectors}], 0",
                "call bpft_keep",
                "jmp {body}",
                hit = const std::mem::offset_of!(Run, hit),
                vectors = const std::mem::offset_of!(crate::run::Hit, vectors),
                body = sym $name::body,
            )
        }

        pub(crate) mod $name {
            #[allow(unused_imports)]
            use super::*;

            /// Which of the two programs call.
            pub static CHOICE: $crate::run::helpers::lean::Choice = $crate::run::helpers::lean::Choice::new(body);

            /// # Safety
            /// As the function of this module's name, and the vector registers are saved, or this does not write them.
            #[allow(unused_variables)] // a helper need not look at all its arguments, nor at the run
            pub unsafe extern "C" fn body($a: u64, $b: u64, $c: u64, $d: u64, $e: u64, run: *mut $crate::run::Run) -> u64 {
                // SAFETY: the run is alive and not otherwise borrowed while a helper of it executes.
                let $run = unsafe { &mut *run };
                $body
            }
        }
    };
}
pub(crate) use helper;
