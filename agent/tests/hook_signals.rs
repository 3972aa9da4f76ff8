//! The application keeps its SIGTRAP and SIGSEGV; faults in guarded code stay ours.
mod support;
use bpftime_agent::arch::copy;
use bpftime_agent::arch::guarded::Recover;
use bpftime_agent::hook::{Form, ThreadBlock, Want};
use bpftime_agent::signals;
use std::sync::atomic::Ordering::*;
use support::*;

/// What the preload library exports.
unsafe extern "C" fn sigaction(sig: i32, new: *const libc::sigaction, old: *mut libc::sigaction) -> i32 {
    // SAFETY: the caller's arguments.
    unsafe { if signals::on_sigaction(sig, new, old) { 0 } else { libc::sigaction(sig, new, old) } }
}
type SigactionFn = unsafe extern "C" fn(i32, *const libc::sigaction, *mut libc::sigaction) -> i32;

fn with_sigaction(name: &str) -> i32 {
    // SAFETY: declared so in shapes.c.
    let f: extern "C" fn(SigactionFn) -> i32 = unsafe { std::mem::transmute(SHAPES.addr(name)) };
    f(sigaction)
}

#[test]
fn the_applications_own_breakpoints_reach_its_handler() {
    let mut engine = engine();
    let trap = probe(&mut engine, HAZARDS.addr("hz_ret1"), Want::ENTRY);
    assert_eq!(form_of(&engine, HAZARDS.addr("hz_ret1")), Form::Trap);
    assert_eq!(with_sigaction("sh_own_trap"), 11);
    HAZARDS.int("hz_ret1")(1);
    assert_eq!(trap.entries.load(Relaxed), 1);
    clear(&mut engine);
}

#[test]
fn the_applications_own_faults_reach_its_handler_also_from_a_probed_instruction() {
    let mut engine = engine();
    assert_eq!(with_sigaction("sh_own_fault"), 20);
    let t = probe(&mut engine, SHAPES.addr("sh_load"), Want::BOTH);
    assert_eq!(with_sigaction("sh_own_fault"), 20);
    assert!(t.entries.load(Relaxed) >= 20);
    clear(&mut engine);
}

#[test]
fn default_and_ignored_signals_do_what_the_kernel_does() {
    let _engine = engine();
    // SAFETY: declared so in shapes.c.
    let dies: extern "C" fn(i32, SigactionFn) -> i32 = unsafe { std::mem::transmute(SHAPES.addr("sh_dies")) };
    let ends: Vec<_> = (0..6).map(|how| dies(how, sigaction)).collect();
    assert_eq!(ends, [libc::SIGSEGV, libc::SIGTRAP, 105, libc::SIGTRAP, libc::SIGSEGV, libc::SIGSEGV]);
}

#[test]
fn a_handler_set_behind_our_back_becomes_the_applications() {
    let mut engine = engine();
    let t = probe(&mut engine, HAZARDS.addr("hz_ret1"), Want::ENTRY);
    // SAFETY: installs SIG_IGN by the real call.
    unsafe {
        let mut ign: libc::sigaction = std::mem::zeroed();
        ign.sa_sigaction = libc::SIG_IGN;
        libc::sigaction(libc::SIGTRAP, &ign, std::ptr::null_mut());
    }
    assert!(signals::reassert());
    assert!(!signals::reassert());
    HAZARDS.int("hz_ret1")(1);
    assert_eq!(t.entries.load(Relaxed), 1);
    clear(&mut engine);
}

