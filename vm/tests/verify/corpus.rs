//! Programs of real tools, captured outside of the repository: `BPFTIME_VERIFY_CORPUS=dir`. One file each:
//! `prog NAME type T attach A gpl G ret R verified N`, `map fd|idx N TYPE KEY VALUE MAX FLAGS FROZEN HEX|-`
//! per map, `insns HEX`.

use super::env::{TestMap, Verdict, World, judge};
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
                world.maps.push(TestMap { facts, contents: hex(f[9]) });
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
