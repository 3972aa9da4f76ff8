//! Nanoseconds per operation, best of several runs. `cargo run --release -p bpftime-shm --example bench`

use bpftime_shm::ring::{LockId, Sample};
use bpftime_shm::uapi::*;
use bpftime_shm::{Map, MapDef, PerfRing};
use std::hint::black_box;
use std::time::Instant;

const OPS: u32 = 1_000_000;
const KEYS: u32 = 8192;

fn report(what: &str, mut op: impl FnMut(u32)) {
    let best = (0..9)
        .map(|_| {
            let start = Instant::now();
            (0..OPS).for_each(&mut op);
            start.elapsed().as_nanos() as f64 / f64::from(OPS)
        })
        .fold(f64::MAX, f64::min);
    println!("{what:<44} {best:7.2} ns");
}

fn map(map_type: u32, key_size: u32, value_size: u32, max_entries: u32) -> Map {
    let def = MapDef { map_type, key_size, value_size, max_entries, ..MapDef::default() };
    Map::create(&def, 2).expect("create").1
}

fn tables() {
    for (name, kind) in [("array", BPF_MAP_TYPE_ARRAY), ("percpu array", BPF_MAP_TYPE_PERCPU_ARRAY)] {
        let map = map(kind, 4, 8, KEYS);
        // SAFETY: sizes as declared.
        report(&format!("{name} lookup"), |i| unsafe {
            black_box(map.lookup((&raw const *black_box(&(i % KEYS))).cast(), 1));
        });
        // SAFETY: sizes as declared.
        report(&format!("{name} update"), |i| unsafe {
            black_box(map.update((&raw const *black_box(&(i % KEYS))).cast(), [0; 8].as_ptr(), 0, 1));
        });
    }
}

fn hashes(name: &str, kind: u32, key_size: u32, keys: u32) {
    let map = map(kind, key_size, 8, keys);
    let key = |i: u32| {
        let mut key = [0u8; 64];
        key[..4].copy_from_slice(&(i % keys).to_ne_bytes());
        key
    };
    (0..keys).for_each(|i| {
        map.sys_update(&key(i)[..key_size as usize], &vec![0; map.value_size_user()], 0).expect("fill")
    });
    let name = format!("{name} {key_size} B key, {keys} keys");
    // SAFETY: sizes as declared.
    report(&format!("{name}: lookup"), |i| unsafe {
        black_box(map.lookup(black_box(&key(i)).as_ptr(), 1));
    });
    // SAFETY: sizes as declared.
    report(&format!("{name}: update existing"), |i| unsafe {
        assert_eq!(map.update(black_box(&key(i)).as_ptr(), [1; 8].as_ptr(), 0, 1), 0);
    });
    // SAFETY: sizes as declared.
    report(&format!("{name}: delete + insert"), |i| unsafe {
        assert_eq!(map.delete(black_box(&key(i)).as_ptr()), 0);
        assert_eq!(map.update(black_box(&key(i)).as_ptr(), [1; 8].as_ptr(), 0, 1), 0);
    });
}

fn rings() {
    let map = map(BPF_MAP_TYPE_RINGBUF, 0, 0, 1 << 20);
    let (ring, me) = (map.ringbuf().expect("ring"), LockId::new(1, 1));
    let mut since = 0;
    let mut drain = |each: u32| {
        since += 1;
        if since % each == 0 {
            ring.consume(|_| ());
        }
    };
    // SAFETY: each sample is submitted once.
    report("ringbuf reserve + submit 64 B (with drain)", |_| unsafe {
        let sample = ring.reserve(64, 0, me);
        sample.cast::<u64>().write(1);
        black_box(ring.submit(sample, 0));
        drain(8192);
    });
    // SAFETY: 64 valid bytes.
    report("ringbuf output 64 B (with drain)", |_| unsafe {
        let _ = black_box(ring.output([1; 64].as_ptr(), 64, 0, me));
        drain(8192);
    });
    let (_fd, perf) = PerfRing::create(256, 0).expect("perf");
    let sample = Sample { sample_type: PERF_SAMPLE_RAW, ..Sample::default() };
    let mut since = 0;
    // SAFETY: the only producer.
    report("perf output 64 B (with drain)", |_| unsafe {
        let _ = black_box(perf.output(&sample, &[&[1; 64]]));
        since += 1;
        if since % 8192 == 0 {
            perf.consume(|_, _| ());
        }
    });
    let stacks = self::map(BPF_MAP_TYPE_STACK_TRACE, 4, 8 * 127, 1024);
    let stacks = stacks.stack_trace().expect("stacks");
    let ips: Vec<u64> = (0..20).collect();
    report("stack_insert of a known stack of 20", |_| {
        black_box(stacks.stack_insert(black_box(&ips), 0));
    });
}

fn main() {
    report("an empty loop", |i| {
        black_box(&(i % KEYS));
    });
    tables();
    for (key_size, keys) in [(4, KEYS), (8, KEYS), (16, KEYS), (8, 1 << 20)] {
        hashes("hash", BPF_MAP_TYPE_HASH, key_size, keys);
    }
    hashes("percpu hash", BPF_MAP_TYPE_PERCPU_HASH, 4, KEYS);
    rings();
}
