//! Programs of real tools, captured outside of the repository: `BPFTIME_VERIFY_CORPUS=dir`. One file each:
//! `prog NAME type T attach A gpl G ret R verified N`, `map fd|idx N TYPE KEY VALUE MAX FLAGS FROZEN HEX|-`
//! per map, `insns HEX`.

use super::env::{FIRST_FD, TestMap, Verdict, World, judge};
use super::generate::Random;
use super::kernel::Kernel;
use bpftime_vm::Insn;
use bpftime_vm::verify::{Log, MapFacts};
use std::path::{Path, PathBuf};
use std::time::Instant;

struct Captured {
    world: World,
    insns: Vec<Insn>,
    kernel_accepts: bool,
    kernel_processed: usize,
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |b: u8| (b as char).to_digit(16).unwrap_or(0) as u8;
    text.as_bytes().chunks_exact(2).map(|c| digit(c[0]) << 4 | digit(c[1])).collect()
}

fn read(path: &Path) -> Option<Captured> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut world = World::new(0, vec![]);
    let (mut insns, mut kernel_accepts, mut kernel_processed) = (vec![], false, 0);
    let mut refs: Vec<(String, i32)> = vec![];
    for line in text.lines() {
        let f: Vec<&str> = line.split(' ').collect();
        match f[0] {
            "prog" => {
                let at = |name: &str| {
                    f.iter().rposition(|w| *w == name).map(|i| f[i + 1].parse::<i64>().unwrap_or(0))
                };
                world.prog_type = at("type")? as u32;
                world.attach_type = at("attach")? as u32;
                world.gpl = at("gpl")? != 0;
                kernel_accepts = at("ret")? == 0;
                kernel_processed = at("verified")? as usize;
            }
            "map" => {
                let n: Vec<u32> = f[3..9].iter().filter_map(|x| x.parse().ok()).collect();
                let key = (f[1].to_string(), f[2].parse().ok()?);
                if refs.contains(&key) {
                    continue;
                }
                refs.push(key);
                let facts = MapFacts {
                    map_type: n[0],
                    key_size: n[1],
                    value_size: n[2],
                    max_entries: n[3],
                    flags: n[4],
                    frozen: n[5] != 0,
                };
                world.maps.push(TestMap { facts, contents: hex(f[9]), inner: None });
            }
            "insns" => insns = Insn::from_bytes(&hex(f[1]))?,
            _ => {}
        }
    }
    // Both ways to refer to a map become descriptors.
    world.fds = refs.iter().map(|(kind, n)| if kind == "idx" { 1_000_000 + n } else { *n }).collect();
    let mut at = 0;
    while at < insns.len() {
        if insns[at].is_lddw() {
            let src = insns[at].src();
            if src == 5 || src == 6 {
                insns[at].regs = insns[at].dst() | (src - 4) << 4;
                insns[at].imm += 1_000_000;
            }
            at += 1;
        }
        at += 1;
    }
    Some(Captured { world, insns, kernel_accepts, kernel_processed })
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return vec![] };
    let mut files: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.sort();
    files
}

#[test]
fn captured_programs_are_judged_as_the_kernel_did() {
    let Ok(dir) = std::env::var("BPFTIME_VERIFY_CORPUS") else {
        eprintln!("skipped: BPFTIME_VERIFY_CORPUS is not set");
        return;
    };
    let types = [1, 2, 5, 7, 17, 24];
    let (mut seen, mut times) = (std::collections::HashSet::new(), vec![]);
    let (mut both, mut we_refuse, mut we_accept, mut neither, mut skipped) = (0, 0, 0, 0, 0);
    let (mut ours, mut theirs, mut ctx_bytes) = (0, 0, 0);
    for path in files(Path::new(&dir)) {
        let Some(c) = read(&path) else { continue };
        let distinct: Vec<_> = c.insns.iter().map(|i| (i.code, i.regs, i.off, i.imm)).collect();
        if !types.contains(&c.world.prog_type) {
            skipped += 1;
            continue;
        }
        if !seen.insert((c.world.prog_type, c.kernel_accepts, distinct)) {
            continue;
        }
        let mut log = Log::new(4);
        let start = Instant::now();
        let verdict = judge(&c.insns, &c.world, &mut log);
        let time = start.elapsed();
        let processed: usize = log.text().split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
        if let Verdict::Accepted(verified) = &verdict {
            ctx_bytes = ctx_bytes.max(verified.ctx_bytes());
        }
        match (c.kernel_accepts, verdict.accepted()) {
            (true, true) => {
                both += 1;
                times.push(time);
                ours += processed;
                theirs += c.kernel_processed;
                if processed > 3 * c.kernel_processed + 100 {
                    println!("{}: processed {processed}, kernel {}", path.display(), c.kernel_processed);
                }
            }
            (false, false) => neither += 1,
            (true, false) => {
                we_refuse += 1;
                let at = match &verdict {
                    Verdict::Refused(r) => r.insn,
                    Verdict::NotDecoded(e) => e.insn,
                    Verdict::Accepted(_) => 0,
                };
                println!("{}: refused at {at}: {:?}", path.display(), verdict.refusal());
            }
            (false, true) => {
                we_accept += 1;
                println!("{}: accepted, the kernel refused", path.display());
            }
        }
    }
    times.sort();
    let at = |p: usize| times.get(times.len() * p / 100).copied().unwrap_or_default();
    println!(
        "both {both}, neither {neither}, we refuse {we_refuse}, we accept {we_accept}, other types {skipped}"
    );
    println!("processed {ours}, kernel {theirs}, at most {ctx_bytes} bytes of context");
    println!("median {:?} p95 {:?} max {:?}", at(50), at(95), times.last());
}

