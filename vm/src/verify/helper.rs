//! Helper calls: licence, which maps go with which helper, results.

use super::args::Call;
use super::error::{Check, Errno, Fail, Refusal, access, invalid};
use super::explore::{Next, Verifier};
use super::num::Scalar;
use super::state::{Reference, State};
use super::value::{Kind, Object, Val};
use crate::isa::{MapIdx, Reg};
use bpftime_abi::format;
use bpftime_abi::helper::{self, Proto, Ret, id};
use bpftime_abi::map_type::*;
use bpftime_abi::prog_type::{
    BPF_PROG_TYPE_KPROBE, BPF_PROG_TYPE_SOCKET_FILTER, BPF_PROG_TYPE_SYSCALL, BPF_PROG_TYPE_TRACING,
    BPF_TRACE_UPROBE_SESSION,
};

/// The lowest errno a helper returns is minus this.
const MAX_ERRNO: i64 = 4095;

/// Whether programs may call this helper with a map of this type.
pub(super) fn compatible(helper: u32, map_type: u32) -> bool {
    const RINGBUF: &[u32] =
        &[id::ringbuf_output, id::ringbuf_reserve, id::ringbuf_reserve_dynptr, id::ringbuf_query];
    const LOOKUP: &[u32] = &[id::map_lookup_elem, id::map_update_elem, id::map_delete_elem];
    const QUEUE: &[u32] = &[id::map_push_elem, id::map_pop_elem, id::map_peek_elem];
    const BLOOM: &[u32] = &[id::map_push_elem, id::map_peek_elem];
    const STORAGE: &[u32] = &[id::task_storage_get, id::task_storage_delete];
    let by_map = match map_type {
        BPF_MAP_TYPE_PERF_EVENT_ARRAY => helper == id::perf_event_output,
        BPF_MAP_TYPE_STACK_TRACE => helper == id::get_stackid,
        BPF_MAP_TYPE_CGROUP_ARRAY => helper == id::current_task_under_cgroup,
        BPF_MAP_TYPE_RINGBUF => RINGBUF.contains(&helper),
        BPF_MAP_TYPE_PROG_ARRAY => helper == id::tail_call,
        BPF_MAP_TYPE_QUEUE | BPF_MAP_TYPE_STACK => QUEUE.contains(&helper),
        BPF_MAP_TYPE_BLOOM_FILTER => BLOOM.contains(&helper),
        BPF_MAP_TYPE_USER_RINGBUF => helper == id::user_ringbuf_drain,
        BPF_MAP_TYPE_TASK_STORAGE => STORAGE.contains(&helper),
        BPF_MAP_TYPE_ARRAY_OF_MAPS | BPF_MAP_TYPE_HASH_OF_MAPS => helper == id::map_lookup_elem,
        _ => true,
    };
    let by_helper = match helper {
        id::perf_event_output => map_type == BPF_MAP_TYPE_PERF_EVENT_ARRAY,
        id::get_stackid => map_type == BPF_MAP_TYPE_STACK_TRACE,
        id::current_task_under_cgroup => map_type == BPF_MAP_TYPE_CGROUP_ARRAY,
        id::user_ringbuf_drain => map_type == BPF_MAP_TYPE_USER_RINGBUF,
        id::tail_call => map_type == BPF_MAP_TYPE_PROG_ARRAY,
        _ if STORAGE.contains(&helper) => map_type == BPF_MAP_TYPE_TASK_STORAGE,
        id::map_lookup_percpu_elem => matches!(
            map_type,
            BPF_MAP_TYPE_PERCPU_HASH | BPF_MAP_TYPE_PERCPU_ARRAY | BPF_MAP_TYPE_LRU_PERCPU_HASH
        ),
        _ if QUEUE.contains(&helper) => {
            matches!(map_type, BPF_MAP_TYPE_QUEUE | BPF_MAP_TYPE_STACK)
                || BLOOM.contains(&helper) && map_type == BPF_MAP_TYPE_BLOOM_FILTER
        }
        id::for_each_map_elem => matches!(
            map_type,
            BPF_MAP_TYPE_HASH
                | BPF_MAP_TYPE_ARRAY
                | BPF_MAP_TYPE_PERCPU_HASH
                | BPF_MAP_TYPE_PERCPU_ARRAY
                | BPF_MAP_TYPE_LRU_HASH
                | BPF_MAP_TYPE_LRU_PERCPU_HASH
        ),
        _ if RINGBUF.contains(&helper) => map_type == BPF_MAP_TYPE_RINGBUF,
        _ if LOOKUP.contains(&helper) => true,
        _ => false,
    };
    by_map && by_helper
}

