//! `bpftime verify` on objects as the compiler makes them, and on those inside of Debian's libbpf-tools.
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory of this test, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bpftime-verify-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Compiles a BPF program.
    fn object(&self, source: &str) -> PathBuf {
        let (c, o) = (self.0.join("p.bpf.c"), self.0.join("p.bpf.o"));
        fs::write(&c, format!("{HEADER}{source}")).unwrap();
        let include = format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH);
        let args = ["-g", "-O2", "-target", "bpf", "-D__TARGET_ARCH_x86", &include, "-c"];
        let status = Command::new("clang").args(args).arg(&c).arg("-o").arg(&o).status().unwrap();
        assert!(status.success());
        o
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const HEADER: &str = r#"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
char LICENSE[] SEC("license") = "GPL";
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 100); __type(key, int); __type(value, long); }
    counts SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } ring SEC(".maps");
"#;

fn verify(object: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bpftime")).arg("verify").args(args).arg(object).output().unwrap()
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

#[test]
fn an_object_with_data_functions_and_callbacks_is_accepted() {
    let dir = Dir::new("good");
    let object = dir.object(
        r#"
const volatile int only_pid = 0;
const char format[] = "constant";
int seen, last = 5;
static __noinline int note(int pid, long *where) { *where += pid; return *where > 10; }
__noinline int global(int x) { return x * 3 + last; }
static int each(int i, void *ctx) { *(long *)ctx += i; return 0; }
SEC("uprobe//bin/sh:main") int good(void *ctx) {
  int pid = bpf_get_current_pid_tgid() >> 32;
  if (only_pid) bpf_trace_vprintk(0, 0, 0, 0);
  long *v = bpf_map_lookup_elem(&counts, &pid), sum = global(pid);
  if (v) note(pid, v);
  bpf_loop(10, each, &sum, 0);
  seen += sum + format[pid & 7];
  return 0;
}
SEC("tp/syscalls/sys_enter_kill") int second(void *ctx) { return note(1, &(long){0}) + global(2); }
"#,
    );
    let out = verify(&object, &[]);
    let text = text(&out);
    assert!(out.status.success(), "{text}");
    assert!(text.contains("ok          good (uprobe//bin/sh:main)\n"), "{text}");
    assert!(text.contains("ok          second (tp/syscalls/sys_enter_kill)\n"), "{text}");
    assert!(text.contains("helpers: bpf_get_current_pid_tgid bpf_loop bpf_map_lookup_elem;"), "{text}");
}

#[test]
fn a_refusal_shows_the_lines_of_its_path_and_what_to_do() {
    let dir = Dir::new("bad");
    let object = dir.object(
        r#"
int seen;
SEC("uprobe") int leak(void *ctx) {
  long *record = bpf_ringbuf_reserve(&ring, 16, 0);
  if (!record)
    return 1;
  if (seen > 3)
    seen = 7;
  *record = seen;
  return 0;
}
SEC("uprobe") int fine(void *ctx) { return 0; }
"#,
    );
    let out = verify(&object, &[]);
    let text = text(&out);
    assert_eq!(out.status.code(), Some(3), "{text}");
    let wanted = [
        "refused     leak (uprobe)\n",
        "    in leak, ",
        "long *record = bpf_ringbuf_reserve(&ring, 16, 0);\n",
        "if (!record)\n",
        "(95) exit\n    Unreleased reference id=2 alloc_insn=4\n",
        "    hint: submit or discard the ring buffer record on every path\n",
        "refs=2\n",
        "ok          fine (uprobe)\n",
    ];
    for words in wanted {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }
    assert!(!text.contains("return 1;"), "a line of another path: {text}");
    // Only one of them, with the kernel's log.
    let out = verify(&object, &["--prog", "fine", "-l", "2"]);
    let text = self::text(&out);
    assert!(out.status.success() && !text.contains("leak"), "{text}");
    assert!(text.contains("0: (b7) r0 = 0 ") && text.contains("\nprocessed 2 insns "), "{text}");
}

#[test]
fn fields_are_found_in_the_running_kernels_types() {
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        println!("skipped: the kernel has no BTF");
        return;
    }
    let dir = Dir::new("core");
    let object = dir.object(
        r#"
struct mm_struct;
struct task_struct___mine { int no_such_member; int pid; struct mm_struct *mm; } __attribute__((preserve_access_index));
struct no_such_struct { int x; } __attribute__((preserve_access_index));
SEC("kprobe") int fields(void *ctx) {
  struct task_struct___mine *task = (void *)bpf_get_current_task();
  int pid = BPF_CORE_READ(task, pid);
  if (bpf_core_field_exists(task->no_such_member))
    pid += BPF_CORE_READ(task, no_such_member);
  if (bpf_core_type_exists(struct no_such_struct))
    bpf_trace_vprintk(0, 0, 0, 0);
  return pid + bpf_core_type_size(struct task_struct___mine);
}
SEC("kprobe") int missing(void *ctx) {
  struct task_struct___mine *task = (void *)bpf_get_current_task();
  return BPF_CORE_READ(task, no_such_member);
}
"#,
    );
    let out = verify(&object, &["--prog", "fields", "-l", "2"]);
    let text = text(&out);
    assert!(out.status.success(), "{text}");
    // As bpftool sees them.
    let btf =
        Command::new("bpftool").args(["btf", "dump", "file", "/sys/kernel/btf/vmlinux"]).output().unwrap();
    let btf = String::from_utf8_lossy(&btf.stdout).into_owned();
    let task = btf.split("STRUCT 'task_struct' size=").nth(1).unwrap();
    let member = task.split("'pid' type_id=").nth(1).unwrap().split("bits_offset=").nth(1).unwrap();
    let bits: u32 = member.split(char::is_whitespace).next().unwrap().parse().unwrap();
    let size = task.split(' ').next().unwrap();
    assert!(text.contains(&format!("= {} ", bits / 8)), "no offset {} in\n{text}", bits / 8);
    assert!(text.contains(&format!("= {size} ")), "no size {size} in\n{text}");
    let out = verify(&object, &["--prog", "missing"]);
    let text = self::text(&out);
    assert!(text.contains("invalid func unknown#195896080"), "{text}");
}