/// One small change, as a bug in a tool would be.
fn mutate(insns: &mut [Insn], random: &mut Random) {
    let at = random.below(insns.len());
    let after_lddw = at > 0 && insns[at - 1].is_lddw();
    let insn = &mut insns[at];
    if after_lddw || insn.is_lddw() || insn.code == 0x95 {
        return;
    }
    match random.below(8) {
        // A check that is dropped or turned round, an access of another size, at another place.
        0 if insn.class() == 5 && insn.code != 0x85 => *insn = Insn::new(0xbf, 0, 0, 0, 0),
        0 | 1 if insn.class() == 5 && !matches!(insn.code, 0x85 | 0x05) => {
            insn.code ^= 0x10 << random.below(4)
        }
        0 | 1 if matches!(insn.class(), 1..=3) => insn.code ^= 0x08 << random.below(2),
        2 if matches!(insn.class(), 1..=3) => insn.off += [8, -8, 1, -1, 64][random.below(5)],
        3 => insn.imm = insn.imm.wrapping_add([1, -1, 8, -8][random.below(4)]),
        4 => insn.imm ^= 1 << random.below(32),
        5 => insn.regs ^= 1 << random.below(8),
        6 => insn.code ^= 0x08,
        _ => insn.code ^= 1 << random.below(8),
    }
}

/// `BPFTIME_VERIFY_CORPUS=dir BPFTIME_VERIFY_MUTANTS=n`: real programs with one or two changes.
#[test]
fn mutants_that_we_accept_the_kernel_accepts() {
    let (Ok(dir), Ok(count)) =
        (std::env::var("BPFTIME_VERIFY_CORPUS"), std::env::var("BPFTIME_VERIFY_MUTANTS"))
    else {
        eprintln!("skipped: BPFTIME_VERIFY_CORPUS and BPFTIME_VERIFY_MUTANTS are not set");
        return;
    };
    let (mut both, mut neither, mut programs) = (0, 0, 0);
    let mut differences = std::collections::BTreeMap::<String, (usize, String)>::new();
    let mut random = Random::new(7);
    for path in files(Path::new(&dir)) {
        let Some(mut c) = read(&path) else { continue };
        if !matches!(c.world.prog_type, 2 | 5 | 7 | 17) || !c.kernel_accepts || c.insns.len() > 2000 {
            continue;
        }
        let fds = std::mem::take(&mut c.world.fds);
        for insn in c.insns.iter_mut().filter(|i| i.is_lddw() && matches!(i.src(), 1 | 2)) {
            let map = fds.iter().position(|fd| *fd == insn.imm).unwrap_or(0);
            insn.imm = FIRST_FD + map as i32;
        }
        let Some(kernel) = Kernel::new(&c.world) else { continue };
        for n in 0..count.parse().unwrap_or(0) {
            let mut insns = c.insns.clone();
            for _ in 0..1 + random.below(2) {
                mutate(&mut insns, &mut random);
            }
            programs += 1;
            let (ours, theirs) = (judge(&insns, &c.world, &mut Log::new(0)), kernel.judge(&insns, &c.world));
            let key = match (ours.refusal(), theirs.errno) {
                (None, 0) => {
                    both += 1;
                    continue;
                }
                (Some((_, reason)), 0) => format!("we refuse: {}", super::differential::bucket(&reason)),
                (None, errno) => {
                    format!("we ACCEPT: {errno} {}", super::differential::bucket(&theirs.reason))
                }
                (Some(_), _) => {
                    neither += 1;
                    continue;
                }
            };
            let place = || format!("{} mutant {n}", path.display());
            differences.entry(key).or_insert_with(|| (0, place())).0 += 1;
        }
    }
    println!("{programs} mutants, both accept {both}, both refuse {neither}");
    println!("{differences:#?}");
}
