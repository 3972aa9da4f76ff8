//! Operations on hash maps, inlined: whatever the memory of the map holds, they give what the map's functions give, and
//! call them only for what is not the first of its chain.

use super::engines::trusted;
use bpftime_vm::asm::assemble;
use bpftime_vm::contract::HashTable;
use bpftime_vm::exec::Code;
use bpftime_vm::{
    BpfFn, CpuFeatures, HashLayout, LoadEnv, MapIdx, MapLayout, Options, Resolve, RunHeader, compile, decode,
};
use std::cell::Cell;

const HEADS: usize = 8;
const NODES: u32 = 12;
const CPUS: u32 = 3;
const SALT: u64 = 0x1234_5678_9abc_def1;

/// A map in private memory: handle, chains, nodes of `(next, state, key, value)`; per-CPU values behind all nodes.
#[repr(C)]
struct Table {
    head: HashTable,
    key_size: u32,
    value_size: u32,
    heads: [u64; HEADS],
    nodes: Vec<u8>,
}

thread_local! {
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

fn hash(key: u64) -> usize {
    let product = u128::from(key ^ SALT) * u128::from(HashTable::MULTIPLIER);
    ((product as u64 ^ (product >> 64) as u64) & (HEADS as u64 - 1)) as usize
}

impl Table {
    fn new(layout: HashLayout) -> Box<Table> {
        let values = if layout.percpu { CPUS } else { 1 };
        let value_len = layout.value_size.next_multiple_of(8);
        let (stride, value_stride, cpu_stride) = match layout.percpu {
            true => (24, value_len, NODES * value_len + 40),
            false => (24 + value_len, 24 + value_len, 0),
        };
        let head = HashTable {
            heads: 0,
            mask: HEADS as u64 - 1,
            salt: SALT,
            nodes: 0,
            stride: stride.into(),
            node_values: 0,
            value_stride: value_stride.into(),
            cpu_stride: cpu_stride.into(),
            capacity: NODES,
            values,
            lookup,
            update,
            delete,
        };
        let (key_size, value_size) = (layout.key_size, layout.value_size);
        let nodes = vec![0; (NODES * stride + values * cpu_stride) as usize];
        let mut table = Box::new(Table { head, key_size, value_size, heads: [0; HEADS], nodes });
        table.head.heads = table.heads.as_ptr().expose_provenance() as u64;
        let first = table.nodes.as_ptr().expose_provenance() as u64;
        table.head.nodes = first.wrapping_sub(stride.into());
        let values_at = if layout.percpu { NODES * stride } else { 24 };
        table.head.node_values = first + u64::from(values_at) - u64::from(value_stride);
        table
    }

    fn node(&mut self, number: u32) -> &mut [u8] {
        let stride = self.head.stride as usize;
        &mut self.nodes[(number as usize - 1) * stride..][..stride]
    }

    fn word(&mut self, number: u32, at: usize) -> u64 {
        u64::from_ne_bytes(self.node(number)[at..at + 8].try_into().unwrap())
    }

    /// Puts an element at the front of its chain.
    fn push(&mut self, number: u32, key: u64, mark: u64) {
        let (bucket, len) = (hash(key), self.key_size as usize);
        let next = self.heads[bucket] | mark;
        let node = self.node(number);
        node[..8].copy_from_slice(&next.to_ne_bytes());
        node[16..16 + len].copy_from_slice(&key.to_ne_bytes()[..len]);
        for cpu in 0..self.head.values {
            let value = self.value(number, cpu).expect("a CPU with values");
            for (at, byte) in value.iter_mut().enumerate() {
                *byte = (number as usize * 31 + cpu as usize * 77 + at) as u8;
            }
        }
        self.heads[bucket] = 7 << 33 | u64::from(number);
    }

    /// The element's node, by the whole chain.
    fn find(&mut self, key: u64) -> Option<u32> {
        let mut number = self.heads[hash(key)] as u32;
        for _ in 0..=NODES {
            if number == 0 || number > NODES {
                return None;
            }
            let (next, found) = (self.word(number, 0), self.word(number, 16));
            let found = if self.key_size == 4 { found as u32 as u64 } else { found };
            if found == key && next & HashTable::DELETED == 0 {
                return Some(number);
            }
            number = next as u32;
        }
        None
    }

    fn value(&mut self, number: u32, cpu: u32) -> Option<&mut [u8]> {
        let cpu = if self.head.values == 1 { 0 } else { cpu };
        let (head, len) = (&self.head, self.value_size as usize);
        let of_node = head.node_values + u64::from(number) * head.value_stride;
        let at = (of_node + u64::from(cpu) * head.cpu_stride - (head.nodes + head.stride)) as usize;
        (cpu < head.values).then(|| &mut self.nodes[at..at + len])
    }
}

/// # Safety
/// `map` is the handle of a Table, `key` a key of it.
unsafe fn at(map: u64, key: u64) -> (&'static mut Table, u64) {
    CALLS.set(CALLS.get() + 1);
    // SAFETY: the caller's promise; the tables of these tests outlive the calls, and nobody else uses them meanwhile.
    unsafe {
        let table = &mut *std::ptr::with_exposed_provenance_mut::<Table>(map as usize);
        let key = std::ptr::with_exposed_provenance::<u64>(key as usize);
        let key = if table.key_size == 4 {
            key.cast::<u32>().read_unaligned().into()
        } else {
            key.read_unaligned()
        };
        (table, key)
    }
}

unsafe extern "C" fn lookup(map: u64, key: u64, _: u64, _: u64, _: u64, run: *mut RunHeader) -> u64 {
    // SAFETY: called by the program with its map, key and run.
    let ((table, key), cpu) = unsafe { (at(map, key), (*run).cpu) };
    let number = table.find(key);
    number.and_then(|n| table.value(n, cpu)).map_or(0, |value| value.as_ptr().expose_provenance() as u64)
}

unsafe extern "C" fn update(map: u64, key: u64, value: u64, flags: u64, _: u64, run: *mut RunHeader) -> u64 {
    // SAFETY: as above.
    let ((table, key), cpu) = unsafe { (at(map, key), (*run).cpu) };
    let from = std::ptr::with_exposed_provenance::<u8>(value as usize);
    // SAFETY: the program passes a value of the map's size.
    let from = unsafe { std::slice::from_raw_parts(from, table.value_size as usize) };
    match table.find(key).and_then(|number| table.value(number, cpu)) {
        Some(_) if flags == 1 => -17i64 as u64,
        Some(value) => {
            value.copy_from_slice(from);
            0
        }
        None => -2i64 as u64,
    }
}

unsafe extern "C" fn delete(map: u64, key: u64, _: u64, _: u64, _: u64, _: *mut RunHeader) -> u64 {
    // SAFETY: as above.
    let (table, key) = unsafe { at(map, key) };
    table.find(key).map_or(-2i64 as u64, |_| 0)
}

/// One map and the helpers for it.
struct Env;

impl LoadEnv for Env {
    fn map_by_fd(&mut self, fd: i32) -> Option<MapIdx> {
        (fd == 3).then_some(MapIdx(0))
    }
    fn helper_exists(&self, id: u32) -> bool {
        (1..=3).contains(&id)
    }
}

struct Linked(u64);

impl Resolve for Linked {
    fn map(&self, _: MapIdx) -> Option<u64> {
        Some(self.0)
    }
    fn map_value(&self, _: MapIdx) -> Option<u64> {
        None
    }
    fn helper(&self, id: u32) -> Option<u64> {
        let functions: [BpfFn; 3] = [lookup, update, delete];
        functions.get(id as usize - 1).map(|f| *f as usize as u64)
    }
}

/// Result, the map's memory afterwards, and how often a function of it was called.
fn run(
    source: &str,
    inlined: bool,
    layout: HashLayout,
    table: &mut Table,
    key: u64,
    cpu: u32,
) -> (u64, Vec<u8>, u32) {
    let program = trusted(decode(&assemble(source).unwrap(), &mut Env).unwrap());
    let maps = [Some(MapLayout::Hash(layout))];
    let options = Options { cpu: CpuFeatures::BASELINE, kernel_helpers: inlined, maps: &maps };
    let image = compile(&program, &options).unwrap();
    assert!(image.borrow().needs().calls, "{source}");
    let handle = std::ptr::from_mut(table).expose_provenance() as u64;
    let code = Code::link(image.borrow(), &Linked(handle)).unwrap();
    CALLS.set(0);
    let mut header = RunHeader { cpu, ..RunHeader::with_fuel(1000) };
    // SAFETY: the program stays in its stack and what the table gives it.
    let r0 = unsafe { code.entry()(key, 0, 0, 0, 0, &mut header) };
    let base = table.nodes.as_ptr().addr() as u64;
    let r0 = r0.wrapping_sub(if (base..base + table.nodes.len() as u64).contains(&r0) { base } else { 0 });
    (r0, table.nodes.clone(), CALLS.get())
}

const LAYOUTS: [HashLayout; 7] = {
    const fn of(key_size: u32, value_size: u32, percpu: bool) -> HashLayout {
        HashLayout { key_size, value_size, percpu }
    }
    [
        of(4, 8, false),
        of(8, 8, false),
        of(4, 8, true),
        of(8, 8, true),
        of(8, 20, true),
        of(8, 64, true),
        of(8, 72, true),
    ]
};

/// Keys whose chain is that of `key`.
fn siblings(key: u64) -> impl Iterator<Item = u64> {
    (1..1u64 << 20).filter(move |other| *other != key && hash(*other) == hash(key))
}

fn programs(layout: HashLayout) -> Vec<String> {
    let store = if layout.key_size == 4 { "stxw [r10-8], r1" } else { "stxdw [r10-8], r1" };
    let value: String = (0..layout.value_size.div_ceil(4))
        .map(|n| format!("stw [r10-{}], {}; ", 100 - 4 * n, 0x0101_0101 * (n + 1)))
        .collect();
    let key = format!("{store}; lddw r1, map 3; mov r2, r10; add r2, -8");
    let update = |flags: &str| format!("{value}{key}; mov r3, r10; add r3, -100; {flags}; call 2; exit");
    vec![
        format!("{key}; call 1; exit"),
        format!("{key}; call 3; exit"),
        format!("{key}; call 1; jeq r0, 0, no; ldxw r0, [r0+4]; no: exit"),
        update("mov r4, 0"),
        update("mov r4, 1"),
        update("mov r4, r10; sub r4, r4"),
    ]
}

/// A table with `key` at some place of its chain, or not, and what the place is.
fn tables(layout: HashLayout, key: u64) -> Vec<(&'static str, Box<Table>)> {
    let other = siblings(key).next().unwrap();
    let table = |build: fn(&mut Table, u64, u64)| {
        let mut table = Table::new(layout);
        build(&mut table, key, other);
        table
    };
    vec![
        ("empty", table(|_, _, _| ())),
        ("first", table(|t, key, _| t.push(3, key, 0))),
        ("last node", table(|t, key, _| t.push(NODES, key, 0))),
        (
            "second",
            table(|t, key, other| {
                t.push(3, key, 0);
                t.push(5, other, 0);
            }),
        ),
        (
            "first of two",
            table(|t, key, other| {
                t.push(3, other, 0);
                t.push(5, key, 0);
            }),
        ),
        ("deleted", table(|t, key, _| t.push(3, key, HashTable::DELETED))),
        (
            "deleted, then itself",
            table(|t, key, _| {
                t.push(3, key, 0);
                t.push(4, key, HashTable::DELETED);
            }),
        ),
        ("other", table(|t, _, other| t.push(3, other, 0))),
        ("forged", table(|t, key, _| t.heads[hash(key)] = u64::from(NODES) + 1)),
        ("forged far", table(|t, key, _| t.heads[hash(key)] = u64::from(u32::MAX))),
    ]
}

#[test]
fn an_inlined_operation_gives_what_the_function_of_the_map_gives() {
    for layout in LAYOUTS {
        for key in [0, 1, 0xffff_fffe, 77] {
            for source in programs(layout) {
                for cpu in 0..CPUS + 1 {
                    let pairs = tables(layout, key).into_iter().zip(tables(layout, key));
                    for ((what, mut a), (_, mut b)) in pairs {
                        let inlined = run(&source, true, layout, &mut a, key, cpu);
                        let called = run(&source, false, layout, &mut b, key, cpu);
                        let case = format!("{layout:?}, {what}, key {key:#x}, cpu {cpu}: {source}");
                        assert_eq!((inlined.0, inlined.1), (called.0, called.1), "{case}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_first_element_of_a_chain_is_found_without_a_call() {
    for layout in LAYOUTS {
        let programs = programs(layout);
        let free = |source: &str, what: &str| {
            let (_, mut table) = tables(layout, 77).into_iter().find(|(name, _)| *name == what).unwrap();
            run(source, true, layout, &mut table, 77, 1).2 == 0
        };
        assert!(
            free(&programs[0], "first") && free(&programs[0], "empty") && free(&programs[0], "first of two")
        );
        assert!(
            !free(&programs[0], "second") && !free(&programs[0], "deleted") && !free(&programs[0], "forged")
        );
        assert_eq!(free(&programs[3], "first"), layout.percpu && layout.value_size <= 64, "{layout:?}");
        assert!(!free(&programs[3], "empty") && !free(&programs[4], "first") && !free(&programs[1], "first"));
    }
}
