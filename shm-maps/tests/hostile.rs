//! A peer writes anything anywhere into the shared memory: values are spoilt, nothing else happens.

mod common;
use bpftime_shm::ring::{LockId, Sample};
use bpftime_shm::uapi::*;
use bpftime_shm::{Map, MapDef, PerfRing};
use common::{def, usual};
use proptest::prelude::*;
use std::os::fd::{AsFd, OwnedFd};

const CPUS: u32 = 2;

fn rows() -> Vec<MapDef> {
    vec![
        def(BPF_MAP_TYPE_HASH, 4, 8, 20, 0),
        def(BPF_MAP_TYPE_HASH, 24, 40, 5, 0),
        def(BPF_MAP_TYPE_PERCPU_HASH, 8, 12, 9, 0),
        def(BPF_MAP_TYPE_ARRAY, 4, 8, 9, BPF_F_MMAPABLE),
        def(BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 9, 0),
        def(BPF_MAP_TYPE_STACK_TRACE, 4, 64, 7, 0),
        def(BPF_MAP_TYPE_RINGBUF, 0, 0, 4096, 0),
        def(BPF_MAP_TYPE_PERF_EVENT_ARRAY, 4, 4, 4, 0),
        def(BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 4, 0),
    ]
}

/// A write of the peer: where (as a fraction of the file) and what.
type Blow = (u32, u64, bool);

fn blows() -> impl Strategy<Value = Vec<Blow>> {
    let value = prop_oneof![
        any::<u64>(),
        (0u64..64), // plausible indices
        (0u64..64, any::<u32>()).prop_map(|(index, high)| index | u64::from(high) << 32), // links
        Just(u64::MAX),
        Just(0),
    ];
    prop::collection::vec((any::<u32>(), value, any::<bool>()), 1..200)
}

fn strike(fd: &OwnedFd, blows: &[Blow], from: u64) {
    let size = rustix::fs::fstat(fd).expect("stat").st_size as u64;
    for &(at, value, near) in blows {
        // Half of the blows hit the first pages, where the control words are.
        let span = if near { (size - from).min(6 * 4096) } else { size - from };
        let at = from + (((u64::from(at) * span) >> 32) & !7);
        rustix::io::pwrite(fd, &value.to_ne_bytes(), at.min(size - 8)).expect("pwrite");
    }
}

/// Everything a map can be asked, with answers ignored.
fn exercise(map: &Map) {
    let def = *map.def();
    let mut value = vec![1; map.value_size_user().max(def.value_size as usize)];
    for i in 0..24u8 {
        let key = vec![i; def.key_size as usize];
        let key = if def.key_size == 4 { u32::from(i).to_ne_bytes().to_vec() } else { key };
        let size = map.value_size_user();
        let _ = map.sys_update(&key, &value[..size], u64::from(i) % 3);
        let _ = map.sys_lookup(&key, &mut value[..size], 0);
        let _ = map.sys_next_key(Some(&key), &mut key.clone());
        // SAFETY: key and value have at least the map's sizes.
        unsafe {
            let found = usual::lookup(map, key.as_ptr(), 1);
            if !found.is_null() {
                found.write_volatile(found.read_volatile());
            }
            usual::update(map, key.as_ptr(), value.as_ptr(), 0, 1);
            if i % 5 == 0 {
                usual::delete(map, key.as_ptr());
            }
        }
        let _ = map.sys_lookup_and_delete(&key, &mut value[..size], 0);
    }
    let mut key = vec![0; def.key_size as usize];
    let _ = map.sys_next_key(None, &mut key);
    // SAFETY: the visitor reads inside what it gets.
    unsafe {
        map.for_each(0, &mut |_, value| {
            value.read_volatile();
            std::ops::ControlFlow::Continue(())
        });
    }
    if let Some(stacks) = map.stack_trace() {
        for i in 0..20 {
            let _ = stacks.stack_insert(&[i, i + 1], i % 3 * BPF_F_FAST_STACK_CMP);
        }
    }
    if let Some(ring) = map.ringbuf() {
        for i in 0..40 {
            // SAFETY: 64 valid bytes; a reservation is written within its size and submitted once.
            unsafe {
                let _ = ring.output([1; 64].as_ptr(), i % 64, i % 3, LockId::new(1, 1));
                let sample = ring.reserve(i * 7, 0, LockId::new(1, 1));
                if !sample.is_null() {
                    sample.write_bytes(1, i as usize * 7);
                    ring.discard(sample, 0);
                }
            }
        }
        ring.query(BPF_RB_AVAIL_DATA);
        ring.has_data();
    }
    map.recover(1);
    map.is_frozen();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_blow_crashes_or_hangs_an_open_map(blows in blows()) {
        for row in rows() {
            let (fd, map) = Map::create(&row, CPUS).expect("create");
            map.set_owner(1);
            exercise(&map);
            strike(&fd, &blows, 0);
            exercise(&map);
            strike(&fd, &blows, 0);
            if let Some(ring) = map.ringbuf() {
                ring.consume(|_| ());
            }
            exercise(&map);
        }
    }

    #[test]
    fn no_forged_header_crashes_open(blows in blows(), row in 0usize..9) {
        let (fd, map) = Map::create(&rows()[row], CPUS).expect("create");
        exercise(&map);
        for &(at, value, _) in &blows {
            rustix::io::pwrite(&fd, &value.to_ne_bytes()[..1 + at as usize % 8], u64::from(at) % 88).expect("pwrite");
            if let Ok(map) = Map::open(fd.as_fd()) {
                exercise(&map);
            }
        }
    }

    #[test]
    fn no_blow_crashes_or_hangs_a_perf_ring(blows in blows()) {
        let (fd, ring) = PerfRing::create(1, 0).expect("ring");
        let sample = Sample { sample_type: u64::MAX, ..Sample::default() };
        for chunk in blows.chunks(10) {
            strike(&fd, chunk, 0);
            for n in 0..20 {
                // SAFETY: the only producer.
                let _ = unsafe { ring.output(&sample, &[&vec![1; n * 37]]) };
            }
            ring.consume(|_, _| ());
            let _ = PerfRing::open(fd.as_fd());
        }
    }
}

/// Chains bent into rings of every length end by the step budget.
#[test]
fn cycles_end() {
    let (fd, map) = Map::create(&def(BPF_MAP_TYPE_HASH, 4, 8, 1000, 0), CPUS).expect("create");
    (0..1000u32).for_each(|i| map.sys_update(&i.to_ne_bytes(), &[1; 8], 0).expect("update"));
    let size = rustix::fs::fstat(&fd).expect("stat").st_size as u64;
    for at in (4096..size).step_by(8) {
        let index = (at / 8 % 1000 + 1).to_ne_bytes();
        rustix::io::pwrite(&fd, &index, at).expect("pwrite");
    }
    exercise(&map);
    map.recover(3);
}
