//! Element commands: one script per row, the same transcript from our map and the kernel's.

mod common;
use bpftime_shm::MapDef;
use bpftime_shm::map::InnerDef;
use bpftime_shm::uapi::*;
use common::{Rng, Subject, def, same_on_all};

const FLAGS: [u64; 9] = [0, 1, 2, 3, 4, 5, 8, 16, 1 << 32];

fn say<T: std::fmt::Debug>(out: &mut Vec<String>, what: String, answer: T) {
    out.push(format!("{what} -> {answer:?}"));
}

/// Every flag, present and absent keys, deletion, iteration, freezing.
fn everything(s: &Subject, keys: &[&[u8]]) -> Vec<String> {
    let mut out = Vec::new();
    let o = &mut out;
    for (round, flags) in FLAGS.into_iter().enumerate() {
        for key in keys {
            say(
                o,
                format!("update {key:?} {flags:#x}"),
                s.update(key, &[round as u8 + 1; 64][..s.value_len().min(64)], flags),
            );
            say(o, format!("lookup {key:?} {flags:#x}"), s.lookup_flags(key, flags));
        }
    }
    say(o, "keys".into(), s.keys());
    for key in keys {
        for flags in [1, 4, 0] {
            say(o, format!("lookup_and_delete {key:?} {flags}"), s.lookup_and_delete(key, flags));
        }
        say(o, format!("update {key:?}"), s.update(key, &[9], 0));
    }
    for key in keys {
        say(o, format!("delete {key:?}"), s.delete(key));
        say(o, format!("delete again {key:?}"), s.delete(key));
        say(o, format!("lookup {key:?}"), s.lookup(key));
    }
    say(o, "keys".into(), s.keys());
    say(o, "first of none".into(), s.next_key(None).map(|_| ()));
    for key in &keys[..1] {
        say(o, "update".into(), s.update(key, &[3], 0));
        say(o, "freeze".into(), s.freeze());
        say(o, "freeze again".into(), s.freeze());
        say(o, "frozen update".into(), s.update(key, &[4], 0));
        say(o, "frozen delete".into(), s.delete(key));
        say(o, "frozen lookup_and_delete".into(), s.lookup_and_delete(key, 0));
        say(o, "frozen lookup".into(), s.lookup(key));
        say(o, "frozen next".into(), s.next_key(None));
    }
    out
}

const INDEX: [&[u8]; 4] = [&[0, 0, 0, 0], &[1, 0, 0, 0], &[9, 0, 0, 0], &[255, 255, 255, 255]];

#[test]
fn hash_answers_as_the_kernels() {
    for (key_size, value_size) in [(4, 8), (4, 3), (4, 1), (4, 64)] {
        same_on_all(&def(BPF_MAP_TYPE_HASH, key_size, value_size, 3, 0), |s| everything(s, &INDEX));
    }
    same_on_all(&def(BPF_MAP_TYPE_HASH, 8, 8, 2, BPF_F_NO_PREALLOC), |s| {
        everything(s, &[&[1; 8], &[2; 8], &[3; 8]])
    });
    same_on_all(&def(BPF_MAP_TYPE_HASH, 13, 8, 2, 0), |s| everything(s, &[&[1; 13], &[2; 13], &[3; 13]]));
    same_on_all(&def(BPF_MAP_TYPE_HASH, 1000, 1000, 2, 0), |s| {
        everything(s, &[&[1; 1000], &[2; 1000], &[3; 1000]])
    });
}

#[test]
fn array_answers_as_the_kernels() {
    for value_size in [1, 4, 8, 13, 600] {
        same_on_all(&def(BPF_MAP_TYPE_ARRAY, 4, value_size, 3, 0), |s| everything(s, &INDEX));
    }
}

#[test]
fn percpu_hash_answers_as_the_kernels() {
    for value_size in [8, 3, 64] {
        same_on_all(&def(BPF_MAP_TYPE_PERCPU_HASH, 4, value_size, 3, 0), |s| everything(s, &INDEX));
    }
}

#[test]
fn percpu_array_answers_as_the_kernels() {
    for value_size in [8, 16, 64] {
        same_on_all(&def(BPF_MAP_TYPE_PERCPU_ARRAY, 4, value_size, 3, 0), |s| everything(s, &INDEX));
    }
}

