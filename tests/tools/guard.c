// What guards a program: the verifier's log at load, and what happens when a loaded program goes wrong. Raw system calls;
// runs on the kernel or, preloaded, on bpftime.
//   guard log                     one line per way to ask for the log: NAME errno=E true_size=T text=...
//   guard reads PATH OFFSET       probes f(pointer, length): reads 8 bytes and a string; on SIGTERM one line per hit
//   guard bad KIND PATH OFFSET    KIND = fault|loop|write: a program that does that (wants BPFTIME_VERIFY=off)
// The last two print READY when attached.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static long bpf(int cmd, void *attr, unsigned size) { return syscall(SYS_bpf, cmd, attr, size); }
#define I(c, d, s, o, i) ((struct bpf_insn){.code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i})
#define MOV(d, i) I(0xb7, d, 0, 0, i)
#define MOVR(d, s) I(0xbf, d, s, 0, 0)
#define ADD(d, i) I(0x07, d, 0, 0, i)
#define LDX(d, s, o) I(0x79, d, s, o, 0)
#define STX(d, o, s) I(0x7b, d, s, o, 0)
#define ST(d, o, i) I(0x7a, d, 0, o, i)
#define CALL(n) I(0x85, 0, 0, 0, n)
#define MAP(d, fd) I(0x18, d, 1, 0, fd), I(0, 0, 0, 0, 0)
#define EXIT I(0x95, 0, 0, 0, 0)

static void die(const char *what) { fprintf(stderr, "%s: %s\n", what, strerror(errno)); exit(1); }

static int load(struct bpf_insn *p, int n, unsigned level, char *log, unsigned size, unsigned *true_size) {
  union { union bpf_attr attr; uint32_t words[64]; } u; // headers may be older than log_true_size, at byte 140
  memset(&u, 0, sizeof u);
#define a u.attr
  a.prog_type = BPF_PROG_TYPE_KPROBE, a.insns = (uint64_t)p, a.insn_cnt = n, a.license = (uint64_t)"GPL";
  a.log_buf = (uint64_t)log, a.log_size = size, a.log_level = level;
#undef a
  int fd = bpf(BPF_PROG_LOAD, &u, 148), e = errno;
  if (true_size) *true_size = u.words[35];
  errno = e;
  return fd;
}

static int must_load(struct bpf_insn *p, int n) {
  static char log[1 << 20];
  int fd = load(p, n, 1, log, sizeof log, 0);
  if (fd < 0) fprintf(stderr, "%s", log), die("BPF_PROG_LOAD");
  return fd;
}

// The size that was told, in words: it depends on each side's text.
static const char *told(unsigned t, unsigned whole) { return t == 0 ? "none" : t == whole ? "whole" : "other"; }

static int logs(void) {
  struct bpf_insn good[] = {MOV(0, 0), EXIT}, bad[] = {MOVR(0, 3), EXIT};
  static char log[65536];
  for (int i = 0; i < 2; i++) {
    struct bpf_insn *p = i ? bad : good;
    unsigned whole = 0, t;
    load(p, 2, 1, log, sizeof log, &whole);
    printf("%s whole fits=%d\n", i ? "bad" : "good", whole == strlen(log) + 1);
    struct { const char *name; unsigned level; char *buf; unsigned size; } ways[] = {
        {"silent", 0, 0, 0},       {"level 1", 1, log, sizeof log}, {"level 2", 2, log, sizeof log},
        {"statistics", 4, log, sizeof log}, {"exact", 1, log, whole}, {"one short", 1, log, whole - 1},
        {"tiny", 1, log, 16},      {"size only", 1, 0, 0},          {"level without buffer size", 1, log, 0},
        {"buffer without level", 0, log, 64}, {"level 8", 8, log, 64}, {"fixed, tiny", 9, log, 16},
        {"bad address", 1, (char *)8, 4096},
    };
    for (unsigned w = 0; w < sizeof ways / sizeof *ways; w++) {
      memset(log, 0x55, sizeof log);
      errno = 0;
      int fd = load(p, 2, ways[w].level, ways[w].buf, ways[w].size, &t), e = fd < 0 ? errno : 0;
      if (fd >= 0) close(fd);
      int wrote = ways[w].buf == log && log[0] != 0x55;
      printf("%s %s: errno=%d true_size=%s wrote=%d ends=%d\n", i ? "bad" : "good", ways[w].name, e,
             ways[w].level & 1 && !(ways[w].level & 8) ? told(t, whole) : t ? "some" : "none", wrote,
             wrote && memchr(log, 0, ways[w].size) != 0);
    }
  }
  return 0;
}

