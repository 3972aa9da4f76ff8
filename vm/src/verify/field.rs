//! Parts of map values that are no data: which programs may name such maps, and that nobody reads or writes the parts.

use super::error::{Check, Errno, Refusal, access};
use super::explore::Verifier;
use super::memory::{Span, Use};
use crate::isa::{Callee, Const, MapIdx, Op, Operand};
use bpftime_abi::field::{Field, KPTR, KPTR_PERCPU, SPIN_LOCK};
use bpftime_abi::prog_type::*;

const TRACING: &[u32] = &[
    BPF_PROG_TYPE_KPROBE,
    BPF_PROG_TYPE_TRACEPOINT,
    BPF_PROG_TYPE_PERF_EVENT,
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE,
];

impl Verifier<'_> {
    /// Whether programs of this type may name all the maps that this one names, reachable or not.
    pub fn may_name_maps(&self) -> Result<(), Refusal> {
        for (at, op) in self.program.ops().iter().enumerate() {
            if let Op::LoadConst { value: Const::Map(map) | Const::MapValue(map, _), .. } = op
                && let Some(what) = self.refused_part(*map)
            {
                return Err(Refusal::of_program(Errno::Invalid, at, what));
            }
        }
        Ok(())
    }

    fn refused_part(&self, map: MapIdx) -> Option<String> {
        let (fields, kind) = (self.env.fields(map), self.env.prog_type());
        let who = match kind {
            BPF_PROG_TYPE_SOCKET_FILTER => "socket filter",
            _ if TRACING.contains(&kind) => "tracing",
            _ => return None,
        };
        // The kernel asks for locks first. Socket filters may have timers.
        let locks = fields.iter().filter_map(|f| f.kind.untraced).find(|w| Some(*w) == SPIN_LOCK.untraced);
        let others = || fields.iter().filter(|_| who == "tracing").find_map(|f| f.kind.untraced);
        Some(format!("{who} progs cannot use {} yet", locks.or_else(others)?))
    }

    /// Whether an access to a value, which is inside of it, leaves the parts alone that are no data.
    ///
    /// A pointer may be loaded: nothing puts one there, and what is loaded counts as any number.
    pub(super) fn spares_parts(&self, at: usize, map: MapIdx, span: &Span, usage: Use) -> Check {
        let (min, max) = span.range();
        let touched = |f: &Field| {
            let part = f.range();
            min < part.end as i64 && max.saturating_add(span.size) > part.start as i64
        };
        match self.env.fields(map).iter().find(touched) {
            None => Ok(()),
            Some(part) if part.kind.pointer => self.pointer_access(at, &part, span, usage),
            Some(part) => access(format!("{} cannot be accessed directly by load/store", part.kind.name)),
        }
    }

    fn pointer_access(&self, at: usize, part: &Field, span: &Span, usage: Use) -> Check {
        let op = self.program.ops().get(at).copied();
        if matches!(op, Some(Op::Call(Callee::Helper(_)))) {
            return access("kptr cannot be accessed indirectly by helper".into());
        }
        let Some(start) = span.start() else {
            return access("kptr access cannot have variable offset".into());
        };
        if start != i64::from(part.at) {
            return access(format!("kptr access misaligned expected={} off={start}", part.at));
        }
        if span.size != 8 {
            return access("kptr access size must be BPF_DW".into());
        }
        match op {
            Some(Op::Atomic { .. }) => {
                access("kptr in map can only be accessed using BPF_MEM instruction mode".into())
            }
            _ if usage == Use::Read => Ok(()),
            _ if part.kind == KPTR || part.kind == KPTR_PERCPU => {
                access("store to referenced kptr disallowed".into())
            }
            Some(Op::Store { src: Operand::Imm(0), .. }) => Ok(()),
            Some(Op::Store { src: Operand::Imm(_), .. }) => {
                access(format!("BPF_ST imm must be 0 when storing to kptr at off={}", part.at))
            }
            _ => access("invalid kptr access, addresses of kernel objects are not known here".into()),
        }
    }
}
