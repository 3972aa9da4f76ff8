// A tool of uprobe sessions: one program at a function's entry and again at its return.
//   sessions cases PATH OFFSET   what loading and attaching answer, one result per line
//   sessions trace PATH OFFSET   READY, then on SIGTERM the counts of two sessions, the first of which lets odd arguments go
//                                without a return, and of a plain entry and a plain return program
//   sessions loose PATH OFFSET   without the kernel functions: READY, then on SIGTERM how often one session's program ran
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define I(c, d, s, o, i) ((struct bpf_insn){.code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i})
#define N(a) (sizeof(a) / sizeof *(a))
enum { UPROBE_MULTI = 48, UPROBE_SESSION = 57, DI = 112 };

struct multi { uint32_t prog, target, type, flags; uint64_t path, offsets, refs, cookies; uint32_t cnt, multi_flags, pid, pad; };

static char log_text[1 << 16];
static int map;

static void die(const char *what) { fprintf(stderr, "%s: %s\n%s", what, strerror(errno), log_text); exit(1); }
static long bpf(int cmd, void *a, unsigned n) { return syscall(SYS_bpf, cmd, a, n); }
static int result(const char *name, int r) { printf("%s %d\n", name, r < 0 ? errno : 0); return r; }

// The id of a kernel function in the kernel's BTF.
static int kfunc(const char *name) {
  static char *btf;
  static uint32_t h[6];
  if (!btf) {
    FILE *f = fopen("/sys/kernel/btf/vmlinux", "r");
    btf = malloc(64 << 20);
    if (!f || !fread(btf, 1, 64 << 20, f)) die("BTF");
    fclose(f);
    memcpy(h, btf, sizeof h);
  }
  char *types = btf + h[1] + h[2], *strings = btf + h[1] + h[4], *p = types;
  static const unsigned char each[32] = {[4] = 12, [5] = 12, [6] = 8, [13] = 8, [15] = 12, [19] = 12};
  static const unsigned char once[32] = {[1] = 4, [3] = 12, [14] = 4, [17] = 4};
  for (int id = 1; p < types + h[3]; id++) {
    uint32_t t[3];
    memcpy(t, p, sizeof t);
    unsigned kind = t[1] >> 24 & 31;
    if (kind == 12 && !strcmp(strings + t[0], name)) return id;
    p += 12 + once[kind] + each[kind] * (t[1] & 0xffff);
  }
  return -1;
}

static int map_create(void) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_type = BPF_MAP_TYPE_ARRAY, a.key_size = 4, a.value_size = 128, a.max_entries = 1;
  int fd = bpf(BPF_MAP_CREATE, &a, sizeof a);
  if (fd < 0) die("MAP_CREATE");
  return fd;
}

static void values(uint64_t v[16]) {
  uint32_t key = 0;
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_fd = map, a.key = (uint64_t)&key, a.value = (uint64_t)v;
  if (bpf(BPF_MAP_LOOKUP_ELEM, &a, sizeof a) < 0) die("lookup");
}

static int load(struct bpf_insn *p, int n, int type, int attach, const char *license) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  memset(log_text, 0, sizeof log_text);
  a.prog_type = type, a.insns = (uint64_t)p, a.insn_cnt = n, a.expected_attach_type = attach;
  a.license = (uint64_t)license, a.log_buf = (uint64_t)log_text, a.log_size = sizeof log_text, a.log_level = 1;
  return bpf(BPF_PROG_LOAD, &a, sizeof a);
}

// map value word `slot` += r2
#define ADD(slot) I(0x18, 1, 2, 0, map), I(0, 0, 0, 0, (slot) * 8), I(0xdb, 1, 2, 0, 0)
#define COUNT(slot) I(0xb7, 2, 0, 0, 1), ADD(slot)

// At the entry remembers the argument and counts in `slot`; returns argument & mask. At the return counts in `slot` + 1 and
// adds what was remembered to `slot` + 2.
static int session(int slot, int mask) {
  struct bpf_insn p[] = {
      I(0xbf, 6, 1, 0, 0), I(0x85, 0, 2, 0, kfunc("bpf_session_is_return")), I(0xbf, 7, 0, 0, 0),
      I(0x85, 0, 2, 0, kfunc("bpf_session_cookie")), I(0xbf, 8, 0, 0, 0), I(0x57, 7, 0, 0, 1), I(0x55, 7, 0, 9, 0),
      I(0x79, 9, 6, DI, 0), I(0x7b, 8, 9, 0, 0), COUNT(slot), I(0xbf, 0, 9, 0, 0), I(0x57, 0, 0, 0, mask), I(0x95, 0, 0, 0, 0),
      COUNT(slot + 1), I(0x79, 2, 8, 0, 0), ADD(slot + 2), I(0xb7, 0, 0, 0, 0), I(0x95, 0, 0, 0, 0)};
  int fd = load(p, N(p), BPF_PROG_TYPE_KPROBE, UPROBE_SESSION, "GPL");
  if (fd < 0) die("session");
  return fd;
}

static int plain(int slot, int attach, int ret) {
  struct bpf_insn p[] = {COUNT(slot), I(0xb7, 0, 0, 0, ret), I(0x95, 0, 0, 0, 0)};
  return load(p, N(p), BPF_PROG_TYPE_KPROBE, attach, "GPL");
}

static int attach(int prog, int type, const char *path, uint64_t offset, int flags) {
  struct multi m = {prog, 0, type, 0, (uint64_t)path, (uint64_t)&offset, 0, 0, 1, flags, 0, 0};
  return bpf(BPF_LINK_CREATE, &m, sizeof m);
}