#[test]
fn fd_arrays_answer_as_the_kernels() {
    for map_type in [BPF_MAP_TYPE_PROG_ARRAY, BPF_MAP_TYPE_PERF_EVENT_ARRAY, BPF_MAP_TYPE_CGROUP_ARRAY] {
        same_on_all(&def(map_type, 4, 4, 3, 0), |s| {
            // A descriptor that is none: 0x7f7f7f7f. What the checks before it say is ours to match.
            let update = |key: &[u8], flags| s.update(key, &[0x7f; 4], flags);
            let mut out = Vec::new();
            for key in INDEX {
                FLAGS.iter().for_each(|&f| say(&mut out, format!("update {key:?} {f:#x}"), update(key, f)));
                say(&mut out, format!("lookup {key:?}"), s.lookup(key));
                say(&mut out, format!("delete {key:?}"), s.delete(key));
                say(&mut out, format!("lookup_and_delete {key:?}"), s.lookup_and_delete(key, 0));
                say(&mut out, format!("next {key:?}"), s.next_key(Some(key)));
            }
            say(&mut out, "freeze".into(), s.freeze());
            say(&mut out, "update frozen".into(), update(INDEX[0], 0));
            out
        });
    }
}

#[test]
fn stack_trace_and_ringbuf_commands_answer_as_the_kernels() {
    same_on_all(&def(BPF_MAP_TYPE_STACK_TRACE, 4, 64, 3, 0), |s| everything(s, &INDEX));
    same_on_all(&def(BPF_MAP_TYPE_RINGBUF, 0, 0, 4096, 0), |s| {
        let mut out = Vec::new();
        for flags in FLAGS {
            say(&mut out, format!("update {flags}"), s.update(&[], &[], flags));
            say(&mut out, format!("lookup {flags}"), s.lookup_flags(&[], flags));
        }
        say(&mut out, "delete".into(), s.delete(&[]));
        say(&mut out, "next".into(), s.next_key(None));
        say(&mut out, "lookup_and_delete".into(), s.lookup_and_delete(&[], 0));
        out
    });
}

#[test]
fn access_flags_of_programs_do_not_restrict_the_tool() {
    let rows = [BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_PERCPU_HASH];
    for map_type in rows {
        for flags in [BPF_F_RDONLY_PROG, BPF_F_WRONLY_PROG] {
            same_on_all(&def(map_type, 4, 8, 2, flags), |s| everything(s, &INDEX));
        }
    }
}

#[test]
fn a_full_hash_takes_replacements_and_nothing_new() {
    let transcript = same_on_all(&def(BPF_MAP_TYPE_HASH, 4, 8, 100, 0), |s| {
        let mut out = Vec::new();
        for round in 0..3u8 {
            for i in 0..110u32 {
                say(&mut out, format!("{i}"), s.update(&i.to_ne_bytes(), &[round], BPF_ANY));
            }
        }
        for i in 0..10u32 {
            say(&mut out, format!("delete {i}"), s.delete(&i.to_ne_bytes()));
        }
        for i in 200..211u32 {
            say(&mut out, format!("{i}"), s.update(&i.to_ne_bytes(), &[7], BPF_NOEXIST));
        }
        say(&mut out, "keys".into(), s.keys());
        out
    });
    assert_eq!(transcript.iter().filter(|line| line.ends_with("Err(7)")).count(), 31);
}

#[test]
fn next_key_of_an_unknown_key_is_the_first() {
    for map_type in [BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_HASH] {
        same_on_all(&def(map_type, 4, 8, 8, 0), |s| {
            (0..8u32).for_each(|i| s.update(&i.to_ne_bytes(), &[1], 0).expect("update"));
            let first = s.next_key(None).expect("first");
            assert_eq!(s.next_key(Some(&77u32.to_ne_bytes())), Ok(first));
            vec![format!("{:?}", s.keys())]
        });
    }
}

