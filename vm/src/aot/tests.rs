use super::*;
use crate::asm::assemble;
use crate::verify::Verified;
use crate::{LoadEnv, Options, compile, decode};

struct Nothing;

impl LoadEnv for Nothing {
    fn helper_exists(&self, _: u32) -> bool {
        false
    }
}

fn compiled(source: &str, cpu: CpuFeatures) -> Compiled {
    let insns = assemble(source).unwrap();
    let program = decode(&insns, &mut Nothing).unwrap();
    // SAFETY: the programs of these tests touch no memory, and do not run.
    let program = unsafe { Verified::unchecked(program) };
    let image = compile(&program, &Options { cpu, ..Options::default() }).unwrap();
    let (name, section) = ("f".to_string(), "uprobe".to_string());
    Compiled { name, section, prog_type: 2, ctx_bytes: 8, insns, image }
}

fn sample(cpu: CpuFeatures) -> Container {
    let facts = MapFacts { map_type: 1, key_size: 4, value_size: 8, max_entries: 9, flags: 1, frozen: true };
    let map = MapDef { name: "m".into(), facts, contents: vec![1, 2, 3], fields: Fields::default() };
    Container { license: "GPL".into(), maps: vec![map], programs: vec![compiled("mov r0, 1; exit", cpu)] }
}

/// The file with these bytes at an offset, with the hash made right if asked.
fn changed(at: usize, bytes: &[u8], rehash: bool) -> Result<Container, ContainerError> {
    let mut file = sample(CpuFeatures::BASELINE).to_bytes();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    if rehash {
        let hash = fnv1a(file[32..].iter().copied());
        file[24..32].copy_from_slice(&hash.to_le_bytes());
    }
    Container::parse(&file, CpuFeatures::BASELINE)
}

#[test]
fn a_file_survives_its_bytes() {
    let sample = sample(CpuFeatures::BASELINE);
    assert_eq!(Container::parse(&sample.to_bytes(), CpuFeatures::BASELINE), Ok(sample));
}

#[test]
fn what_is_no_file_of_ours_or_of_another_version_is_refused() {
    assert_eq!(changed(0, b"ELF", false), Err(ContainerError::Magic));
    assert_eq!(changed(8, &9u32.to_le_bytes(), false), Err(ContainerError::Version { got: 9 }));
    assert_eq!(changed(12, &77u32.to_le_bytes(), false), Err(ContainerError::Abi { got: 77 }));
    assert_eq!(Container::parse(b"", CpuFeatures::BASELINE), Err(ContainerError::Magic));
}

#[test]
fn a_damaged_file_is_refused() {
    let len = sample(CpuFeatures::BASELINE).to_bytes().len();
    for at in [24, 32, 40, len - 1] {
        assert!(matches!(changed(at, &[0xee], false), Err(ContainerError::Damaged { .. })), "byte {at}");
    }
}

#[test]
fn a_file_for_a_better_cpu_is_refused() {
    let file = sample(CpuFeatures::BMI2).to_bytes();
    let missing = CpuFeatures::BMI2.bits();
    assert_eq!(Container::parse(&file, CpuFeatures::BASELINE), Err(ContainerError::Cpu { missing }));
    assert!(Container::parse(&file, CpuFeatures::BMI2).is_ok());
}

#[test]
fn an_image_of_other_bytecode_is_refused() {
    let mut other = sample(CpuFeatures::BASELINE);
    other.programs[0].insns = assemble("mov r0, 2; exit").unwrap();
    let error = Container::parse(&other.to_bytes(), CpuFeatures::BASELINE).unwrap_err();
    assert!(matches!(error, ContainerError::Bytecode { .. }), "{error}");
}

#[test]
fn no_cut_and_no_flipped_byte_panics() {
    let file = sample(CpuFeatures::BASELINE).to_bytes();
    for len in 0..file.len() {
        assert!(Container::parse(&file[..len], CpuFeatures::BASELINE).is_err(), "{len} bytes");
    }
    for at in 32..file.len() {
        let _ = changed(at, &[0xff], true);
        let _ = changed(at, &[0], true);
    }
}
