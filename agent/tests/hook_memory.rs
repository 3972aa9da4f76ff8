//! Where thunks go when there is no room, and code that only comes as bytes.
mod support;
use bpftime_agent::hook::{CannotHook, Engine, Form, Want};
use std::sync::atomic::Ordering::*;
use std::sync::{LazyLock, MutexGuard};
use support::{clear, form_of, probe, settle};

/// Kept from the engine, whose thunks could end up there first.
static LOW: LazyLock<()> = LazyLock::new(|| {
    for addr in [0x40_0000, 0x60_0000, 0x80_0000] {
        // SAFETY: NOREPLACE takes unmapped addresses only.
        unsafe { libc::mmap(addr as *mut _, 1 << 16, libc::PROT_NONE, FIXED, -1, 0) };
    }
});
const FIXED: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;

fn engine() -> MutexGuard<'static, Engine> {
    LazyLock::force(&LOW);
    support::engine()
}

/// Code at a chosen address, as a program linked there would have it.
fn code_at(addr: usize, bytes: &[u8]) -> usize {
    // SAFETY: NOREPLACE takes unmapped addresses only; the memory is ours.
    unsafe {
        let low = (1..1 << 24).contains(&addr);
        if low {
            libc::munmap(addr as *mut _, 1 << 16);
        }
        let flags = if addr == 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { FIXED };
        let p = libc::mmap(addr as *mut _, 1 << 16, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert!(addr == 0 || p as usize == addr, "{addr:#x} is taken");
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), p as *mut u8, bytes.len());
        libc::mprotect(p, 1 << 16, libc::PROT_READ | libc::PROT_EXEC);
        p as usize
    }
}

fn call(addr: usize) -> extern "C" fn(i64) -> i64 {
    // SAFETY: the tests put such functions there.
    unsafe { std::mem::transmute(addr) }
}

fn bytes_at(addr: usize, n: usize) -> Vec<u8> {
    // SAFETY: code of these tests.
    unsafe { std::slice::from_raw_parts(addr as *const u8, n) }.to_vec()
}

// push rbp; mov rbp,rsp; mov rax,rdi; add rax,5; pop rbp; ret; (next function at once) mov rax,rdi; ret
const PROLOGUE: &[u8] =
    &[0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0xf8, 0x48, 0x83, 0xc0, 0x05, 0x5d, 0xc3, 0x48, 0x89, 0xf8, 0xc3];

#[test]
fn a_program_at_4_mib_has_no_room_below_and_gets_its_jump_after_the_grace_period() {
    let mut engine = engine();
    let addr = code_at(0x40_0000, PROLOGUE);
    let t = probe(&mut engine, addr, Want::BOTH);
    assert_eq!(form_of(&engine, addr), Form::Fenced);
    assert_eq!(call(addr)(37), 42);
    settle(&mut engine);
    assert_eq!(form_of(&engine, addr), Form::Jump);
    assert_eq!(call(addr)(38), 43);
    assert_eq!((t.entries.load(Relaxed), t.returns.load(Relaxed)), (2, 2));
    clear(&mut engine);
    assert_eq!(bytes_at(addr, PROLOGUE.len()), PROLOGUE);
    assert_eq!(call(addr)(39), 44);
}

#[test]
fn the_grace_period_passes_under_threads_that_never_sleep() {
    let mut engine = engine();
    let addr = code_at(0x60_0000, PROLOGUE);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                while !stop.load(Relaxed) {
                    assert_eq!(call(addr)(1), 6);
                }
            });
        }
        for _ in 0..5 {
            let t = probe(&mut engine, addr, Want::BOTH);
            settle(&mut engine);
            assert_eq!(form_of(&engine, addr), Form::Jump);
            assert!(t.entries.load(Relaxed) > 0);
            engine.detach(addr);
            settle(&mut engine);
            assert_eq!(bytes_at(addr, PROLOGUE.len()), PROLOGUE);
        }
        stop.store(true, Relaxed);
    });
    clear(&mut engine);
}

#[test]
fn a_branch_into_the_window_keeps_working() {
    let mut engine = engine();
    // push rbx; mov rax,rdi; L: dec edi; jg L; pop rbx; ret  -> with room below (punned) and without (trap)
    let looped = [0x53, 0x48, 0x89, 0xf8, 0xff, 0xcf, 0x7f, 0xfc, 0x5b, 0xc3];
    for (addr, form) in [(0x7100_0000_0000, Form::Jump), (0x80_0000, Form::Trap)] {
        let addr = code_at(addr, &looped);
        let t = probe(&mut engine, addr, Want::BOTH);
        settle(&mut engine);
        assert_eq!(form_of(&engine, addr), form);
        for n in 1..20 {
            assert_eq!(call(addr)(n), n);
        }
        assert_eq!((t.entries.load(Relaxed), t.returns.load(Relaxed)), (19, 19));
        clear(&mut engine);
        assert_eq!(bytes_at(addr, looped.len()), looped);
    }
}

