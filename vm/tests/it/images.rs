//! Images travel through files and memfds: whatever bytes arrive, parsing and linking end in an answer.

use super::engines::Engines;
use bpftime_vm::image::{
    Fault, Image, ImageError, ImageRef, LinkError, Needs, Parts, Reloc, Resolve, Symbol,
};
use bpftime_vm::{CpuFeatures, MapIdx, compile};
use proptest::prelude::*;

struct Everything;

impl Resolve for Everything {
    fn map(&self, map: MapIdx) -> Option<u64> {
        Some(0x1000 + u64::from(map.0))
    }
    fn map_value(&self, map: MapIdx) -> Option<u64> {
        Some(0x2000 + u64::from(map.0))
    }
    fn helper(&self, id: u32) -> Option<u64> {
        Some(0x3000 + u64::from(id))
    }
}

fn sample() -> Image {
    let reloc = |offset, symbol, addend| Reloc { offset, symbol, addend };
    let relocs = vec![
        reloc(24, Symbol::Code, 5),
        reloc(0, Symbol::Map(MapIdx(7)), 0),
        reloc(8, Symbol::MapValue(MapIdx(1)), 20),
        reloc(16, Symbol::Helper(5), 0),
    ];
    let faults = vec![Fault { offset: 3, kind: 1 }, Fault { offset: 1, kind: 0 }];
    let needs = Needs { ctx_words: 0b101, vector: true, calls: true, ..Needs::default() };
    let parts = Parts {
        hash: 9,
        layouts: 4,
        entry: 2,
        needs,
        relocs,
        faults,
        code: vec![0x90; 40],
        ..Parts::default()
    };
    Image::build(parts).unwrap()
}

