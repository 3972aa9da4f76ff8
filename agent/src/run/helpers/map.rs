//! Map helpers: 1-3, 12, 87-89, 156, 157 and 195.

use super::{EINVAL, helper};
use crate::hook::ThreadBlock;
use crate::run::image::Program;
use crate::run::{MapHandle, Run, clock, process};
use bpftime_shm::map::Task;

/// The map behind a constant of the program.
///
/// # Safety
/// `handle` is what the linker put into the code: a handle that the program keeps alive.
#[inline]
pub unsafe fn map_of<'a>(handle: u64) -> &'a MapHandle {
    // SAFETY: see above.
    unsafe { &*(handle as *const MapHandle) }
}

helper! {
    /// 1 `map_lookup_elem(map, key)`: pointer to the value, or null.
    fn map_lookup_elem(run, map, key) {
        // SAFETY: the map is a linked constant, the key as long as the map wants.
        unsafe { map_of(map).map.lookup(key as *const u8, run.cpu()) as u64 }
    }
}

helper! {
    /// 2 `map_update_elem(map, key, value, flags)`: 0 or negative errno.
    fn map_update_elem(run, map, key, value, flags) {
        // SAFETY: as above, for key and value.
        unsafe { map_of(map).map.update(key as *const u8, value as *const u8, flags, run.cpu()) as u64 }
    }
}

helper! {
    /// 3 `map_delete_elem(map, key)`: 0 or negative errno.
    fn map_delete_elem(run, map, key) {
        // SAFETY: as above.
        unsafe { map_of(map).map.delete(key as *const u8) as u64 }
    }
}

helper! {
    /// 12 `tail_call(ctx, prog_array, index)`: the entry of the program in the slot, which compiled code runs in place of
    /// the rest of this one; 0 to go on.
    fn tail_call(run, ctx, map, index) {
        // SAFETY: a linked constant of the program.
        let array = unsafe { map_of(map).map.fd_array() };
        let program = array.map_or(std::ptr::null(), |a| a.member(index as u32)).cast::<Program>();
        // SAFETY: members of a prog array are linked programs, which live until no thread runs them.
        if program.is_null() || !unsafe { run.tail.enter(program) } {
            return 0;
        }
        // SAFETY: as above.
        unsafe { (*program).entry() as usize as u64 }
    }
}

helper! {
    /// 87 `map_push_elem(map, value, flags)`: 0 or negative errno.
    fn map_push_elem(run, map, value, flags) {
        // SAFETY: a linked constant of the program, and a value as long as the map wants.
        unsafe { map_of(map).map.push(value as *const u8, flags, run.lock_id()) as u64 }
    }
}

helper! {
    /// 88 `map_pop_elem(map, value)`: 0 or negative errno.
    fn map_pop_elem(run, map, value) {
        // SAFETY: as above.
        unsafe { map_of(map).map.pop(value as *mut u8, run.lock_id()) as u64 }
    }
}

helper! {
    /// 89 `map_peek_elem(map, value)`: 0 or negative errno.
    fn map_peek_elem(run, map, value) {
        // SAFETY: as above.
        unsafe { map_of(map).map.peek(value as *mut u8, run.lock_id()) as u64 }
    }
}

helper! {
    /// 195 `map_lookup_percpu_elem(map, key, cpu)`: pointer to that CPU's value, or null.
    fn map_lookup_percpu_elem(run, map, key, cpu) {
        // SAFETY: as above; a CPU without a value gives null.
        unsafe { map_of(map).map.lookup(key as *const u8, cpu as u32) as u64 }
    }
}

/// The running thread, the only task that programs can name, if they do not name none.
fn named_task(run: &Run, task: u64) -> Option<Task> {
    if task == 0 {
        return None;
    }
    let cookie = process::cookie(ThreadBlock::current()?);
    Some(Task { tid: run.tid(), cookie, now: clock::boottime() })
}

helper! {
    /// 156 `task_storage_get(map, task, value, flags)`: the task's value, made from `value` if flags say so, or null.
    fn task_storage_get(run, map, task, value, flags) {
        // SAFETY: a linked constant of the program.
        let storage = unsafe { map_of(map).map.task_storage() };
        let Some((storage, task)) = storage.zip(named_task(run, task)) else { return 0 };
        // SAFETY: a value as long as the map wants, or null.
        unsafe { storage.get(task, value as *const u8, flags) as u64 }
    }
}

helper! {
    /// 157 `task_storage_delete(map, task)`: 0 or negative errno.
    fn task_storage_delete(run, map, task) {
        // SAFETY: a linked constant of the program.
        let storage = unsafe { map_of(map).map.task_storage() };
        storage.zip(named_task(run, task)).map_or(EINVAL, |(storage, task)| storage.forget(task) as u64)
    }
}