#[test]
fn operands_beyond_two_gib_of_the_thunk_are_reached() {
    let mut engine = engine();
    // The data lies 2 GiB above the code, and thunks 0.8 GiB below.
    let base = 0x7200_0000_0000;
    let data = base + 0x7fff_0000;
    code_at(data, &1000i64.to_le_bytes());
    let disp = |end: usize| ((data - end) as i32).to_le_bytes();
    let d7 = |i: usize| disp(base + 0x100 * i + 7);
    let bodies: [(&[u8], &[u8]); 4] = [
        (&[0x48, 0x8b, 0x05], &[0x48, 0x01, 0xf8, 0xc3]), // mov rax,[rip]; add rax,rdi; ret
        (&[0x48, 0x8d, 0x05], &[0x48, 0x8b, 0x00, 0x48, 0x01, 0xf8, 0xc3]), // lea rax,[rip]; mov rax,[rax]; add
        (&[0x48, 0x03, 0x3d], &[0x48, 0x89, 0xf8, 0xc3]),                   // add rdi,[rip]; mov rax,rdi; ret
        (&[0x48, 0x3b, 0x3d], &[0x0f, 0x94, 0xc0, 0x0f, 0xb6, 0xc0, 0xc3]), // cmp rdi,[rip]; sete al; movzx; ret
    ];
    let mut code = vec![0xccu8; 0x500];
    for (i, (head, tail)) in bodies.iter().enumerate() {
        let body = [*head, &d7(i)[..], *tail].concat();
        code[0x100 * i..][..body.len()].copy_from_slice(&body);
    }
    code_at(base, &code);
    for (i, want) in [1005, 1005, 1005, 0].into_iter().enumerate() {
        let addr = base + 0x100 * i;
        assert_eq!(call(addr)(5), want);
        let t = probe(&mut engine, addr, Want::ENTRY);
        assert_eq!(call(addr)(5), want, "body {i}");
        assert_eq!(t.entries.load(Relaxed), 1);
    }
    assert_eq!(call(base + 0x300)(1000), 1, "flags come through");
    clear(&mut engine);
}

#[test]
fn branches_first() {
    let mut engine = engine();
    let bodies: [&[u8]; 6] = [
        &[0xe3, 0x04, 0x89, 0xf8, 0xc3, 0x90, 0xb8, 7, 0, 0, 0, 0xc3], // jrcxz +4 (rcx is the 4th argument)
        &[0xeb, 0x03, 0xcc, 0xcc, 0xcc, 0x48, 0x89, 0xf8, 0xc3],       // jmp +3; mov rax,rdi; ret
        &[0xe8, 0x03, 0, 0, 0, 0x48, 0xff, 0xc0, 0x48, 0x89, 0xf8, 0xc3], // call f; (returns here) inc rax; f:
        &[0xff, 0xd6, 0x48, 0xff, 0xc0, 0xc3],                            // call rsi; inc rax; ret
        &[0x56, 0xff, 0x14, 0x24, 0x59, 0xc3], // push rsi; call [rsp]; pop rcx; ret
        &[0x85, 0xff, 0x75, 0x03, 0x31, 0xc0, 0xc3, 0xb8, 9, 0, 0, 0, 0xc3], // test; jne; xor eax,eax; ret; mov eax,9
    ];
    extern "C" fn eleven() -> i64 {
        11
    }
    let mut code = vec![0xccu8; 0x800];
    for (i, body) in bodies.iter().enumerate() {
        code[0x100 * i..][..body.len()].copy_from_slice(body);
    }
    let base = code_at(0, &code);
    // long f(rdi, rsi, rdx, rcx)
    let run = |i: usize, a: i64, c: i64| {
        // SAFETY: code above, which takes and keeps to these.
        let f: extern "C" fn(i64, extern "C" fn() -> i64, i64, i64) -> i64 =
            unsafe { std::mem::transmute(base + 0x100 * i) };
        f(a, eleven, 0, c)
    };
    let cases = [(0, 3, 1), (0, 3, 0), (1, 4, 0), (3, 4, 0), (4, 4, 0), (5, 0, 0), (5, 1, 0)];
    let plain = cases.map(|(i, a, c)| run(i, a, c));
    for want in [Want::ENTRY, Want::BOTH] {
        for i in 0..bodies.len() {
            probe(&mut engine, base + 0x100 * i, want);
        }
        assert_eq!(cases.map(|(i, a, c)| run(i, a, c)), plain);
        clear(&mut engine);
    }
    assert_eq!(bytes_at(base, code.len()), code);
}

#[test]
fn every_fourth_byte_of_long_code_can_be_probed_at_once() {
    let mut engine = engine();
    // 3000 x `add rax, 1` (4 bytes each), between mov rax,rdi and ret
    let mut code = vec![0x48, 0x89, 0xf8];
    (0..3000).for_each(|_| code.extend([0x48, 0x83, 0xc0, 0x01]));
    code.push(0xc3);
    let base = code_at(0, &code);
    let tallies: Vec<_> = (0..60).map(|i| probe(&mut engine, base + 3 + i * 4, Want::ENTRY)).collect();
    assert_eq!(call(base)(5), 3005);
    assert!(tallies.iter().all(|t| t.entries.load(Relaxed) == 1));
    clear(&mut engine);
    assert_eq!(bytes_at(base, code.len()), code);
}