/// Helpers that only sleepable programs may call.
const SLEEPS: &[u32] = &[id::copy_from_user, id::copy_from_user_task];

/// A helper that programs cannot have.
pub(super) fn not_here<T>(helper: u32) -> Check<T> {
    match helper::full_name(helper) {
        Some(name) => invalid(format!("program of this type cannot use helper {name}#{helper}")),
        None => invalid(format!("invalid func unknown#{helper}")),
    }
}

/// What dynptrs can be made of.
fn dynptr_memory(memory: &Val) -> Check {
    match memory.kind {
        Kind::MapValue(_) => Ok(()),
        _ => access(format!("Unsupported reg type {} for bpf_dynptr_from_mem data", memory.type_name())),
    }
}

/// Whether the values of a bpf_snprintf go with its format.
fn printed(call: &Call) -> Check {
    let wanted = call.string.as_deref().map(format::count);
    let given = call.known_size;
    match wanted {
        // More values than are printed do no harm.
        Some(Ok(n)) if given.is_multiple_of(8) && n as u64 <= given / 8 => Ok(()),
        _ => invalid("Invalid format string".into()),
    }
}

/// Whether programs of this type may call the helper, as the kernel answers (tests/verify/programs.rs).
fn allowed(helper: u32, prog_type: u32) -> bool {
    const TRACING: &[u32] = &[
        id::probe_read,
        id::probe_read_str,
        id::get_stackid,
        id::get_stack,
        id::get_attach_cookie,
        id::task_storage_get,
        id::task_storage_delete,
    ];
    match helper {
        id::get_func_ip => prog_type == BPF_PROG_TYPE_KPROBE,
        _ if TRACING.contains(&helper) => prog_type != BPF_PROG_TYPE_SOCKET_FILTER,
        _ => true,
    }
}

/// Whether the helper may be given NULL for a task, and answers so.
pub(super) fn takes_no_task(helper: u32) -> bool {
    matches!(helper, id::task_storage_get | id::task_storage_delete)
}

/// Whether the helper writes all bytes of its destination, whatever it returns. Others leave some as they
/// were: a short string, an error.
pub(super) fn fills(helper: u32) -> bool {
    matches!(helper, id::probe_read | id::probe_read_user | id::probe_read_kernel | id::get_current_comm)
}

