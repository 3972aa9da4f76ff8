//! Exactness under threads, processes, signals and SIGKILL. No sleeps for luck, no upper bounds on time.

mod common;
use bpftime_shm::ring::LockId;
use bpftime_shm::uapi::*;
use bpftime_shm::{Errno, Map};
use common::{Rng, def, usual};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::thread;

const THREADS: u32 = 4;
const ROUNDS: u32 = 60_000;

fn hash(max_entries: u32) -> (std::os::fd::OwnedFd, Map) {
    Map::create(&def(BPF_MAP_TYPE_HASH, 4, 16, max_entries, 0), THREADS).expect("create")
}

fn update(map: &Map, key: u32, value: [u64; 2], flags: u64, cpu: u32) -> i64 {
    // SAFETY: key and value have the map's sizes.
    unsafe { usual::update(map, (&raw const key).cast(), value.as_ptr().cast(), flags, cpu) }
}

fn delete(map: &Map, key: u32) -> i64 {
    // SAFETY: the key has the map's size.
    unsafe { usual::delete(map, (&raw const key).cast()) }
}

/// max_entries elements fit, one more is E2BIG, and each can be replaced: no node was lost or made.
fn holds_exactly(map: &Map, entries: u32) {
    let mut key = [0; 4];
    while map.sys_next_key(None, &mut key).is_ok() {
        map.sys_delete(&key).expect("delete what next_key found");
    }
    for i in 0..entries {
        assert_eq!(
            update(map, 1_000_000 + i, [0; 2], BPF_NOEXIST, i % THREADS),
            0,
            "element {i} of {entries}"
        );
    }
    assert_eq!(update(map, 5, [0; 2], BPF_ANY, 0), -7, "one too many");
    for i in 0..entries {
        assert_eq!(update(map, 1_000_000 + i, [1; 2], BPF_EXIST, i % THREADS), 0, "replace {i}");
    }
    (0..entries).for_each(|i| assert_eq!(delete(map, 1_000_000 + i), 0));
    assert_eq!(map.sys_next_key(None, &mut key), Err(Errno::NOENT));
}

#[test]
fn each_insert_and_delete_succeeds_exactly_once() {
    const KEYS: usize = 16;
    let (_fd, map) = hash(KEYS as u32);
    let balance: [AtomicI64; KEYS] = Default::default();
    thread::scope(|scope| {
        for cpu in 0..THREADS {
            let (map, balance) = (&map, &balance);
            scope.spawn(move || {
                let mut rng = Rng(0x1234 + u64::from(cpu));
                for _ in 0..ROUNDS {
                    let key = rng.below(KEYS as u64) as u32;
                    match rng.below(3) {
                        0 if update(map, key, [1; 2], BPF_NOEXIST, cpu) == 0 => {
                            balance[key as usize].fetch_add(1, SeqCst);
                        }
                        1 if delete(map, key) == 0 => {
                            balance[key as usize].fetch_sub(1, SeqCst);
                        }
                        2 => {
                            let _ = update(map, key, [2; 2], BPF_EXIST, cpu);
                        }
                        _ => {}
                    }
                }
            });
        }
    });
    for (key, balance) in balance.iter().enumerate() {
        let present = map.sys_lookup(&(key as u32).to_ne_bytes(), &mut [0; 16], 0).is_ok();
        assert_eq!(balance.load(SeqCst), i64::from(present), "key {key}");
    }
    holds_exactly(&map, KEYS as u32);
}

#[test]
fn an_existing_key_never_fails_to_update_and_never_shows_half_a_value() {
    let (_fd, map) = hash(8);
    for key in 0..8 {
        assert_eq!(update(&map, key, [u64::from(key), !0 ^ u64::from(key)], BPF_ANY, 0), 0);
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for cpu in 0..THREADS {
            let (map, stop) = (&map, &stop);
            scope.spawn(move || {
                let mut rng = Rng(99 + u64::from(cpu));
                for _ in 0..ROUNDS {
                    let (key, x) = (rng.below(8) as u32, rng.below(1 << 40) << 8);
                    let x = x | u64::from(key);
                    assert_eq!(update(map, key, [x, !x], BPF_ANY, cpu), 0);
                }
                stop.store(true, SeqCst);
            });
        }
        scope.spawn(|| {
            let mut rng = Rng(7);
            while !stop.load(SeqCst) {
                let key = rng.below(8) as u32;
                let mut value = [0; 16];
                map.sys_lookup(&key.to_ne_bytes(), &mut value, 0).expect("always present");
                let (a, b) = value.split_at(8);
                let a = u64::from_ne_bytes(a.try_into().expect("8"));
                assert_eq!(a, !u64::from_ne_bytes(b.try_into().expect("8")), "half a value");
                assert_eq!(a as u8, key as u8, "another key's value");
            }
        });
    });
    holds_exactly(&map, 8);
}