#[test]
fn mapped_away_code_is_forgotten_without_a_write() {
    let mut engine = engine();
    let addr = code_at(0x7300_0000_0000, PROLOGUE);
    probe(&mut engine, addr, Want::BOTH);
    assert_eq!(call(addr)(1), 6);
    // SAFETY: our own mapping, no longer used.
    unsafe { libc::munmap(addr as *mut _, 1 << 16) };
    let other = [0xb8, 3, 0, 0, 0, 0xc3];
    assert_eq!(code_at(addr, &other), addr);
    engine.forget_unmapped(std::slice::from_ref(&(addr..addr + (1 << 16))));
    assert_eq!(bytes_at(addr, 6), other, "new code must not be touched");
    let t = probe(&mut engine, addr, Want::BOTH);
    assert_eq!(call(addr)(1), 3);
    assert_eq!((t.entries.load(Relaxed), t.returns.load(Relaxed)), (1, 1));
    clear(&mut engine);
    assert_eq!(bytes_at(addr, 6), other);
}

#[test]
fn somebody_elses_breakpoint_is_left_alone() {
    let mut engine = engine();
    let addr = code_at(0, &[0xcc, 0xc3]);
    assert_eq!(engine.attach(addr, Want::ENTRY).err(), Some(CannotHook::Breakpoint(addr)));
    let addr = code_at(0, &[0x06, 0xc3]);
    assert_eq!(engine.attach(addr, Want::ENTRY).err(), Some(CannotHook::NotCode(addr)));
}

#[test]
fn thousands_of_sites() {
    let mut engine = engine();
    let bytes: Vec<u8> = (0..2000).flat_map(|_| [PROLOGUE, &[0xcc; 15]].concat()).collect();
    let base = code_at(0, &bytes);
    let t: Vec<_> = (0..2000).map(|i| probe(&mut engine, base + i * 32, Want::BOTH)).collect();
    for i in 0..2000 {
        assert_eq!(call(base + i * 32)(i as i64), i as i64 + 5);
    }
    assert!(t.iter().all(|t| t.entries.load(Relaxed) == 1 && t.returns.load(Relaxed) == 1));
    assert!(engine.sites().all(|(_, f)| f == Form::Jump));
    clear(&mut engine);
    assert_eq!(bytes_at(base, bytes.len()), bytes);
}

#[test]
fn many_sites_come_and_go_together_as_they_do_one_by_one() {
    let mut engine = engine();
    // Functions of 32 bytes, some with a body that begins inside of the jump of its neighbour, and padding for short jumps.
    let padded = [PROLOGUE, &[0xcc; 32 - 17]].concat();
    let tight = [0x31, 0xc0, 0xff, 0xc0, 0x01, 0xf8, 0xc3, 0xcc];
    let code = [padded.repeat(300), tight.repeat(64)].concat();
    let base = code_at(0, &code);
    let mut wanted: Vec<_> = (0..300).map(|i| (base + i * 32, Want::BOTH)).collect();
    wanted.extend((0..64).map(|i| (base + 9600 + i * 8, Want::ENTRY)));
    // The second instruction as well, which the first one's patch displaces; and one address twice.
    wanted.extend([(base + 1, Want::ENTRY), (base + 32, Want::BOTH), (base + 7, Want::ENTRY)]);
    let inside = base + 2;
    wanted.push((inside, Want::ENTRY));
    let sites = engine.attach_all(&wanted);
    assert_eq!(sites.len(), wanted.len());
    for ((addr, _), site) in wanted.iter().zip(&sites) {
        match site {
            Ok(site) => assert_eq!(site.addr, *addr),
            Err(e) => {
                assert!(matches!(e, CannotHook::InsideInstruction { addr, .. } if *addr == inside), "{e}")
            }
        }
    }
    assert!(sites.last().unwrap().is_err());
    for _ in 0..2 {
        (0..300).for_each(|i| assert_eq!(call(base + i * 32)(i as i64), i as i64 + 5));
        (0..64).for_each(|i| assert_eq!(call(base + 9600 + i * 8)(i as i64), i as i64 + 1));
        settle(&mut engine);
    }
    let all: Vec<_> = engine.sites().map(|(s, _)| s.addr).collect();
    assert_eq!(all.len(), 300 + 64 + 2);
    let gone = engine.detach_all(&all);
    assert!(gone.iter().all(|d| *d != support::Detached::Absent));
    settle(&mut engine);
    assert_eq!(bytes_at(base, code.len()), code);
    assert_eq!(engine.detach_all(&all), vec![support::Detached::Absent; all.len()]);
}