/// The same thousands of random operations on both, and the same answers.
#[test]
fn random_operations_answer_as_the_kernels() {
    let rows = [
        def(BPF_MAP_TYPE_HASH, 4, 8, 20, 0),
        def(BPF_MAP_TYPE_HASH, 4, 12, 64, BPF_F_NO_PREALLOC),
        def(BPF_MAP_TYPE_ARRAY, 4, 8, 20, 0),
        def(BPF_MAP_TYPE_PERCPU_HASH, 4, 8, 20, 0),
        def(BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 20, 0),
    ];
    for row in rows {
        same_on_all(&row, |s| {
            let mut rng = Rng(42);
            let mut out = Vec::new();
            for step in 0..5000u32 {
                let key = (rng.below(30) as u32).to_ne_bytes();
                let value = rng.below(u64::MAX).to_ne_bytes();
                match rng.below(7) {
                    0..=2 => {
                        say(&mut out, format!("{step} update {key:?}"), s.update(&key, &value, rng.below(4)))
                    }
                    3 => say(&mut out, format!("{step} delete {key:?}"), s.delete(&key)),
                    4 => say(&mut out, format!("{step} take {key:?}"), s.lookup_and_delete(&key, 0)),
                    5 => say(&mut out, format!("{step} keys"), s.keys()),
                    _ => say(&mut out, format!("{step} lookup {key:?}"), s.lookup(&key)),
                }
            }
            out
        });
    }
}

#[test]
fn lru_hashes_answer_as_the_kernels_while_there_is_room() {
    // The kernel's free lists are per CPU: only far from full is it certain to evict nothing.
    for value_size in [8, 3, 64] {
        for map_type in [BPF_MAP_TYPE_LRU_HASH, BPF_MAP_TYPE_LRU_PERCPU_HASH] {
            for flags in [0, BPF_F_NO_COMMON_LRU] {
                same_on_all(&def(map_type, 4, value_size, 1000, flags), |s| everything(s, &INDEX));
            }
        }
    }
}

#[test]
fn a_full_lru_hash_evicts_and_never_refuses() {
    for map_type in [BPF_MAP_TYPE_LRU_HASH, BPF_MAP_TYPE_LRU_PERCPU_HASH] {
        same_on_all(&def(map_type, 4, 8, 64, 0), |s| {
            for i in 0..1000u32 {
                s.update(&i.to_ne_bytes(), &[1], BPF_ANY).expect("update");
                s.lookup(&i.to_ne_bytes()).expect("the newest is there");
            }
            let keys = s.keys();
            assert!((1..=64).contains(&keys.len()), "{} keys", keys.len());
            Vec::new()
        });
    }
}

fn prefix(len: u32, data: &[u8]) -> Vec<u8> {
    [&len.to_ne_bytes(), data].concat()
}

#[test]
fn lpm_trie_answers_as_the_kernels() {
    let keys: Vec<Vec<u8>> = [
        (0, [0; 4]),
        (32, [10, 1, 2, 3]),
        (24, [10, 1, 2, 77]),
        (16, [10, 1, 0, 0]),
        (16, [10, 1, 9, 9]),
        (33, [1; 4]),
        (31, [10, 1, 2, 3]),
    ]
    .iter()
    .map(|(len, data)| prefix(*len, data))
    .collect();
    let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    for value_size in [8, 3, 64] {
        same_on_all(&def(BPF_MAP_TYPE_LPM_TRIE, 8, value_size, 4, BPF_F_NO_PREALLOC), |s| {
            everything(s, &keys)
        });
    }
}

/// Thousands of random prefixes, matched, iterated in the kernel's order and deleted.
#[test]
fn the_longest_prefix_matches_and_iteration_has_the_kernels_order() {
    for data in [1, 4, 5, 16] {
        same_on_all(&def(BPF_MAP_TYPE_LPM_TRIE, 4 + data, 8, 300, BPF_F_NO_PREALLOC), |s| {
            let mut rng = Rng(7);
            let mut out = Vec::new();
            let key = |rng: &mut Rng, bits: u64| {
                // Few different bytes, so that prefixes nest.
                let data: Vec<u8> = (0..data).map(|_| [0, 1, 128, 255][rng.below(4) as usize]).collect();
                prefix(rng.below(bits + 2) as u32, &data)
            };
            let bits = u64::from(data) * 8;
            for step in 0..3000u32 {
                let k = key(&mut rng, bits);
                match rng.below(8) {
                    0..=3 => say(
                        &mut out,
                        format!("{step} update {k:?}"),
                        s.update(&k, &step.to_ne_bytes(), rng.below(3)),
                    ),
                    4 => say(&mut out, format!("{step} delete {k:?}"), s.delete(&k)),
                    5 => say(&mut out, format!("{step} next {k:?}"), s.next_key(Some(&k))),
                    _ => say(&mut out, format!("{step} lookup {k:?}"), s.lookup(&k)),
                }
            }
            let mut last = None;
            while let Ok(k) = s.next_key(last.as_deref()) {
                out.push(format!("in order {k:?}"));
                last = Some(k);
            }
            out
        });
    }
}