#[test]
fn what_is_put_in_is_taken_out_once() {
    let (_fd, map) = hash(64);
    let (put, taken, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for cpu in 0..2 {
            let (map, put, done) = (&map, &put, &done);
            scope.spawn(move || {
                let mut rng = Rng(5 + u64::from(cpu));
                for i in 0..ROUNDS {
                    let v = u64::from(i);
                    if update(map, rng.below(200) as u32, [v, 0], BPF_NOEXIST, cpu) == 0 {
                        put.fetch_add(v, SeqCst);
                    }
                }
                done.fetch_add(1, SeqCst);
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let (mut key, mut value) = ([0; 4], [0; 16]);
                loop {
                    let last = done.load(SeqCst) == 2;
                    while map.sys_next_key(None, &mut key).is_ok() {
                        if map.sys_lookup_and_delete(&key, &mut value, 0).is_ok() {
                            taken.fetch_add(u64::from_ne_bytes(value[..8].try_into().expect("8")), SeqCst);
                        }
                    }
                    if last {
                        return;
                    }
                }
            });
        }
    });
    assert_eq!(put.load(SeqCst), taken.load(SeqCst));
    holds_exactly(&map, 64);
}

#[test]
fn percpu_counts_are_exact() {
    let (_fd, map) = Map::create(&def(BPF_MAP_TYPE_PERCPU_HASH, 4, 8, 32, 0), THREADS).expect("create");
    thread::scope(|scope| {
        for cpu in 0..THREADS {
            let map = &map;
            scope.spawn(move || {
                for i in 0..ROUNDS {
                    let key = i % 32;
                    // SAFETY: sizes as declared; this thread owns the slot `cpu`.
                    unsafe {
                        let value = loop {
                            let value = usual::lookup(map, (&raw const key).cast(), cpu).cast::<u64>();
                            if !value.is_null() {
                                break value;
                            }
                            // More than once, if who has the last free node for this key is interrupted before it links it.
                            usual::update(
                                map,
                                (&raw const key).cast(),
                                0u64.to_ne_bytes().as_ptr(),
                                BPF_NOEXIST,
                                cpu,
                            );
                        };
                        *value += 1;
                    }
                }
            });
        }
    });
    let mut total = 0;
    for key in 0..32u32 {
        let mut value = vec![0; map.value_size_user()];
        map.sys_lookup(&key.to_ne_bytes(), &mut value, 0).expect("present");
        total += value.chunks(8).map(|c| u64::from_ne_bytes(c.try_into().expect("8"))).sum::<u64>();
    }
    assert_eq!(total, u64::from(THREADS * ROUNDS));
}

#[test]
fn iteration_ends_while_others_delete_and_insert() {
    let (_fd, map) = hash(256);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng(3);
            while !stop.load(SeqCst) {
                let key = rng.below(256) as u32;
                let _ = if rng.below(2) == 0 { update(&map, key, [0; 2], 0, 1) } else { delete(&map, key) };
            }
        });
        for _ in 0..2000 {
            let (mut key, mut steps) = ([0; 4], 0);
            let mut last: Option<[u8; 4]> = None;
            // A deleted key restarts the iteration, as in the kernel; a tool bounds that itself.
            while steps < 2000 && map.sys_next_key(last.as_ref().map(|k| &k[..]), &mut key).is_ok() {
                last = Some(key);
                steps += 1;
            }
            // SAFETY: the visitor keeps no pointer.
            let calls = unsafe { map.for_each(0, &mut |_, _| std::ops::ControlFlow::Continue(())) };
            assert!((0..=512).contains(&calls));
        }
        stop.store(true, SeqCst);
    });
    holds_exactly(&map, 256);
}

#[test]
fn for_each_visits_every_element_and_may_delete_it() {
    let (_fd, map) = hash(500);
    (0..500).for_each(|key| assert_eq!(update(&map, key, [1; 2], 0, 0), 0));
    let mut sum = 0u64;
    // SAFETY: the visitor keeps no pointer.
    let calls = unsafe {
        map.for_each(0, &mut |key, _| {
            sum += u64::from(key.cast::<u32>().read());
            assert_eq!(map.delete(key), 0);
            std::ops::ControlFlow::Continue(())
        })
    };
    assert_eq!((calls, sum), (500, 499 * 500 / 2));
    holds_exactly(&map, 500);
}

/// Forks; the child runs `work` for ever and is killed after a random while.
fn kill_at_random(rng: &mut Rng, work: impl Fn(u64)) {
    let seed = rng.below(u64::MAX);
    // SAFETY: the child only touches shared memory and never returns into the test harness.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        loop {
            work(seed);
        }
    }
    let spins = rng.below(400_000);
    (0..spins).for_each(|_| std::hint::spin_loop());
    // SAFETY: our own child, by its id.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
}

