//! Loops that look for an element, which go a vector at a time: both engines stop at the same one, with any amount of
//! fuel, and nothing is read from a page that the loop itself would not have read from.

use super::engines::{Engines, Nothing, load, trusted};
use bpftime_vm::exec::Code;
use bpftime_vm::{Options, RunHeader, compile};

const SIZES: [(&str, usize); 3] = [("b", 1), ("h", 2), ("w", 4)];

/// Two equal arrays behind each other without zeros, in a page each and a bit.
fn arrays(len: usize) -> Vec<u8> {
    let half: Vec<u8> = (0..len).map(|n| (n * 7 % 251) as u8 | 1).collect();
    [half.clone(), half].concat()
}

/// Compares the arrays and looks for the end of the first.
fn comparison(size: &str, bytes: usize, len: usize, elements: usize, skip: usize) -> String {
    format!(
        "mov r6, 77; mov r2, 0
         top: mov r3, r1; add r3, r2; ldx{size} r4, [r3+{skip}]; mov r0, r2; jeq r4, 0, out
         ldx{size} r5, [r3+{}]; mov r0, r2; jne32 r4, r5, out; mov r6, r4; mov r0, -9
         add r2, {bytes}; jne r2, {}, top
         out: add r0, r6; lsh r0, 20; add r0, r4; lsh r0, 20; xor r0, r2; exit",
        len + skip,
        elements * bytes
    )
}

fn with_fuels(engines: &mut Engines, memory: &[u8], near: usize) {
    for fuel in [0, 1, 14, 15, 16, 17, 30, 33, near.saturating_sub(1), near, near + 1, 100_000] {
        engines.run_with_fuel(memory, fuel as i64);
    }
}

#[test]
fn a_comparison_of_arrays_stops_at_the_first_difference() {
    for (size, bytes) in SIZES {
        let len = 300 * bytes;
        let mut engines = Engines::assemble(&comparison(size, bytes, len, 290, 0));
        for at in (0..40).chain([63, 64, 65, 200, 288, 289, 290, 295]) {
            for end_of_string in [false, true] {
                let mut memory = arrays(len);
                let other = if end_of_string { 0 } else { len };
                memory[other + at * bytes..other + (at + 1) * bytes].fill(0);
                with_fuels(&mut engines, &memory, at);
            }
        }
        assert!(engines.image.borrow().needs().vector, "{size}");
    }
}

#[test]
fn vectors_that_would_reach_into_the_next_page_are_not_loaded() {
    for (size, bytes) in SIZES {
        let (len, elements) = (20_000, 19_900 / bytes);
        for skip in [0, 1, 3, 8, 15] {
            let mut engines = Engines::assemble(&comparison(size, bytes, len, elements, skip));
            let mut memory = [arrays(len), vec![1; 16]].concat();
            for at in [elements - 1, 4090 / bytes, 4100 / bytes, 8200 / bytes, 300] {
                memory[len + skip + at * bytes] ^= 0x40;
                with_fuels(&mut engines, &memory, at);
            }
        }
    }
}

#[test]
fn every_way_of_leaving_that_vectors_know_is_the_scalar_one() {
    for (size, bytes) in SIZES {
        for exit in [
            "jgt r4, 250, out",
            "jge r4, 250, out",
            "jlt r4, 3, out",
            "jle32 r4, 3, out",
            "jeq32 r4, r5, out",
            "and r4, 0x60; jeq r4, 0x60, out",
            "xor32 r4, r5; jgt32 r4, 0x7f, out",
            "mov32 r0, r4; sub32 r0, r5; jeq32 r0, 0, out",
            "jset r4, 3, out",
            "jsgt r4, 3, out",
            "jeq r4, 300, out",
            "jne r4, -1, out",
            "add r4, r5; jeq r4, 9, out",
        ] {
            let source = format!(
                "mov r0, 0; mov r2, 0; mov r7, r1
                 top: ldx{size} r4, [r7+0]; ldx{size} r5, [r7+700]; {exit}; add r7, {bytes}; add r2, 1
                 jne r2, 120, top
                 out: lsh r0, 8; add r0, r4; lsh r0, 16; add r0, r5; lsh r0, 16; add r0, r2; exit"
            );
            let mut engines = Engines::assemble(&source);
            for seed in 1..12u64 {
                // Rarely anything but 40 and 41.
                let noise = |n: u64| n.wrapping_mul(seed * 0x9e37_79b9).wrapping_add(n << 7) >> 9;
                let byte =
                    |n: u64| if noise(n) % 97 == 0 { noise(n + 9) as u8 } else { 40 + (n / 700) as u8 };
                let memory: Vec<u8> = (0..1400).map(byte).collect();
                with_fuels(&mut engines, &memory, 60);
            }
        }
    }
}