#[test]
fn queue_stack_and_bloom_filter_answer_as_the_kernels() {
    for map_type in [BPF_MAP_TYPE_QUEUE, BPF_MAP_TYPE_STACK] {
        for value_size in [4, 3, 64] {
            same_on_all(&def(map_type, 0, value_size, 5, 0), |s| {
                let mut out = Vec::new();
                let mut rng = Rng(3);
                for step in 0..250u8 {
                    match rng.below(9) {
                        0..=3 => say(
                            &mut out,
                            format!("{step} push"),
                            s.update(&[], &[step; 64][..value_size as usize], rng.below(4)),
                        ),
                        4 => say(&mut out, format!("{step} peek"), s.lookup_flags(&[], rng.below(2) * 4)),
                        5 => say(&mut out, format!("{step} delete"), s.delete(&[])),
                        6 => say(&mut out, format!("{step} next"), s.next_key(None)),
                        _ => say(
                            &mut out,
                            format!("{step} pop"),
                            s.lookup_and_delete(&[], rng.below(9) / 8 * 4),
                        ),
                    }
                }
                say(&mut out, "freeze".into(), s.freeze());
                say(&mut out, "push".into(), s.update(&[], &[1], 0));
                out
            });
        }
    }
    same_on_all(&MapDef { map_extra: 9, ..def(BPF_MAP_TYPE_BLOOM_FILTER, 0, 8, 100, 0) }, |s| {
        let mut out = Vec::new();
        for flags in FLAGS {
            say(&mut out, format!("push {flags}"), s.update(&[], &[1; 8], flags));
        }
        (0..50).for_each(|i| s.update(&[], &[i; 8], 0).expect("push"));
        (0..50).for_each(|i| say(&mut out, format!("peek {i}"), s.contains(&[i; 8])));
        let wrong = (100..=255).filter(|i| s.contains(&[*i; 8]).is_ok()).count();
        assert!(wrong < 40, "{wrong} of 156 values that were not put in");
        say(&mut out, "delete".into(), s.delete(&[]));
        say(&mut out, "next".into(), s.next_key(None));
        say(&mut out, "pop".into(), s.lookup_and_delete(&[], 0));
        say(&mut out, "freeze".into(), s.freeze());
        out
    });
}

#[test]
fn maps_of_maps_answer_as_the_kernels_before_they_look_at_the_descriptor() {
    let inner = InnerDef::of(&def(BPF_MAP_TYPE_ARRAY, 4, 8, 2, 0));
    for map_type in [BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_HASH_OF_MAPS] {
        same_on_all(&MapDef { inner, ..def(map_type, 4, 4, 3, 0) }, |s| {
            let mut out = Vec::new();
            for key in INDEX {
                if map_type == BPF_MAP_TYPE_ARRAY_OF_MAPS {
                    let update = |f| s.update(key, &[0x7f; 4], f);
                    FLAGS.iter().for_each(|&f| say(&mut out, format!("update {key:?} {f:#x}"), update(f)));
                }
                say(&mut out, format!("lookup {key:?}"), s.lookup(key));
                say(&mut out, format!("delete {key:?}"), s.delete(key));
                say(&mut out, format!("lookup_and_delete {key:?}"), s.lookup_and_delete(key, 0));
                say(&mut out, format!("next {key:?}"), s.next_key(Some(key)));
            }
            say(&mut out, "freeze".into(), s.freeze());
            out
        });
    }
}
