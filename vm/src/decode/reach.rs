//! Plain control flow reachability, and what it decides: whether a call of an unknown helper matters.

use super::error::{LoadError, Reason};
use super::{LoadEnv, UnknownHelpers, func_of};
use crate::isa::{Callee, Op, Poison};
use crate::program::Func;

/// Ids that libbpf writes into calls it knows to be dead: an unresolved CO-RE relocation, the two slots of
/// a `lddw` of a map that was not created, an unresolved weak kernel function (tools/lib/bpf/libbpf.c).
const POISON_CO_RE: u32 = 0x0bad_2310;
const POISON_MAPS: std::ops::Range<u32> = 2_001_000_000..2_002_000_000;
const POISON_KFUNCS: std::ops::Range<u32> = 2_002_000_000..2_003_000_000;

/// Which slots control flow from slot 0 can reach, through calls and callbacks too.
pub(super) fn reachable(ops: &[Op], funcs: &[Func]) -> Vec<bool> {
    let mut seen = vec![false; ops.len()];
    let mut pending = vec![0];
    while let Some(mut at) = pending.pop() {
        // Follow the straight line; remember the side exits.
        while at < ops.len() && !seen[at] {
            let op = &ops[at];
            seen[at] = true;
            pending.extend(op.target());
            pending.extend(func_of(op).map(|f| funcs[f as usize].start));
            if !op.falls_through() {
                break;
            }
            if op.slots() == 2 {
                seen[at + 1] = true;
            }
            at += op.slots();
        }
    }
    seen
}

/// Turns calls of helpers that do not exist into poisoned calls, or refuses the program.
pub(super) fn settle_helpers(
    ops: &mut [Op],
    reachable: &[bool],
    env: &dyn LoadEnv,
    policy: UnknownHelpers,
) -> Result<(), LoadError> {
    for (at, op) in ops.iter_mut().enumerate() {
        let Op::Call(callee @ Callee::Helper(_)) = op else { continue };
        let Callee::Helper(id) = *callee else { continue };
        if env.helper_exists(id) {
            continue;
        }
        let poison = poison_of(id);
        let accepted = match policy {
            UnknownHelpers::AcceptPoison => poison.is_some(),
            UnknownHelpers::Refuse => false,
            UnknownHelpers::AcceptAll => true,
        };
        if reachable[at] && !accepted {
            return Err(unknown(id, env).at(at));
        }
        *callee = Callee::Poisoned(poison.unwrap_or(Poison::Missing), id);
    }
    Ok(())
}

fn poison_of(id: u32) -> Option<Poison> {
    match id {
        POISON_CO_RE => Some(Poison::CoRe),
        _ if POISON_MAPS.contains(&id) => Some(Poison::Map(id - POISON_MAPS.start)),
        _ if POISON_KFUNCS.contains(&id) => Some(Poison::Kfunc(id - POISON_KFUNCS.start)),
        _ => None,
    }
}

fn unknown(id: u32, env: &dyn LoadEnv) -> Reason {
    match env.helper_name(id) {
        Some(name) => Reason::UnknownFunc { id, name },
        None => Reason::InvalidFunc(id),
    }
}