/// Updates and deletes ten keys until it is killed.
fn churn(map: &Map, mut rng: Rng) -> ! {
    loop {
        let key = rng.below(10) as u32;
        let _ = if rng.below(3) == 0 { delete(map, key) } else { update(map, key, [9; 2], 0, 1) };
    }
}

#[test]
fn kill_9_loses_no_node_of_a_hash() {
    let (fd, map) = hash(6);
    let mut rng = Rng(0xdead_beef);
    let mut repairs = 0;
    for owner in 1..=400u16 {
        let theirs = Map::open(fd.as_fd()).expect("open");
        theirs.set_owner(owner);
        kill_at_random(&mut rng, |seed| churn(&theirs, Rng(seed | 1)));
        repairs += map.recover(owner);
        holds_exactly(&map, 6);
    }
    eprintln!("{repairs} repairs");
}

#[test]
fn kill_9_while_others_go_on() {
    let (fd, map) = hash(32);
    let stop = AtomicBool::new(false);
    let mut rng = Rng(0xfeed);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng(77);
            map.set_owner(9999);
            while !stop.load(SeqCst) {
                let key = 100 + rng.below(10) as u32;
                assert_eq!(update(&map, key, [1; 2], 0, 0), 0);
                assert_eq!(delete(&map, key), 0);
            }
        });
        for owner in 1..=200u16 {
            let theirs = Map::open(fd.as_fd()).expect("open");
            theirs.set_owner(owner);
            kill_at_random(&mut rng, |seed| churn(&theirs, Rng(seed | 1)));
            map.recover(owner);
        }
        stop.store(true, SeqCst);
    });
    holds_exactly(&map, 32);
}

static MAP: std::sync::OnceLock<Map> = std::sync::OnceLock::new();
static IN_HANDLER: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_signal(_: libc::c_int) {
    let Some(map) = MAP.get() else { return };
    let n = IN_HANDLER.fetch_add(1, SeqCst);
    let key = (n % 8) as u32;
    // A nested run owns another slot.
    if n.is_multiple_of(3) {
        let _ = delete(map, key);
    } else {
        assert_eq!(update(map, key, [n, !n], BPF_ANY, 1), 0);
    }
}

#[test]
fn a_signal_handler_may_update_inside_an_update() {
    let (_fd, map) = hash(16);
    let map = MAP.get_or_init(|| map);
    // SAFETY: the handler only touches the map and an atomic.
    unsafe { libc::signal(libc::SIGUSR1, on_signal as *const () as libc::sighandler_t) };
    // SAFETY: the calling thread's own id.
    let me = unsafe { libc::pthread_self() };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                // SAFETY: the main thread outlives the scope.
                unsafe { libc::pthread_kill(me, libc::SIGUSR1) };
            }
        });
        let mut rng = Rng(11);
        for _ in 0..ROUNDS * 4 {
            let key = rng.below(12) as u32;
            match rng.below(4) {
                0 => drop(delete(map, key)),
                _ => assert_eq!(update(map, key, [1, !1], BPF_ANY, 0), 0),
            }
        }
        stop.store(true, SeqCst);
    });
    assert!(IN_HANDLER.load(SeqCst) > 0);
    holds_exactly(map, 16);
}

#[test]
fn stacks_survive_concurrent_reuse() {
    let (_fd, map) = Map::create(&def(BPF_MAP_TYPE_STACK_TRACE, 4, 8 * 32, 16, 0), THREADS).expect("create");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for cpu in 0..THREADS {
            let (map, stop) = (&map, &stop);
            scope.spawn(move || {
                let stacks = map.stack_trace().expect("stacks");
                let mut rng = Rng(u64::from(cpu) + 1);
                for _ in 0..ROUNDS {
                    let (n, base) = (1 + rng.below(32), rng.below(100));
                    let ips: Vec<u64> = (0..n).map(|i| base * 1000 + i).collect();
                    let id = stacks.stack_insert(&ips, BPF_F_REUSE_STACKID);
                    assert!((0..16).contains(&id), "{id}");
                }
                stop.store(true, SeqCst);
            });
        }
        let mut seen = 0;
        while !stop.load(SeqCst) || seen == 0 {
            let mut key = [0; 4];
            let mut value = [0; 8 * 32];
            if map.sys_next_key(None, &mut key).is_ok() && map.sys_lookup(&key, &mut value, 0).is_ok() {
                let ips = value.chunks(8).map(|c| u64::from_ne_bytes(c.try_into().expect("8")));
                let ips: Vec<u64> = ips.collect();
                let n = ips.iter().rposition(|&ip| ip != 0).map_or(1, |at| at + 1);
                assert!((0..n).all(|i| ips[i] == ips[0] + i as u64), "mixed stacks: {ips:?}");
                seen += 1;
                let _ = map.sys_delete(&key);
            }
        }
    });
    (0..16u32).for_each(|id| {
        let _ = map.sys_delete(&id.to_ne_bytes());
    });
    let stacks = map.stack_trace().expect("stacks");
    for base in 0..10_000 {
        assert!(stacks.stack_insert(&[base, 1], BPF_F_REUSE_STACKID) >= 0, "a node was lost");
    }
}

