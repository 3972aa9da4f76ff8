//! An object that a C program runs gives what the interpreter gives.

use super::*;
use crate::aot::compile;
use bpftime_vm::interp::{self, Callback};
use bpftime_vm::{Host, Trap};
use std::cell::{RefCell, UnsafeCell};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory of its own, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        let path = std::env::temp_dir().join(format!("bpftime-emit-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Dir(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn target(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/targets").join(name)
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The maps of the interpreted programs: what linked.c has.
struct World<'o> {
    maps: &'o [MapDef],
    elements: RefCell<Vec<(u32, Box<UnsafeCell<u64>>)>>,
    data: Vec<UnsafeCell<Vec<u64>>>,
}

impl World<'_> {
    fn new(maps: &[MapDef]) -> World<'_> {
        let words = |map: &MapDef| {
            let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            UnsafeCell::new(map.contents.chunks(8).map(word).collect())
        };
        World { maps, elements: RefCell::default(), data: maps.iter().map(words).collect() }
    }

    fn named(&self, name: &str) -> &MapDef {
        self.maps.iter().find(|map| map.name == name).unwrap()
    }
}

/// # Safety
/// The address holds a number.
unsafe fn at<T: Copy>(addr: u64) -> T {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::with_exposed_provenance::<T>(addr as usize).read_unaligned() }
}

impl Host for World<'_> {
    fn helper(&self, id: u32, args: [u64; 5], _: &mut Callback<'_>) -> Result<u64, Trap> {
        // SAFETY: both helpers get the address of a key.
        let key: u32 = unsafe { at(args[1]) };
        let mut elements = self.elements.borrow_mut();
        match id {
            1 => {
                let found = elements.iter().find(|(other, _)| *other == key);
                Ok(found.map_or(0, |(_, value)| value.get().expose_provenance() as u64))
            }
            2 => {
                // SAFETY: the address of a value.
                elements.push((key, Box::new(UnsafeCell::new(unsafe { at(args[2]) }))));
                Ok(0)
            }
            _ => Err(Trap::NoHelper(id)),
        }
    }
    fn map_value(&self, map: MapIdx) -> u64 {
        // SAFETY: nobody has a reference to the words while the program runs.
        unsafe { (*self.data[map.0 as usize].get()).as_mut_ptr() }.expose_provenance() as u64
    }
}

/// What linked.c does, with the interpreter.
fn interpreted(object: &Object) -> String {
    let world = World::new(&object.maps);
    let programs: Vec<_> =
        object.programs.iter().map(|prog| compile::verified(object, prog).unwrap()).collect();
    let (mut x, mut ctx, mut out) = (88172645463325252u64, [0u64; 21], String::new());
    for n in 0..400u64 {
        for (i, word) in ctx.iter_mut().take(11).enumerate() {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            *word = if i == 2 { x % 9000 } else { x };
        }
        let fuel = if n % 7 == 6 { n % 23 } else { 1000 };
        let args = [ctx.as_mut_ptr().expose_provenance() as u64, 0, 0, 0, 0];
        // SAFETY: verified programs with what they were verified for.
        let r0 = unsafe { interp::run(&programs[usize::from(n % 5 == 4)], args, &world, fuel) };
        _ = writeln!(
            out,
            "{:x} {}",
            r0.as_ref().unwrap_or(&0),
            if r0.is_ok() { "whole" } else { "cut short" }
        );
    }
    for (key, value) in world.elements.borrow_mut().iter_mut() {
        _ = writeln!(out, "{key} {}", value.get_mut());
    }
    for name in [".bss", ".data"] {
        let index = object.maps.iter().position(|map| map.name == name).unwrap();
        // SAFETY: the programs are over.
        let words = unsafe { &*world.data[index].get() };
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        bytes.take(world.named(name).contents.len()).for_each(|byte| _ = write!(out, "{byte:02x}"));
    }
    out + "\n"
}

#[test]
fn a_linked_object_gives_what_the_interpreter_gives() {
    let dir = Dir::new();
    let (bpf, o, exe) = (dir.file("linked.bpf.o"), dir.file("linked.o"), dir.file("linked"));
    let mut clang = Command::new("clang");
    clang.args(["-g", "-O2", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu", "-c"]);
    succeed(clang.arg(target("linked.bpf.c")).arg("-o").arg(&bpf));
    let object = Object::open(&bpf).unwrap();
    assert_eq!(object.programs.iter().map(|prog| prog.name.as_str()).collect::<Vec<_>>(), ["tally", "total"]);
    let expected = interpreted(&object);
    assert!(expected.contains("cut short") && expected.contains("whole"), "{expected}");
    for cpu in [CpuFeatures::BASELINE, CpuFeatures::detect().without_avx()] {
        compile::linkable(&object, cpu, &o).unwrap();
        for flags in [["-pie", "-fPIE"], ["-no-pie", "-fno-pie"], ["-static", "-O1"]] {
            let mut gcc = Command::new("gcc");
            gcc.args(["-Wall", "-Werror", "-Wl,--fatal-warnings", "-Wl,-z,text"])
                .args(flags)
                .arg("-I")
                .arg(&dir.0);
            succeed(gcc.arg(target("linked.c")).arg(&o).arg("-o").arg(&exe));
            let output = String::from_utf8(succeed(&mut Command::new(&exe)).stdout).unwrap();
            assert_eq!(output, expected, "{flags:?}");
        }
    }
    // As a part of a C++ program, too.
    let mut cxx = Command::new("g++");
    cxx.args(["-Wall", "-Werror", "-fsyntax-only", "-x", "c++"]);
    succeed(cxx.arg(dir.file("linked.h")));
}
