//! Helpers 1-3 for hash maps whose type and key size are known: programs that name such a map are linked to these.

use super::lean::Choice;
use super::map::{map_delete_elem, map_lookup_elem, map_of, map_update_elem};
use crate::run::Run;
use crate::run::image::Func;
use bpftime_shm::Map;
use bpftime_vm::BpfFn;
use bpftime_vm::contract::HashTable;

/// The usual case of the three with keys of some length; all others are the helper's, which saves the vector registers.
macro_rules! sized {
    ($($size:literal: $module:ident;)*) => { $(
        mod $module {
            use super::*;

            pub static LOOKUP: Choice = Choice::new(lookup);
            pub static UPDATE: Choice = Choice::new(update);
            pub static DELETE: Choice = Choice::new(delete);

            unsafe extern "C" fn lookup(map: u64, key: u64, c: u64, d: u64, e: u64, run: *mut Run) -> u64 {
                // SAFETY: the map is a linked constant, a hash map with such keys; a key; the run.
                unsafe {
                    let table = map_of(map).map.hash_table();
                    match table.and_then(|hash| hash.try_lookup::<$size>(key as *const u8, (*run).cpu())) {
                        Some(value) => value as u64,
                        None => map_lookup_elem(map, key, c, d, e, run),
                    }
                }
            }

            unsafe extern "C" fn update(
                map: u64,
                key: u64,
                value: u64,
                flags: u64,
                e: u64,
                run: *mut Run,
            ) -> u64 {
                // SAFETY: as above, and a value.
                unsafe {
                    let (k, v, cpu) = (key as *const u8, value as *const u8, (*run).cpu());
                    let table = map_of(map).map.hash_table();
                    match table.and_then(|hash| hash.try_update::<$size>(k, v, flags, cpu)) {
                        Some(result) => result as u64,
                        None => map_update_elem(map, key, value, flags, e, run),
                    }
                }
            }

            unsafe extern "C" fn delete(map: u64, key: u64, c: u64, d: u64, e: u64, run: *mut Run) -> u64 {
                // SAFETY: as for a lookup.
                unsafe {
                    let table = map_of(map).map.hash_table();
                    match table.and_then(|hash| hash.try_delete::<$size>(key as *const u8)) {
                        Some(result) => result as u64,
                        None => map_delete_elem(map, key, c, d, e, run),
                    }
                }
            }
        }
    )* };
}

sized! {
    4: four;
    8: eight;
    0: any;
}

/// A helper as generated code knows it.
fn as_called(helper: Func) -> BpfFn {
    // SAFETY: the same signature: a Run begins with its RunHeader.
    unsafe { std::mem::transmute::<Func, BpfFn>(helper) }
}

/// What lookup, update and delete are to be for `map`: finding out which functions are lean takes a millisecond when none was
/// looked at yet.
pub fn functions(map: &Map) -> [BpfFn; 3] {
    // Updates of values that are not only data are the map's own business.
    let plain = map.hash_table().filter(|_| map.def().fields.is_empty());
    let (lookup, update, delete) = match (plain, map.def().key_size) {
        (Some(_), 4) => (&four::LOOKUP, &four::UPDATE, &four::DELETE),
        (Some(_), 8) => (&eight::LOOKUP, &eight::UPDATE, &eight::DELETE),
        (Some(_), _) => (&any::LOOKUP, &any::UPDATE, &any::DELETE),
        (None, _) => (&map_lookup_elem::CHOICE, &map_update_elem::CHOICE, &map_delete_elem::CHOICE),
    };
    let chosen = [lookup.of(map_lookup_elem), update.of(map_update_elem), delete.of(map_delete_elem)];
    chosen.map(as_called)
}

/// What generated code may know of `map`, with the functions that are right for all.
pub fn table(map: &Map) -> HashTable {
    let [lookup, update, delete] = [map_lookup_elem, map_update_elem, map_delete_elem].map(as_called);
    let nowhere = HashTable {
        heads: 0,
        mask: 0,
        salt: 0,
        nodes: 0,
        stride: 0,
        node_values: 0,
        value_stride: 0,
        cpu_stride: 0,
        capacity: 0,
        values: 0,
        lookup,
        update,
        delete,
    };
    let Some(parts) = map.hash_table().map(|hash| hash.parts()) else { return nowhere };
    HashTable {
        heads: parts.heads as u64,
        mask: parts.mask,
        salt: parts.salt,
        nodes: parts.nodes as u64,
        stride: parts.stride as u64,
        node_values: parts.node_values as u64,
        value_stride: parts.value_stride as u64,
        cpu_stride: parts.cpu_stride as u64,
        capacity: parts.capacity,
        values: parts.values,
        ..nowhere
    }
}