#[test]
fn stack_ids_follow_the_kernels_rules() {
    let (_fd, map) =
        Map::create(&def(BPF_MAP_TYPE_STACK_TRACE, 4, 8 * 4, 1, BPF_F_NUMA_NODE), 1).expect("create");
    let stacks = map.stack_trace().expect("stacks");
    assert_eq!(stacks.stack_insert(&[], 0), -14);
    assert_eq!(stacks.stack_insert(&[1, 2, 3], 0), 0);
    assert_eq!(stacks.stack_insert(&[1, 2, 3], 0), 0, "the same stack has the same id");
    assert_eq!(stacks.stack_insert(&[4, 5], 0), -17, "another stack does not take the slot");
    assert_eq!(stacks.stack_insert(&[4, 5], BPF_F_REUSE_STACKID), 0);
    let mut value = [0xff; 32];
    map.sys_lookup(&[0; 4], &mut value, 0).expect("present");
    assert_eq!(
        value.map(u64::from)[..],
        [[4, 0, 0, 0, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0, 0, 0], [0; 8], [0; 8]].concat()
    );
    assert_eq!(stacks.stack_insert(&[1, 2, 3, 4, 5, 6], BPF_F_REUSE_STACKID), 0, "cut to the depth");
    assert_eq!(stacks.stack_insert(&[1, 2, 3, 4], 0), 0);
}

/// As many elements as the map holds stay, whatever is evicted; and after a death an update still finds a node.
#[test]
fn kill_9_and_threads_leave_an_lru_hash_full_and_willing() {
    const ENTRIES: u32 = 32;
    let (fd, map) = Map::create(&def(BPF_MAP_TYPE_LRU_HASH, 4, 16, ENTRIES, 0), THREADS).expect("create");
    let mut rng = Rng(0xabcd);
    for owner in 1..=100u16 {
        let theirs = Map::open(fd.as_fd()).expect("open");
        theirs.set_owner(owner);
        kill_at_random(&mut rng, |seed| {
            let mut rng = Rng(seed | 1);
            loop {
                update(&theirs, rng.below(100) as u32, [9; 2], 0, 1);
            }
        });
        map.recover(owner);
        (0..ENTRIES * 2).for_each(|key| assert_eq!(update(&map, 1000 + key, [1; 2], BPF_ANY, 0), 0));
        let (mut count, mut key) = (0, [0; 4]);
        let mut last: Option<[u8; 4]> = None;
        while map.sys_next_key(last.as_ref().map(|k| k.as_slice()), &mut key).is_ok() {
            (count, last) = (count + 1, Some(key));
        }
        assert_eq!(count, ENTRIES, "after death {owner}");
    }
    thread::scope(|scope| {
        for cpu in 0..THREADS {
            let map = &map;
            scope.spawn(move || {
                let mut rng = Rng(u64::from(cpu) + 1);
                for _ in 0..ROUNDS / 4 {
                    assert_eq!(update(map, rng.below(1000) as u32, [2; 2], BPF_ANY, cpu), 0);
                }
            });
        }
    });
}

#[test]
fn kill_9_inside_a_queue_loses_at_most_what_was_under_way() {
    let (fd, map) = Map::create(&def(BPF_MAP_TYPE_QUEUE, 0, 16, 8, 0), 1).expect("create");
    let mut rng = Rng(0x77);
    for owner in 1..=200u16 {
        let theirs = Map::open(fd.as_fd()).expect("open");
        theirs.set_owner(owner);
        kill_at_random(&mut rng, |_| {
            let mut value = [7u64, !7];
            loop {
                let _ =
                    theirs.sys_update(&[], &[7u64.to_ne_bytes(), (!7u64).to_ne_bytes()].concat(), BPF_EXIST);
                // SAFETY: sixteen bytes.
                unsafe { theirs.peek(value.as_mut_ptr().cast(), LockId::new(owner.into(), 1)) };
            }
        });
        map.recover(owner);
        let mut value = [0; 16];
        let mut left = 0;
        while map.sys_lookup_and_delete(&[], &mut value, 0).is_ok() {
            assert_eq!(value, *[7u64.to_ne_bytes(), (!7u64).to_ne_bytes()].concat(), "half an element");
            left += 1;
        }
        assert!(left <= 8);
        assert_eq!(map.sys_update(&[], &value, 0), Ok(()), "the lock is free");
        map.sys_lookup_and_delete(&[], &mut value, 0).expect("pop");
    }
}
