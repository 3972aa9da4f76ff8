//! Inlined helpers and array lookups give what the calls give.

use super::engines::{load, trusted};
use bpftime_vm::exec::Code;
use bpftime_vm::{ArrayLayout, BpfFn, CpuFeatures, MapIdx, MapLayout, Options, Resolve, RunHeader, compile};

const ENTRIES: u32 = 5;
const STRIDE: u32 = 24;
const CPUS: usize = 3;

/// An array for each CPU, and its lookup as a helper.
struct Arrays(Vec<u8>);

const LAYOUT: MapLayout = MapLayout::Array(ArrayLayout {
    entries: ENTRIES,
    value_size: STRIDE,
    stride: STRIDE,
    cpu_stride: Some((ENTRIES * STRIDE) as u64),
});

extern "C" fn lookup(map: u64, key: u64, _: u64, _: u64, _: u64, run: *mut RunHeader) -> u64 {
    // SAFETY: the program passes a key, and the run it was given.
    let (key, cpu) = unsafe { ((key as *const u32).read_unaligned(), (*run).cpu) };
    let place = u64::from(cpu * ENTRIES * STRIDE) + u64::from(key) * u64::from(STRIDE);
    if key < ENTRIES { map + place } else { 0 }
}

extern "C" fn update(map: u64, key: u64, value: u64, flags: u64, _: u64, run: *mut RunHeader) -> u64 {
    let element = lookup(map, key, 0, 0, 0, run);
    let place = std::ptr::with_exposed_provenance_mut::<u8>(element as usize);
    let value = std::ptr::with_exposed_provenance::<u8>(value as usize);
    match (element, flags) {
        (0, _) => -7i64 as u64,
        (_, 1) => -17i64 as u64,
        _ => {
            // SAFETY: an element, and a value of the program's.
            unsafe { std::ptr::copy_nonoverlapping(value, place, STRIDE as usize) };
            0
        }
    }
}

impl Resolve for Arrays {
    fn map(&self, _: MapIdx) -> Option<u64> {
        Some(self.0.as_ptr().expose_provenance() as u64)
    }
    fn map_value(&self, _: MapIdx) -> Option<u64> {
        None
    }
    fn map_elements(&self, map: MapIdx) -> Option<u64> {
        self.map(map)
    }
    fn helper(&self, id: u32) -> Option<u64> {
        let functions: [BpfFn; 2] = [lookup, update];
        functions.get(id as usize - 1).map(|f| *f as usize as u64)
    }
}

fn header(cpu: u32) -> RunHeader {
    RunHeader {
        fuel: 1000,
        pid_tgid: 0x1234_5678_9abc_def0,
        cookie: 77,
        func_ip: 0x7fff_1234,
        cpu,
        reserved: 0,
    }
}

/// r0 and memory, with lookups inlined or called.
fn run(source: &str, inlined: bool, r1: u64, cpu: u32) -> (u64, Vec<u8>) {
    let program = trusted(load(source).unwrap());
    let maps = [Some(LAYOUT)];
    let options = Options { cpu: CpuFeatures::BASELINE, kernel_helpers: inlined, maps: &maps };
    let image = compile(&program, &options).unwrap();
    assert_eq!(image.borrow().needs().calls, !inlined, "{source}");
    let arrays = Arrays((0..CPUS as u32 * ENTRIES * STRIDE).map(|n| (n * 7) as u8).collect());
    let code = Code::link(image.borrow(), &arrays).unwrap();
    // SAFETY: the program stays in the arrays and its stack.
    let r0 = unsafe { code.entry()(r1, 0, 0, 0, 0, &mut header(cpu)) };
    let base = arrays.0.as_ptr().expose_provenance() as u64;
    (r0.wrapping_sub(if r0 >= base && r0 < base + arrays.0.len() as u64 { base } else { 0 }), arrays.0)
}

#[test]
fn an_inlined_lookup_finds_what_the_helper_finds() {
    let find = "lddw r1, map 3; mov r2, r10; add r2, -4; call 1";
    for source in [
        format!("stxw [r10-4], r1; {find}; exit"),
        format!("stw [r10-4], 3; {find}; exit"),
        format!("stw [r10-4], 5; {find}; exit"),
        format!("stb [r10-1], 0; stb [r10-2], 0; stb [r10-3], 0; stxb [r10-4], r1; {find}; exit"),
        format!(
            "stxdw [r10-8], r1; lsh r1, 32; stxdw [r10-8], r1; {find}; jeq r0, 0, no
                 ldxdw r3, [r0+8]; add r3, 1; stxdw [r0+8], r3; no: exit"
        ),
    ] {
        for key in [0, 1, 4, 5, 6, 0xff, 0xffff_ffff] {
            for cpu in 0..CPUS as u32 {
                assert_eq!(
                    run(&source, true, key, cpu),
                    run(&source, false, key, cpu),
                    "{source}, key {key}"
                );
            }
        }
    }
}

#[test]
fn an_inlined_update_of_an_array_does_what_the_helper_does() {
    let value = "stdw [r10-32], 7; stxdw [r10-24], r1; stw [r10-16], 9; stw [r10-12], 11";
    let call = "lddw r1, map 3; mov r2, r10; add r2, -4; mov r3, r10; add r3, -32; mov r4, 0; call 2; exit";
    for source in [format!("{value}; stxw [r10-4], r1; {call}"), format!("{value}; stw [r10-4], 2; {call}")] {
        for key in [0, 1, 4, 5, 0xffff_ffff] {
            for cpu in 0..CPUS as u32 {
                let (inlined, called) = (run(&source, true, key, cpu), run(&source, false, key, cpu));
                assert_eq!(inlined, called, "{source}, key {key}");
            }
        }
    }
}

#[test]
fn cheap_helpers_read_the_run() {
    for (call, want) in [(14, 0x1234_5678_9abc_def0), (8, 2), (173, 0x7fff_1234), (174, 77)] {
        let insns = bpftime_vm::asm::assemble(&format!("mov r6, 9; call {call}; add r0, r1; exit")).unwrap();
        struct Kernel;
        impl bpftime_vm::LoadEnv for Kernel {
            fn helper_exists(&self, _: u32) -> bool {
                true
            }
        }
        let program = trusted(bpftime_vm::decode(&insns, &mut Kernel).unwrap());
        let options = Options { kernel_helpers: true, ..Options::default() };
        let image = compile(&program, &options).unwrap();
        assert!(image.borrow().needs().ignores_ctx() && !image.borrow().needs().calls, "helper {call}");
        let code = Code::link(image.borrow(), &Arrays(vec![])).unwrap();
        // SAFETY: the program touches no memory.
        assert_eq!(unsafe { code.entry()(1, 2, 3, 4, 5, &mut header(2)) }, want, "helper {call}");
    }
}