#[test]
fn guarded_reads_say_what_could_not_be_read() {
    let _engine = engine();
    let page = 4096;
    // SAFETY: two fresh pages; the second is made unreadable.
    let mem = unsafe {
        let p = libc::mmap(
            std::ptr::null_mut(),
            2 * page,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        ) as *mut u8;
        for i in 0..page {
            p.add(i).write(b'a' + (i % 26) as u8);
        }
        libc::mprotect(p.add(page).cast(), page, libc::PROT_NONE);
        p
    };
    for len in (0..70).chain([255, 511, 512, 513, 1000, 4096]) {
        for cut in [0, 1, 3, 7, 8, 9, 33] {
            let cut = cut.min(len);
            let mut dst = vec![0u8; len];
            // SAFETY: dst is len bytes; src ends `cut` bytes beyond what is readable.
            let left = unsafe {
                let src = mem.add(page - (len - cut));
                let left = copy::probe_read(dst.as_mut_ptr(), src, len);
                assert_eq!(&dst[..len - left], std::slice::from_raw_parts(src, len - left));
                left
            };
            assert!(
                left >= cut && left <= cut + 7 && (cut > 0 || left == 0),
                "len {len} cut {cut}: left {left}"
            );
        }
    }
    for bad in [0usize, 8, 0xdead_0000_0000_0000, 0x8000_0000_0000, usize::MAX - 3] {
        let mut word = 7u64;
        // SAFETY: word is 8 bytes.
        unsafe {
            assert_eq!(copy::probe_read((&raw mut word).cast(), bad as *const u8, 8), 8);
            assert_eq!(copy::probe_read_str((&raw mut word).cast(), bad as *const u8, 8), -14);
            assert_eq!(copy::probe_read_slow((&raw mut word).cast(), bad as *const u8, 8), 8);
        }
    }
    for at in 0..20 {
        for len in 0..20 {
            let mut dst = [9u8; 64];
            // SAFETY: a string of `len` bytes that ends with the readable page, or before it.
            unsafe {
                let s = mem.add(page - 1 - len - at);
                s.add(len).write(0);
                let got = copy::probe_read_str(dst.as_mut_ptr(), s, 64);
                assert_eq!(got, len as isize + 1);
                assert_eq!(&dst[..len + 1], std::slice::from_raw_parts(s, len + 1));
                let cut = copy::probe_read_str(dst.as_mut_ptr(), s, 5);
                assert_eq!(cut, (len as isize + 1).min(5));
                assert_eq!(dst[cut as usize - 1], 0);
                s.add(len).write(b'x');
            }
        }
    }
    let mut dst = [0u8; 64];
    // SAFETY: an unterminated string at the end of readable memory.
    assert_eq!(unsafe { copy::probe_read_str(dst.as_mut_ptr(), mem.add(page - 10), 64) }, -14);
}

#[test]
fn a_fault_in_registered_code_ends_the_run_only() {
    let _engine = engine();
    extern "C" fn bad(p: u64, _: u64, _: u64, _: u64) -> u64 {
        // SAFETY: none: this is the fault under test.
        unsafe { (p as *const u64).read_volatile() }
    }
    let code = SHAPES.addr("sh_load");
    // SAFETY: int sh_load(int *) fits four register arguments.
    let load: unsafe extern "C" fn(u64, u64, u64, u64) -> u64 = unsafe { std::mem::transmute(code) };
    signals::register_code_range(code, code + 16);
    let block = ThreadBlock::current().unwrap();
    for i in 0..1000 {
        let mut r = Recover::new();
        let good = 4242u32;
        // SAFETY: sh_load may be abandoned anywhere.
        unsafe {
            let o = block.run_guarded(load, [&raw const good as u64, 0, 0, 0], &mut r);
            assert_eq!((o.value as u32, o.faulted), (4242, 0));
            let o = block.run_guarded(load, [8 + i, 0, 0, 0], &mut r);
            assert_eq!((o.value, o.faulted), (0, 1));
            r.helper.store(1, Relaxed);
            let o = block.run_guarded(bad, [8, 0, 0, 0], &mut r);
            assert_eq!(o.faulted, 1, "a fault in a helper counts as the program's");
        }
    }
    signals::unregister_code_range(code, code + 16);
    assert!(block.recover.load(Relaxed).is_null());
}