impl Verifier<'_> {
    /// Whether programs of this type may sleep, if this one wants to.
    pub fn may_sleep(&self) -> Result<(), Refusal> {
        const SLEEPERS: &[u32] = &[BPF_PROG_TYPE_KPROBE, BPF_PROG_TYPE_TRACING, BPF_PROG_TYPE_SYSCALL];
        let kind = self.env.prog_type();
        let reason = if self.env.sleepable() && !SLEEPERS.contains(&kind) {
            "Only fentry/fexit/fmod_ret, lsm, iter, uprobe, and struct_ops programs can be sleepable"
        } else if !self.env.sleepable() && kind == BPF_PROG_TYPE_SYSCALL {
            "Syscall programs can only be sleepable"
        } else {
            return Ok(());
        };
        Err(Refusal::of_program(Errno::Invalid, 0, reason.into()))
    }

    pub fn call_helper(&mut self, state: &mut State, at: usize, helper: u32) -> Check<Next> {
        let proto = match helper::proto(helper) {
            Some(proto) if self.env.helper_exists(helper) => proto,
            _ => return not_here(helper),
        };
        self.kernel_function(helper)?;
        if !allowed(helper, self.env.prog_type()) {
            let (name, kind) = (helper::full_name(helper).unwrap_or("unknown"), self.env.prog_type());
            if helper != id::get_func_ip {
                return invalid(format!("program of this type cannot use helper {name}#{helper}"));
            }
            let reason = format!("func {name}#{helper} not supported for program type {kind}");
            return Err(Fail { errno: Errno::NotSupported, reason });
        }
        if proto.gpl_only && !self.env.gpl() {
            return invalid("cannot call GPL-restricted function from non-GPL compatible program".into());
        }
        if SLEEPS.contains(&helper) && !self.env.sleepable() {
            return invalid("helper call might sleep in a non-sleepable prog".into());
        }
        let mut call = Call::new(at, helper);
        self.arguments(state, proto, &mut call)?;
        match helper {
            id::snprintf => printed(&call)?,
            id::dynptr_from_mem => dynptr_memory(&state.frame().regs[1])?,
            _ => {}
        }
        if call.released != 0 {
            release(state, call.released);
        }
        if let Some(r) = state.references.first().filter(|_| helper == id::tail_call) {
            let (id, insn) = (r.id, r.insn);
            return invalid(format!(
                "Unreleased reference id={id} alloc_insn={insn}\ntail_call would lead to reference leak"
            ));
        }
        if let Some(func) = call.callback {
            return self.enter_callback(state, &call, func);
        }
        let result = self.result(state, proto, &call);
        clobber(state);
        state.set(Reg::R0, result);
        Ok(Next::At(at + 1))
    }

    /// The session functions are for programs of sessions under the GPL; all helpers pass.
    fn kernel_function(&self, helper: u32) -> Check {
        if helper < helper::KFUNC_FIRST {
            return Ok(());
        }
        if !self.env.gpl() {
            return invalid("cannot call kernel function from non-GPL compatible program".into());
        }
        if self.is_session() {
            return Ok(());
        }
        let name = helper::name(helper).unwrap_or("unknown");
        access(format!("calling kernel function bpf_{name} is not allowed"))
    }

    /// Whether the program runs at a function's entry and again at its return.
    pub(super) fn is_session(&self) -> bool {
        self.env.prog_type() == BPF_PROG_TYPE_KPROBE
            && self.env.expected_attach_type() == BPF_TRACE_UPROBE_SESSION
    }

    fn result(&mut self, state: &mut State, proto: &Proto, call: &Call) -> Val {
        match proto.ret {
            Ret::Number => Val::UNKNOWN,
            Ret::Length => Val::scalar(Scalar::between_signed(-MAX_ERRNO, i64::from(call.size))),
            Ret::Nothing => Val::NOT_INIT,
            Ret::MapValueOrNull => {
                let map = call.map.unwrap_or(MapIdx(0));
                let id = self.fresh_id();
                let in_map =
                    matches!(self.map(map).map_type, BPF_MAP_TYPE_ARRAY_OF_MAPS | BPF_MAP_TYPE_HASH_OF_MAPS);
                let kind = if in_map { Kind::Map(map.inner()) } else { Kind::MapValue(map) };
                let nullable = !self.surely_found(map, call);
                Val { nullable, id: if nullable { id } else { 0 }, ..Val::pointer(kind) }
            }
            Ret::Task => Val::pointer(Kind::Object(Object::Task)),
            Ret::Registers => Val::pointer(Kind::Object(Object::Registers)),
            Ret::Word => Val::pointer(Kind::Slice(8)),
            Ret::SliceOrNull => {
                let id = self.fresh_id();
                let slice = Val::pointer(Kind::Slice(call.alloc));
                Val { nullable: true, id, reference: call.dynptr, ..slice }
            }
            Ret::RecordOrNull => {
                self.fresh_id();
                let id = self.fresh_id();
                state.references.push(Reference { id, insn: call.at });
                Val { nullable: true, id, reference: id, ..Val::pointer(Kind::Record(call.alloc)) }
            }
        }
    }
}

impl Verifier<'_> {
    /// Whether a lookup finds something in any case: a known index of an array that has as many elements. What
    /// stands in for the maps of another map is no promise of how many they have.
    fn surely_found(&mut self, map: MapIdx, call: &Call) -> bool {
        let facts = self.map(map);
        let array = matches!(facts.map_type, BPF_MAP_TYPE_ARRAY | BPF_MAP_TYPE_PERCPU_ARRAY);
        let found = call.id == id::map_lookup_elem
            && array
            && map.outer().is_none()
            && call.key.is_some_and(|key| key < u64::from(facts.max_entries));
        if found {
            self.decides(call.at);
        }
        found
    }
}

/// r1 to r5 hold nothing after a call.
pub(super) fn clobber(state: &mut State) {
    state.frame_mut().regs[..=5].fill(Val::NOT_INIT);
}

/// Gives up a reference: addresses into it are numbers from now on.
fn release(state: &mut State, reference: u32) {
    state.references.retain(|r| r.id != reference);
    super::dynptr::end(state, reference);
}