#[test]
fn files_that_are_no_objects_are_refused_in_words() {
    let dir = Dir::new("none");
    let path = dir.0.join("x.o");
    for (bytes, words) in
        [(&b"hello"[..], "no BPF object"), (&fs::read("/bin/true").unwrap(), "it is for X86_64")]
    {
        fs::write(&path, bytes).unwrap();
        let out = verify(&path, &[]);
        assert_eq!(out.status.code(), Some(1));
        assert!(text(&out).contains(words), "{}", text(&out));
    }
    assert!(text(&verify(&dir.0.join("missing.o"), &[])).contains("No such file"));
}

/// BPF objects inside of a program: a whole ELF file for BPF, as a string.
fn embedded(bytes: &[u8]) -> Vec<&[u8]> {
    const MAGIC: &[u8] = b"\x7fELF\x02\x01\x01";
    let word = |at: usize, len: usize| {
        bytes.get(at..at + len).map_or(0, |b| b.iter().rev().fold(0, |x, b| x << 8 | *b as usize))
    };
    let starts = (4..bytes.len().saturating_sub(64)).filter(|at| bytes[*at..].starts_with(MAGIC));
    let objects = starts.filter(|at| word(at + 18, 2) == 247).map(|at| {
        let (table, size, count) = (word(at + 40, 8), word(at + 58, 2), word(at + 60, 2));
        &bytes[at..(at + table + size * count).min(bytes.len())]
    });
    objects.collect()
}

/// 144 of its tracing programs load on a 6.18 kernel whose tools set map sizes; three more need only those.
#[test]
fn all_tracing_programs_of_libbpf_tools_are_accepted() {
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        println!("skipped: the kernel has no BTF");
        return;
    }
    let dir = Dir::new("tools");
    let (mut accepted, mut not_here, mut refused) = (0, 0, String::new());
    for entry in fs::read_dir("/usr/sbin").unwrap().flatten() {
        let bytes = fs::read(entry.path()).unwrap_or_default();
        if !bytes.starts_with(b"\x7fELF") {
            continue;
        }
        for object in embedded(&bytes) {
            let path = dir.0.join(entry.file_name());
            fs::write(&path, object).unwrap();
            let text = text(&verify(&path, &[]));
            assert!(!text.starts_with("bpftime:"), "{}: {text}", path.display());
            accepted += text.matches("ok          ").count();
            for block in text.split("refused     ").skip(1) {
                // A field that this kernel no longer has.
                if block.contains("invalid func unknown#195896080") {
                    not_here += 1;
                } else {
                    refused += block;
                }
            }
        }
    }
    println!("{accepted} accepted, {not_here} need fields that this kernel does not have");
    assert_eq!(refused, "");
    assert!(
        accepted >= 140 && not_here <= 10,
        "{accepted} accepted, {not_here} not: is libbpf-tools installed?"
    );
}