#[test]
fn an_image_survives_its_bytes() {
    let image = sample();
    let again = Image::parse(&image.to_bytes()).unwrap();
    assert_eq!(again, image);
    let view = again.borrow();
    assert_eq!((view.code_len(), view.entry_offset(), view.bytecode_hash(), view.layouts()), (40, 2, 9, 4));
    assert_eq!(view.relocs().map(|r| r.offset).collect::<Vec<_>>(), [0, 8, 16, 24]);
    assert_eq!(view.needs(), Needs { ctx_words: 0b101, vector: true, calls: true, ..Needs::default() });
    assert_eq!(view.faults().map(|f| f.offset).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn linking_writes_every_constant_and_nothing_behind_the_code() {
    let mut dst = vec![0x11; 48];
    sample().link(&mut dst, 0x7000, &Everything).unwrap();
    let words: Vec<u64> = dst.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    let (nops, untouched) = (u64::from_le_bytes([0x90; 8]), u64::from_le_bytes([0x11; 8]));
    assert_eq!(words, [0x1007, 0x2001 + 20, 0x3005, 0x7005, nops, untouched]);
}

#[test]
fn linking_needs_room() {
    let error = sample().link(&mut [0; 39], 0, &Everything);
    assert_eq!(error, Err(LinkError::NoRoom { got: 39, want: 40 }));
}

#[test]
fn an_image_for_a_better_cpu_does_not_link() {
    struct OldCpu;
    impl Resolve for OldCpu {
        fn map(&self, map: MapIdx) -> Option<u64> {
            Everything.map(map)
        }
        fn map_value(&self, map: MapIdx) -> Option<u64> {
            Everything.map_value(map)
        }
        fn helper(&self, id: u32) -> Option<u64> {
            Everything.helper(id)
        }
        fn cpu(&self) -> CpuFeatures {
            CpuFeatures::SSE41
        }
    }
    let program = super::engines::load("mov r0, 1; exit").unwrap();
    let cpu = CpuFeatures::BMI2.and(CpuFeatures::SSE41);
    let image =
        compile(&super::engines::trusted(program), &bpftime_vm::Options { cpu, ..Default::default() })
            .unwrap();
    let mut room = vec![0; image.code_len()];
    assert_eq!(image.link(&mut room, 0, &OldCpu), Err(LinkError::Cpu(CpuFeatures::BMI2.bits())));
}

#[test]
fn relocations_outside_of_the_code_or_overlapping_are_refused() {
    for offsets in [[33, 0], [u32::MAX, 0], [0, 7], [4, 4]] {
        let relocs = offsets.map(|offset| Reloc { offset, symbol: Symbol::Helper(1), addend: 0 }).to_vec();
        let parts = Parts { relocs, code: vec![0; 40], ..Parts::default() };
        assert!(matches!(Image::build(parts), Err(ImageError::Offset { .. })), "{offsets:?}");
    }
    for addend in [-1, 40, i64::MIN, i64::MAX] {
        let relocs = vec![Reloc { offset: 0, symbol: Symbol::Code, addend }];
        let parts = Parts { relocs, code: vec![0; 40], ..Parts::default() };
        assert!(matches!(Image::build(parts), Err(ImageError::Offset { .. })), "{addend}");
    }
}

#[test]
fn an_image_without_code_has_no_entry() {
    assert!(matches!(Image::build(Parts::default()), Err(ImageError::Offset { what: "entry", .. })));
}

#[test]
fn every_truncation_is_refused() {
    let bytes = sample().to_bytes();
    for len in 0..bytes.len() {
        assert!(ImageRef::parse(&bytes[..len]).is_err(), "{len}");
    }
    assert!(Image::parse(&[bytes, vec![0]].concat()).is_err());
}

/// Parses and, if that works, links: must not panic, and must stay inside of the code.
fn digest(bytes: &[u8]) {
    if let Ok(image) = ImageRef::parse(bytes) {
        let mut dst = vec![0; image.code_len()];
        let _ = image.link(&mut dst, 0x7000, &Everything);
        assert!(image.entry_offset() < image.code_len());
    }
}

#[test]
fn every_single_bit_flip_ends_in_an_answer() {
    let bytes = Engines::assemble(
        "lddw r1, map 3; lddw r2, value 3+4; call 5; call local f; exit; f: mov r0, 1; exit",
    )
    .image
    .to_bytes();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        digest(&flipped);
    }
}

proptest! {
    #[test]
    fn corrupted_images_end_in_an_answer(
        edits in proptest::collection::vec((0usize..200, any::<u8>()), 1..12),
    ) {
        let mut bytes = sample().to_bytes();
        for (at, value) in edits {
            let len = bytes.len();
            bytes[at % len] = value;
        }
        digest(&bytes);
    }

    #[test]
    fn random_bytes_are_no_image(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        digest(&bytes);
    }
}

fn needs(source: &str) -> Needs {
    Engines::assemble(source).image.borrow().needs()
}

#[test]
fn an_image_says_which_words_of_the_context_it_reads() {
    let read = needs("mov r6, r1; add r6, 16; ldxdw r0, [r6+8]; ldxh r2, [r1+39]; add r0, r2; exit");
    assert_eq!(read, Needs { ctx_words: 0b11_1000, runs_through: true, ..Needs::default() });
    assert!(needs("mov r0, 1; exit").ignores_ctx());
    assert!(needs("ldxb r0, [r1+4000]; exit").ctx_words == 1 << 63);
}

#[test]
fn an_image_says_when_its_context_goes_out_of_sight() {
    let escapes = |source: &str| needs(source).ctx_escapes;
    assert!(escapes("call 5; mov r0, 0; exit"), "to a helper");
    assert!(escapes("stxdw [r10-8], r1; mov r0, 0; exit"), "into memory");
    assert!(escapes("add r1, r2; ldxb r0, [r1+0]; exit"), "to an offset nobody knows");
    assert!(escapes("call local f; exit; f: ldxb r0, [r1+0]; exit"), "to another function");
    assert!(!escapes("mov r6, r1; mov r1, 0; call 5; ldxb r0, [r6+0]; exit"), "a register is no escape");
}

#[test]
fn an_image_says_what_it_calls_and_writes() {
    let plain = needs("mov r0, 1; exit");
    assert!(!plain.calls && !plain.vector);
    assert!(needs("call 1; exit").calls);
}

#[test]
fn an_image_says_when_nothing_can_end_it_early() {
    let through = |source: &str| needs(source).runs_through;
    assert!(through("mov r0, 0; exit"));
    assert!(through("ldxdw r0, [r1+160]; stxdw [r10-8], r0; ldxw r0, [r10-4]; exit"), "context and stack");
    assert!(through("mov r0, 0; jeq r1, 0, out; mov r0, 1; out: exit"), "a branch forwards");
    assert!(!through("ldxdw r0, [r1+168]; exit"), "behind what is always there");
    assert!(!through("ldxdw r1, [r1+0]; ldxdw r0, [r1+0]; exit"), "memory of others");
    assert!(!through("mov r0, 4; again: sub r0, 1; jne r0, 0, again; exit"), "a loop takes fuel");
    assert!(!through("call local f; exit; f: mov r0, 0; exit"), "so does a call");
    assert!(!through("call 5; exit"), "a helper may be abandoned");
}
