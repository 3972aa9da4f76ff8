//! Loads and stores of every size, and the stack.

use super::engines::{Engines, on_every_engine};
use bpftime_vm::isa::Size;

const MEMORY: [u8; 16] =
    [0x80, 0x91, 0xa2, 0xb3, 0xc4, 0xd5, 0xe6, 0xf7, 0x08, 0x19, 0x2a, 0x3b, 0x4c, 0x5d, 0x6e, 0x7f];

fn bytes_at(off: usize, size: Size) -> &'static [u8] {
    static BYTES: [u8; 16] = MEMORY;
    &BYTES[off..off + size.bytes() as usize]
}

fn extended(bytes: &[u8], signed: bool) -> u64 {
    let fill = if signed && bytes[bytes.len() - 1] & 0x80 != 0 { 0xff } else { 0 };
    let mut wide = bytes.to_vec();
    wide.resize(8, fill);
    u64::from_le_bytes(wide.try_into().unwrap())
}

#[test]
fn loads_extend_and_need_no_alignment() {
    for size in Size::ALL {
        for off in 0..=(16 - size.bytes() as usize) {
            let want = extended(bytes_at(off, *size), false);
            on_every_engine(&format!("ldx{} r0, [r1+{off}]; exit", size.mnemonic()), &MEMORY, want);
        }
    }
}

#[test]
fn sign_extending_loads() {
    for size in [Size::B, Size::H, Size::W] {
        for off in [0, 1, 8, 9] {
            let want = extended(bytes_at(off, size), true);
            on_every_engine(&format!("ldxs{} r0, [r1+{off}]; exit", size.mnemonic()), &MEMORY, want);
        }
    }
}

#[test]
fn stores_write_their_bytes_and_no_others() {
    let value = 0x1122_3344_8899_aabb_u64;
    for size in Size::ALL {
        for off in [0, 3, 8] {
            let (name, len) = (size.mnemonic(), size.bytes() as usize);
            let mut want = MEMORY.to_vec();
            want[off..off + len].copy_from_slice(&value.to_le_bytes()[..len]);
            let source = format!("lddw r3, {value:#x}; stx{name} [r1+{off}], r3; mov r0, 0; exit");
            assert_eq!(Engines::assemble(&source).run(&MEMORY).memory, want, "{source}");
        }
    }
}

#[test]
fn stored_immediates_are_sign_extended() {
    for size in Size::ALL {
        for imm in [0, 1, -1, i32::MIN, 0x1234_5678] {
            let (name, len) = (size.mnemonic(), size.bytes() as usize);
            let mut want = MEMORY.to_vec();
            want[4..4 + len].copy_from_slice(&i64::from(imm).to_le_bytes()[..len]);
            let source = format!("st{name} [r1+4], {imm}; mov r0, 0; exit");
            assert_eq!(Engines::assemble(&source).run(&MEMORY).memory, want, "{source}");
        }
    }
}

#[test]
fn negative_offsets_and_the_largest_ones() {
    on_every_engine("mov r3, r1; add r3, 8; ldxb r0, [r3-1]; exit", &MEMORY, 0xf7);
    let mut large = vec![0; 40_000];
    large[32_767] = 0x5a;
    on_every_engine("ldxb r0, [r1+32767]; exit", &large, 0x5a);
    on_every_engine("add r1, 32768; ldxb r0, [r1-1]; add r1, 1; ldxb r2, [r1-32768]; exit", &large, 0x5a);
}

#[test]
fn the_stack_starts_cleared_on_every_run() {
    let source = "mov r6, 0; mov r7, r10; add r7, -512; mov r0, 0
        top: ldxdw r3, [r7]; or r0, r3; lddw r4, -1; stxdw [r7], r4; add r7, 8; add r6, 1
        jlt r6, 64, top; exit";
    let mut engines = Engines::assemble(source);
    for _ in 0..3 {
        assert_eq!(engines.run(&[]).r0, Some(0));
    }
}

#[test]
fn stack_slots_of_every_size() {
    on_every_engine("stdw [r10-8], -2; ldxw r0, [r10-4]; exit", &[], 0xffff_ffff);
    on_every_engine("sth [r10-2], 0x1234; ldxb r0, [r10-1]; exit", &[], 0x12);
    on_every_engine("stb [r10-512], 9; ldxb r0, [r10-512]; exit", &[], 9);
    on_every_engine("stdw [r10-24], 5; mov r3, r10; sub r3, 24; ldxdw r0, [r3]; exit", &[], 5);
}

#[test]
fn the_frame_pointer_is_a_plain_value_too() {
    on_every_engine("mov r0, r10; sub r0, r10; exit", &[], 0);
    on_every_engine("mov r0, 0; jeq r10, 0, +1; mov r0, 1; exit", &[], 1);
    on_every_engine(
        "stxdw [r1], r10; ldxdw r3, [r1]; stdw [r1], 0; stdw [r3-16], 3; ldxdw r0, [r10-16]; exit",
        &MEMORY,
        3,
    );
}

#[test]
fn map_handles_and_values() {
    on_every_engine("lddw r0, map 4; exit", &[], super::engines::MAP_HANDLE + 1);
    on_every_engine("lddw r0, map_idx 1; exit", &[], super::engines::MAP_HANDLE + 1);
    let mut engines = Engines::assemble(
        "lddw r3, value 3+12; stw [r3], 7; lddw r4, value 3; stb [r4+63], 9; mov r0, r3; sub r0, r4; exit",
    );
    let outcome = engines.run(&[]);
    assert_eq!(outcome.r0, Some(12));
    assert_eq!((outcome.value[12], outcome.value[63]), (7, 9));
}

#[test]
fn bytes_put_together_are_the_wide_number_in_either_order() {
    let number = |order: &[usize]| {
        order.iter().rev().fold(0u64, |number, from| number << 8 | u64::from(MEMORY[*from]))
    };
    let orders: [&[usize]; 12] = [
        &[0, 1],
        &[1, 0],
        &[2, 3, 4, 5],
        &[5, 4, 3, 2],
        &[0, 1, 2],
        &[3, 2, 1],
        &[0, 1, 3, 2],
        &[1, 1],
        &[7, 6, 5, 4, 3, 2, 1, 0],
        &[0, 1, 2, 3, 4, 5, 6, 7],
        &[0, 2, 1, 3],
        &[6, 7, 0, 1],
    ];
    for order in orders {
        for width in ["", "32"].into_iter().filter(|width| width.is_empty() || order.len() <= 4) {
            let mut text = format!("ldxb r3, [r1+{}]; mov{width} r0, r3\n", order[0]);
            for (n, from) in order.iter().enumerate().skip(1) {
                let join = ["or", "add", "xor"][n % 3];
                text += &format!("ldxb r3, [r1+{from}]; lsh{width} r3, {}; {join}{width} r0, r3\n", 8 * n);
            }
            on_every_engine(&(text + "exit"), &MEMORY, number(order));
        }
    }
}

#[test]
fn bytes_loaded_before_a_store_are_those_before_it() {
    for between in [
        "stb [r1+0], 7",
        "mov r9, 3; lock fetch_add32 [r1+0], r9",
        "stxh [r1+0], r2",
        "mov r6, r1; stb [r6+1], 9",
    ] {
        let source =
            format!("ldxb r7, [r1+0]; ldxb r8, [r1+1]; {between}; lsh r8, 8; or r8, r7; mov r0, r8; exit");
        on_every_engine(&source, &MEMORY, u64::from(MEMORY[1]) << 8 | u64::from(MEMORY[0]));
    }
}
