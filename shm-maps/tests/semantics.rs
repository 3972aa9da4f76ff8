//! Element commands: one script per row, the same transcript from our map and the kernel's.

mod common;
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
fn access_flags_restrict_the_tool_not_the_program() {
    let rows = [BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_PERCPU_HASH];
    for map_type in rows {
        for flags in [BPF_F_RDONLY, BPF_F_WRONLY, BPF_F_RDONLY_PROG, BPF_F_WRONLY_PROG] {
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