// The reason is the last line of the log that is no statistics.
static void refused(const char *name, int r) {
  result(name, r);
  char *reason = "", *line = strtok(log_text, "\n");
  for (; line && strncmp(line, "processed ", 10); line = strtok(0, "\n")) reason = line;
  if (r < 0) printf("  %s\n", reason);
}

static int calls(const char *name, int type, int attach, const char *license) {
  struct bpf_insn p[] = {I(0x85, 0, 2, 0, kfunc(name)), I(0xb7, 0, 0, 0, 0), I(0x95, 0, 0, 0, 0)};
  return load(p, N(p), type, attach, license);
}

static int touches(int code, int off) {
  struct bpf_insn p[] = {I(0x85, 0, 2, 0, kfunc("bpf_session_cookie")), I(0xb7, 1, 0, 0, 7), I(code, code == 0x79 ? 1 : 0, code == 0x79 ? 0 : 1, off, 0),
                         I(0xb7, 0, 0, 0, 0), I(0x95, 0, 0, 0, 0)};
  return load(p, N(p), BPF_PROG_TYPE_KPROBE, UPROBE_SESSION, "GPL");
}

static void cases(const char *path, uint64_t off) {
  const char *is = "bpf_session_is_return", *cookie = "bpf_session_cookie";
  refused("is_return in a session", calls(is, BPF_PROG_TYPE_KPROBE, UPROBE_SESSION, "GPL"));
  refused("cookie in a session", calls(cookie, BPF_PROG_TYPE_KPROBE, UPROBE_SESSION, "GPL"));
  refused("is_return in a multi program", calls(is, BPF_PROG_TYPE_KPROBE, UPROBE_MULTI, "GPL"));
  refused("cookie in a plain program", calls(cookie, BPF_PROG_TYPE_KPROBE, 0, "GPL"));
  refused("cookie in a perf event program", calls(cookie, BPF_PROG_TYPE_PERF_EVENT, 0, "GPL"));
  refused("cookie without the licence", calls(cookie, BPF_PROG_TYPE_KPROBE, UPROBE_SESSION, "Proprietary"));
  result("write the cookie", touches(0x7b, 0));
  result("read the cookie", touches(0x79, 0));
  refused("write behind the cookie", touches(0x7b, 8));
  refused("read before the cookie", touches(0x79, -8));
  refused("returns 1", plain(0, UPROBE_SESSION, 1));
  refused("returns 2", plain(0, UPROBE_SESSION, 2));
  refused("returns -1", plain(0, UPROBE_SESSION, -1));
  int s = session(0, 1), m = plain(0, UPROBE_MULTI, 0), k = plain(0, 0, 0);
  result("session link", attach(s, UPROBE_SESSION, path, off, 0));
  result("session link with the return flag", attach(s, UPROBE_SESSION, path, off, 1));
  result("session link with wild flags", attach(s, UPROBE_SESSION, path, off, 4));
  result("session program on a multi link", attach(s, UPROBE_MULTI, path, off, 0));
  result("multi program on a session link", attach(m, UPROBE_SESSION, path, off, 0));
  result("plain program on a session link", attach(k, UPROBE_SESSION, path, off, 0));
  result("session link beyond the file", attach(s, UPROBE_SESSION, path, 1ull << 40, 0));
}

static volatile int stop;
static void on_term(int s) { (void)s; stop = 1; }

static void ready(void) {
  puts("READY");
  fflush(stdout);
  while (!stop) pause();
}

static void trace(const char *path, uint64_t off) {
  int links[] = {attach(session(0, 1), UPROBE_SESSION, path, off, 0), attach(session(3, 0), UPROBE_SESSION, path, off, 0),
                 attach(plain(6, UPROBE_MULTI, 0), UPROBE_MULTI, path, off, 0), attach(plain(7, UPROBE_MULTI, 0), UPROBE_MULTI, path, off, 1)};
  for (unsigned i = 0; i < N(links); i++)
    if (links[i] < 0) die("LINK_CREATE");
  ready();
  uint64_t v[16];
  values(v);
  printf("some entries %lu returns %lu cookies %lu\n", v[0], v[1], v[2]);
  printf("all entries %lu returns %lu cookies %lu\n", v[3], v[4], v[5]);
  printf("plain entries %lu returns %lu\n", v[6], v[7]);
}

static void loose(const char *path, uint64_t off) {
  int skips = attach(plain(0, UPROBE_SESSION, 1), UPROBE_SESSION, path, off, 0);
  int stays = attach(plain(1, UPROBE_SESSION, 0), UPROBE_SESSION, path, off + 0, 0);
  if (skips < 0 || stays < 0) die("LINK_CREATE");
  ready();
  uint64_t v[16];
  values(v);
  printf("skips %lu stays %lu\n", v[0], v[1]);
}

int main(int argc, char **argv) {
  struct rlimit r = {RLIM_INFINITY, RLIM_INFINITY};
  setrlimit(RLIMIT_MEMLOCK, &r);
  signal(SIGTERM, on_term);
  if (argc < 4) return fprintf(stderr, "usage\n"), 2;
  map = map_create();
  uint64_t off = strtoull(argv[3], 0, 0);
  if (!strcmp(argv[1], "cases")) cases(argv[2], off);
  else if (!strcmp(argv[1], "trace")) trace(argv[2], off);
  else if (!strcmp(argv[1], "loose")) loose(argv[2], off);
  else return 2;
  return 0;
}