#[test]
fn what_an_iteration_leaves_in_registers_is_there_at_the_next_exit() {
    // r8 is written behind the way out, r9 before it from what the iteration before left.
    let source = "mov r8, 5; mov r0, 0; mov r2, 0; mov r7, r1
         top: ldxb r4, [r7+0]; jeq r4, 0, out; mov r8, r4; add r7, 1; add r2, 1; jlt r2, 200, top
         out: mov r0, r8; lsh r0, 16; add r0, r2; exit";
    let mut engines = Engines::assemble(source);
    for end in [0, 1, 15, 16, 17, 32, 33, 47, 48, 49, 199, 200] {
        let mut memory = arrays(400);
        memory[end] = 0;
        with_fuels(&mut engines, &memory, end);
    }
}

#[test]
fn sums_and_stores_keep_a_search_from_going_by_vectors() {
    for work in ["add r8, r4", "stxb [r7+500], r4", "add r8, r2"] {
        let source = format!(
            "mov r8, 0; mov r2, 0; mov r7, r1
             top: ldxb r4, [r7+0]; jeq r4, 0, out; {work}; add r7, 1; add r2, 1; jne r2, 200, top
             out: mov r0, r8; lsh r0, 16; add r0, r2; exit"
        );
        let mut engines = Engines::assemble(&source);
        for end in [0, 15, 16, 33, 100, 201] {
            let mut memory = arrays(400);
            memory[end] = 0;
            with_fuels(&mut engines, &memory, end);
        }
    }
}

/// Pages of which the last one may not be touched.
struct Guarded(*mut u8);

const READABLE: usize = 2 * 4096;

impl Guarded {
    fn new() -> Guarded {
        // SAFETY: a mapping of its own, anywhere.
        let start = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), READABLE + 4096, libc::PROT_NONE, flags, -1, 0)
        };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: the first pages of the mapping that was just made.
        assert_eq!(unsafe { libc::mprotect(start, READABLE, libc::PROT_READ | libc::PROT_WRITE) }, 0);
        Guarded(start.cast())
    }

    /// Its last bytes, and where they are.
    fn end_with(&self, bytes: &[u8]) -> u64 {
        // SAFETY: within the readable pages.
        let place = unsafe { self.0.add(READABLE - bytes.len()) };
        // SAFETY: as above; nobody else uses them.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
        place as u64
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, which nobody uses any more.
        unsafe { libc::munmap(self.0.cast(), READABLE + 4096) };
    }
}

#[test]
fn a_search_never_reads_behind_the_page_of_the_element_it_is_for() {
    // r1 and r2 are strings; the second one may end where the first one's zero is.
    let source = "mov r3, 0
         top: mov r6, r1; add r6, r3; ldxb r4, [r6+0]; jeq r4, 0, out; mov r7, r2; add r7, r3; ldxb r5, [r7+0]
         jne r4, r5, out; add r3, 1; jne r3, 4000, top
         out: mov r0, r3; exit";
    let program = trusted(load(source).unwrap());
    let code = Code::link(compile(&program, &Options::default()).unwrap().borrow(), &Nothing).unwrap();
    let (first, second) = (Guarded::new(), Guarded::new());
    let lengths = (0..70).chain([500, 1000, 3999]);
    for (len, behind) in lengths.flat_map(|len| [(len, 0), (len, 64)]) {
        let text = vec![b'x'; len];
        let string = [text.as_slice(), &[0], &vec![b'x'; behind]].concat();
        let (a, b) = (first.end_with(&string), second.end_with(&text));
        let mut run = RunHeader::with_fuel(5000);
        // SAFETY: both strings are readable up to where the program stops.
        let found = unsafe { code.entry()(a, b, 0, 0, 0, &mut run) };
        assert_eq!((found, run.fuel), (len as u64, 5000 - len as i64), "a string of {len} bytes");
    }
}
