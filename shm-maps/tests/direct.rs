//! The usual case that programs are linked to does what the whole operation does, or nothing.

mod common;
use bpftime_shm::Map;
use bpftime_shm::uapi::*;
use common::{Rng, def, usual};
use std::collections::BTreeMap;

const CPUS: u32 = 3;
const ENTRIES: u32 = 8;

/// A map, and what must be in it: of every CPU a value, or of all one.
struct Pair {
    map: Map,
    model: BTreeMap<Vec<u8>, Vec<Vec<u8>>>,
    percpu: bool,
}

impl Pair {
    fn new(map_type: u32, key_size: u32, value_size: u32) -> Pair {
        let (_, map) = Map::create(&def(map_type, key_size, value_size, ENTRIES, 0), CPUS).expect("create");
        Pair { map, model: BTreeMap::new(), percpu: map_type == BPF_MAP_TYPE_PERCPU_HASH }
    }

    fn slot(&self, cpu: u32) -> usize {
        if self.percpu { cpu as usize } else { 0 }
    }

    fn update(&mut self, key: &[u8], value: &[u8], flags: u64, cpu: u32) {
        let (len, slot) = (self.map.def().value_size as usize, self.slot(cpu));
        let full = self.model.len() == ENTRIES as usize;
        let want = match (self.model.contains_key(key), flags) {
            (_, 3..) => -22,
            (true, BPF_NOEXIST) => -17,
            (false, BPF_EXIST) => -2,
            (false, _) if full => -7,
            _ => {
                let values =
                    self.model.entry(key.to_vec()).or_insert_with(|| vec![vec![0; len]; CPUS as usize]);
                values[slot] = value.to_vec();
                0
            }
        };
        // SAFETY: key and value have the map's sizes.
        let got = unsafe { usual::update(&self.map, key.as_ptr(), value.as_ptr(), flags, cpu) };
        assert_eq!(got, want, "update {key:?}, flags {flags}");
    }

    fn delete(&mut self, key: &[u8]) {
        let want = if self.model.remove(key).is_some() { 0 } else { -2 };
        // SAFETY: the key has the map's size.
        assert_eq!(unsafe { usual::delete(&self.map, key.as_ptr()) }, want, "delete {key:?}");
    }

    fn lookup(&self, key: &[u8], cpu: u32) {
        // SAFETY: as above; the values are as long as the map's.
        let got = unsafe {
            let found = usual::lookup(&self.map, key.as_ptr(), cpu);
            let len = self.map.def().value_size as usize;
            (!found.is_null()).then(|| std::slice::from_raw_parts(found, len).to_vec())
        };
        let want = self.model.get(key).map(|values| values[self.slot(cpu)].clone());
        assert_eq!(got, want, "lookup {key:?}, cpu {cpu}");
    }
}

#[test]
fn random_operations_leave_what_a_model_has() {
    for map_type in [BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_PERCPU_HASH] {
        for (key_size, value_size) in [(4, 4), (4, 8), (8, 8), (8, 20), (8, 600), (12, 3), (16, 16)] {
            let mut pair = Pair::new(map_type, key_size, value_size);
            let mut rng = Rng(u64::from(map_type * 1000 + key_size * 100 + value_size));
            for step in 0..6000u64 {
                let mut key = vec![0; key_size as usize];
                key[key_size as usize - 1] = rng.below(13) as u8;
                let cpu = rng.below(CPUS.into()) as u32;
                match rng.below(8) {
                    0..3 => {
                        let value: Vec<u8> = (0..value_size).map(|at| (step as u32 + at) as u8).collect();
                        let flags = [0, 0, 0, 0, 1, 2, 3][rng.below(7) as usize];
                        pair.update(&key, &value, flags, cpu);
                    }
                    3..5 => pair.delete(&key),
                    _ => pair.lookup(&key, cpu),
                }
            }
        }
    }
}

#[test]
fn a_cpu_that_a_map_has_no_values_for_is_refused() {
    let pair = Pair::new(BPF_MAP_TYPE_PERCPU_HASH, 8, 8);
    let (key, value) = (7u64.to_ne_bytes(), 1u64.to_ne_bytes());
    // SAFETY: key and value have the map's sizes.
    unsafe {
        assert_eq!(usual::update(&pair.map, key.as_ptr(), value.as_ptr(), 0, 0), 0);
        for cpu in [CPUS, u32::MAX] {
            assert_eq!(usual::update(&pair.map, key.as_ptr(), value.as_ptr(), 0, cpu), -22);
            assert!(usual::lookup(&pair.map, key.as_ptr(), cpu).is_null());
        }
    }
}

#[test]
fn nearly_every_operation_is_the_usual_case() {
    let pair = Pair::new(BPF_MAP_TYPE_HASH, 8, 8);
    let hash = pair.map.hash_table().expect("a hash map");
    let mut done = 0;
    for n in 0..1000u64 {
        let (key, value) = (n.to_ne_bytes(), n.to_ne_bytes());
        // SAFETY: key and value have the map's sizes; what was not done is done by `usual`.
        unsafe {
            let steps = [
                hash.try_update::<8>(key.as_ptr(), value.as_ptr(), BPF_ANY, 0).is_some(),
                hash.try_update::<8>(key.as_ptr(), value.as_ptr(), BPF_ANY, 0).is_some(),
                hash.try_lookup::<8>(key.as_ptr(), 0).is_some(),
                hash.try_delete::<8>(key.as_ptr()).is_some(),
            ];
            done += steps.iter().filter(|done| **done).count();
            // The first of a CPU finds no node near: it never claimed one.
            usual::update(&pair.map, key.as_ptr(), value.as_ptr(), 0, 0);
            assert_eq!(usual::delete(&pair.map, key.as_ptr()), 0);
        }
    }
    assert!(done > 3900, "{done} of 4000");
}
