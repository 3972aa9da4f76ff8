//! Helper calls: licence, which maps go with which helper, results.

use super::args::Call;
use super::error::{Check, invalid};
use super::explore::{Next, Verifier};
use super::state::{Reference, State};
use super::value::{Kind, Val};
use crate::isa::{MapIdx, Reg};
use bpftime_abi::helper::{self, Proto, Ret, id};
use bpftime_abi::map_type::*;

/// Whether programs may call this helper with a map of this type.
pub(super) fn compatible(helper: u32, map_type: u32) -> bool {
    const RINGBUF: &[u32] = &[id::ringbuf_output, id::ringbuf_reserve, id::ringbuf_query];
    const LOOKUP: &[u32] = &[id::map_lookup_elem, id::map_update_elem, id::map_delete_elem];
    let by_map = match map_type {
        BPF_MAP_TYPE_PERF_EVENT_ARRAY => helper == id::perf_event_output,
        BPF_MAP_TYPE_STACK_TRACE => helper == id::get_stackid,
        BPF_MAP_TYPE_CGROUP_ARRAY => helper == id::current_task_under_cgroup,
        BPF_MAP_TYPE_RINGBUF => RINGBUF.contains(&helper),
        BPF_MAP_TYPE_PROG_ARRAY
        | BPF_MAP_TYPE_QUEUE
        | BPF_MAP_TYPE_STACK
        | BPF_MAP_TYPE_TASK_STORAGE
        | BPF_MAP_TYPE_BLOOM_FILTER
        | BPF_MAP_TYPE_USER_RINGBUF => false,
        BPF_MAP_TYPE_ARRAY_OF_MAPS | BPF_MAP_TYPE_HASH_OF_MAPS => false,
        _ => true,
    };
    let by_helper = match helper {
        id::perf_event_output => map_type == BPF_MAP_TYPE_PERF_EVENT_ARRAY,
        id::get_stackid => map_type == BPF_MAP_TYPE_STACK_TRACE,
        id::current_task_under_cgroup => map_type == BPF_MAP_TYPE_CGROUP_ARRAY,
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

impl Verifier<'_> {
    pub fn call_helper(&mut self, state: &mut State, at: usize, helper: u32) -> Check<Next> {
        let proto = match helper::proto(helper) {
            Some(proto) if self.env.helper_exists(helper) => proto,
            _ => return invalid(format!("invalid func unknown#{helper}")),
        };
        if proto.gpl_only && !self.env.gpl() {
            return invalid("cannot call GPL-restricted function from non-GPL compatible program".into());
        }
        let mut call = Call::new(at, helper);
        self.arguments(state, proto, &mut call)?;
        if call.released != 0 {
            release(state, call.released);
        }
        if let Some(func) = call.callback {
            return self.enter_callback(state, &call, func);
        }
        let result = self.result(state, proto, &call);
        clobber(state);
        state.set(Reg::R0, result);
        Ok(Next::At(at + 1))
    }

    fn result(&mut self, state: &mut State, proto: &Proto, call: &Call) -> Val {
        match proto.ret {
            Ret::Number => Val::UNKNOWN,
            Ret::Nothing => Val::NOT_INIT,
            Ret::MapValueOrNull => {
                let map = call.map.unwrap_or(MapIdx(0));
                let id = self.fresh_id();
                Val { nullable: true, id, ..Val::pointer(Kind::MapValue(map)) }
            }
            Ret::RecordOrNull => {
                let id = self.fresh_id();
                state.references.push(Reference { id, insn: call.at });
                Val { nullable: true, id, reference: id, ..Val::pointer(Kind::Record(call.alloc)) }
            }
        }
    }
}

/// r1 to r5 hold nothing after a call.
pub(super) fn clobber(state: &mut State) {
    state.frame_mut().regs[..=5].fill(Val::NOT_INIT);
}

/// Gives up a reference: addresses into it are numbers from now on.
fn release(state: &mut State, reference: u32) {
    state.references.retain(|r| r.id != reference);
    state.update(|v| v.reference == reference, |v| *v = Val::UNKNOWN);
}