static int uprobe(const char *path, uint64_t offset, int prog) {
  FILE *f = fopen("/sys/bus/event_source/devices/uprobe/type", "r");
  int type = 8;
  if (f) { if (fscanf(f, "%d", &type) != 1) type = 8; fclose(f); }
  struct perf_event_attr a;
  memset(&a, 0, sizeof a);
  a.size = sizeof a, a.type = type, a.config1 = (uint64_t)path, a.config2 = offset, a.sample_period = 1, a.wakeup_events = 1;
  int fd = syscall(SYS_perf_event_open, &a, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);
  if (fd < 0) die("perf_event_open");
  if (ioctl(fd, PERF_EVENT_IOC_SET_BPF, prog) || ioctl(fd, PERF_EVENT_IOC_ENABLE, 0)) die("attach");
  return fd;
}

static int map_create(int type, int key, int value, int entries) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_type = type, a.key_size = key, a.value_size = value, a.max_entries = entries;
  int fd = bpf(BPF_MAP_CREATE, &a, sizeof a);
  if (fd < 0) die("map");
  return fd;
}

static int lookup(int map, uint32_t key, void *value) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_fd = map, a.key = (uint64_t)&key, a.value = (uint64_t)value;
  return bpf(BPF_MAP_LOOKUP_ELEM, &a, sizeof a);
}

static volatile sig_atomic_t stop;
static void on_term(int s) { stop = s; }

static void wait_for_end(void) {
  sigset_t term, old;
  sigemptyset(&term), sigaddset(&term, SIGTERM);
  sigprocmask(SIG_BLOCK, &term, &old);
  signal(SIGTERM, on_term);
  puts("READY"), fflush(stdout);
  while (!stop) sigsuspend(&old);
}

struct hit { int64_t read, bytes, str, text; };
#define HITS 64

static int reads(const char *path, uint64_t offset) {
  int count = map_create(BPF_MAP_TYPE_ARRAY, 4, 8, 1), hits = map_create(BPF_MAP_TYPE_ARRAY, 4, sizeof(struct hit), HITS);
  struct bpf_insn p[] = {
      LDX(7, 1, 112), LDX(8, 1, 104), I(0x57, 8, 0, 0, 15),                         // r7 = rdi, r8 = rsi & 15
      I(0xa5, 8, 0, 1, 9), MOV(8, 8),                                               // r8 = min(r8, 8)
      I(0x62, 10, 0, -4, 0), MAP(1, count), MOVR(2, 10), ADD(2, -4), CALL(1),       // &count[0]
      I(0x55, 0, 0, 2, 0), MOV(0, 0), EXIT,
      MOV(9, 1), I(0xdb, 0, 9, 0, BPF_ADD | BPF_FETCH), I(0x63, 10, 9, -4, 0),      // key = count++
      ST(10, -32, -1), ST(10, -16, 0), // what is behind a string's end is up to the kernel
      MOVR(1, 10), ADD(1, -32), MOVR(2, 8), MOVR(3, 7), CALL(112), STX(10, -40, 0),
      MOVR(1, 10), ADD(1, -16), MOVR(2, 8), MOVR(3, 7), CALL(114), STX(10, -24, 0),
      MAP(1, hits), MOVR(2, 10), ADD(2, -4), MOVR(3, 10), ADD(3, -40), MOV(4, 0), CALL(2),
      MOV(0, 0), EXIT,
  };
  int event = uprobe(path, offset, must_load(p, sizeof p / sizeof *p));
  wait_for_end();
  ioctl(event, PERF_EVENT_IOC_DISABLE, 0);
  uint64_t n = 0;
  lookup(count, 0, &n);
  for (uint64_t i = 0; i < n && i < HITS; i++) {
    struct hit h = {0};
    lookup(hits, i, &h);
    printf("HIT read=%lld bytes=%016llx str=%lld text=%016llx\n", (long long)h.read, (unsigned long long)h.bytes,
           (long long)h.str, (unsigned long long)h.text);
  }
  printf("HITS %llu\n", (unsigned long long)n);
  return 0;
}

static int bad(const char *kind, const char *path, uint64_t offset) {
  struct bpf_insn fault[] = {MOV(1, 0x10), LDX(0, 1, 0), EXIT}, loop[] = {MOV(0, 0), ADD(0, 1), I(0x05, 0, 0, -2, 0), EXIT};
  struct bpf_insn store[] = {MOV(1, 0x10), ST(1, 0, 7), MOV(0, 0), EXIT};
  int prog = !strcmp(kind, "fault") ? must_load(fault, 3) : !strcmp(kind, "loop") ? must_load(loop, 4) : must_load(store, 4);
  uprobe(path, offset, prog);
  wait_for_end();
  return 0;
}

int main(int argc, char **argv) {
  setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY});
  if (argc == 2 && !strcmp(argv[1], "log")) return logs();
  if (argc == 4 && !strcmp(argv[1], "reads")) return reads(argv[2], strtoull(argv[3], 0, 0));
  if (argc == 5 && !strcmp(argv[1], "bad")) return bad(argv[2], argv[3], strtoull(argv[4], 0, 0));
  return 2;
}
