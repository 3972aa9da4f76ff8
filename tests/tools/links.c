// A tool of links.
//   links cases PATH OFFSET OTHER SECOND   what BPF_LINK_* and BPF_OBJ_GET_INFO_BY_FD answer, one result per line;
//                                          SECOND is another file
//   links multi PATH FIRST STEP N [PID]    one uprobe_multi link on N functions; READY ns; on SIGTERM: COUNT n
//   links perf PATH FIRST STEP N           the same as N perf links
//   links ioctl PATH FIRST STEP N          the same as N perf events, with PERF_EVENT_IOC_SET_BPF
//   links override PATH OFFSET VALUE RET   bpf_override_return(VALUE) at OFFSET (RET 1: return probe); ATTACHED errno
//   links signal PATH OFFSET SIGNAL        bpf_send_signal(SIGNAL) at OFFSET; ATTACHED errno
//   links pulse PATH OFFSET [SEMAPHORE]    a link; for each line read COUNT n, for the line `close` it is closed first
//   links churn N                          makes and closes N maps, programs and links; GROWTH descriptors kilobytes
//   links full                             makes maps until no descriptor is left, closes them, does it again
#define _GNU_SOURCE
#include <dirent.h>
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
#include <time.h>
#include <unistd.h>

#define I(c, d, s, o, i) ((struct bpf_insn){.code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i})
enum { UPROBE_MULTI = 48, UPROBE_SESSION = 57, F_REPLACE = 4 };

// The parts of union bpf_attr and struct bpf_link_info that older headers lack.
struct multi { uint32_t prog, target, type, flags; uint64_t path, offsets, refs, cookies; uint32_t cnt, multi_flags, pid, pad; };
struct info { uint32_t type, id, prog_id, pad; union {
  struct { uint64_t path, offsets, refs, cookies; uint32_t path_size, count, flags, pid; } multi;
  struct { uint32_t kind, pad; uint64_t name; uint32_t name_len, offset; uint64_t cookie, ref; } uprobe;
  struct { uint32_t kind, pad; uint64_t config; uint32_t type, pad2; uint64_t cookie; } event;
  uint64_t raw[6]; }; };

static void die(const char *what) { fprintf(stderr, "%s: %s\n", what, strerror(errno)); exit(1); }
static long bpf(int cmd, void *a, unsigned n) { return syscall(SYS_bpf, cmd, a, n); }

static int map_create(void) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_type = BPF_MAP_TYPE_ARRAY, a.key_size = 4, a.value_size = 8, a.max_entries = 4;
  int fd = bpf(BPF_MAP_CREATE, &a, sizeof a);
  if (fd < 0) die("MAP_CREATE");
  return fd;
}

// map[slot] += 1; returns `ret`
static int load(int map, int slot, int type, int attach, int ret) {
  struct bpf_insn p[] = {
      I(0x62, 10, 0, -4, slot), I(0xbf, 2, 10, 0, 0), I(0x07, 2, 0, 0, -4), I(0x18, 1, 1, 0, map), I(0, 0, 0, 0, 0),
      I(0x85, 0, 0, 0, 1), I(0x15, 0, 0, 2, 0), I(0xb7, 1, 0, 0, 1), I(0xdb, 0, 1, 0, 0), I(0xb7, 0, 0, 0, ret),
      I(0x95, 0, 0, 0, 0)};
  static char log[65536];
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.prog_type = type, a.insns = (uint64_t)p, a.insn_cnt = sizeof p / sizeof *p, a.expected_attach_type = attach;
  a.license = (uint64_t)"GPL", a.log_buf = (uint64_t)log, a.log_size = sizeof log, a.log_level = 1;
  int fd = bpf(BPF_PROG_LOAD, &a, sizeof a);
  if (fd < 0) fprintf(stderr, "%s", log), die("PROG_LOAD");
  return fd;
}

static uint64_t value(int map, uint32_t key) {
  uint64_t v = 0;
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_fd = map, a.key = (uint64_t)&key, a.value = (uint64_t)&v;
  if (bpf(BPF_MAP_LOOKUP_ELEM, &a, sizeof a) < 0) die("lookup");
  return v;
}

static int uprobe_event(const char *path, uint64_t offset, int ret, uint64_t ref) {
  FILE *f = fopen("/sys/bus/event_source/devices/uprobe/type", "r");
  int type = 8;
  if (f) { if (fscanf(f, "%d", &type) != 1) type = 8; fclose(f); }
  struct perf_event_attr a;
  memset(&a, 0, sizeof a);
  a.size = sizeof a, a.type = type, a.config = ret | ref << 32, a.config1 = (uint64_t)path, a.config2 = offset;
  return syscall(SYS_perf_event_open, &a, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);
}

static int clock_event(void) {
  struct perf_event_attr a;
  memset(&a, 0, sizeof a);
  a.size = sizeof a, a.type = PERF_TYPE_SOFTWARE, a.config = 0, a.sample_period = 100000000, a.disabled = 1;
  return syscall(SYS_perf_event_open, &a, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);
}

static int perf_link(int event, int prog, uint64_t cookie) {
  struct { uint32_t prog, target, type, flags; uint64_t cookie; } a = {prog, event, BPF_PERF_EVENT, 0, cookie};
  return bpf(BPF_LINK_CREATE, &a, sizeof a);
}

static int update(int link, int prog, int flags, int old) {
  uint32_t a[] = {link, prog, flags, old};
  return bpf(BPF_LINK_UPDATE, a, sizeof a);
}

static int detach(int link) {
  uint32_t a[] = {link};
  return bpf(BPF_LINK_DETACH, a, sizeof a);
}

static int info(int fd, struct info *i) {
  struct { uint32_t fd, len; uint64_t info; } a = {fd, sizeof *i, (uint64_t)i};
  return bpf(BPF_OBJ_GET_INFO_BY_FD, &a, sizeof a);
}

static int result(const char *name, int r) { printf("%s %d\n", name, r < 0 ? errno : 0); return r; }

static void perf_info(const char *name, int link, int room) {
  char path[256] = "";
  struct info i;
  memset(&i, 0, sizeof i);
  i.uprobe.name = room ? (uint64_t)path : 0, i.uprobe.name_len = room;
  if (result(name, info(link, &i)) < 0 && errno != ENOSPC) return;
  printf("  type %u kind %u name %s len %u offset %d cookie %lu ref %lu\n", i.type, i.uprobe.kind,
         strrchr(path, '/') ? strrchr(path, '/') : path, room ? i.uprobe.name_len == strlen(path) + 1 : i.uprobe.name_len > 3, i.uprobe.offset != 0, i.uprobe.cookie,
         i.uprobe.ref);
}

static void multi_info(const char *name, int link, int room, int arrays) {
  char path[256] = "";
  uint64_t offsets[4] = {0}, refs[4] = {0}, cookies[4] = {0};
  struct info i;
  memset(&i, 0, sizeof i);
  i.multi.path = room ? (uint64_t)path : 0, i.multi.path_size = room, i.multi.count = arrays;
  if (arrays) i.multi.offsets = (uint64_t)offsets, i.multi.refs = (uint64_t)refs, i.multi.cookies = (uint64_t)cookies;
  if (result(name, info(link, &i)) < 0 && errno != ENOSPC) return;
  printf("  type %u path %s size %d count %u flags %u pid %d offsets %d%d refs %lu %lu cookies %lu %lu\n", i.type,
         strrchr(path, '/') ? strrchr(path, '/') : path, i.multi.path_size > 3, i.multi.count, i.multi.flags, i.multi.pid != 0, offsets[0] != 0,
         offsets[1] != 0, refs[0], refs[1], cookies[0], cookies[1]);
}

static void cases(const char *path, uint64_t off, uint64_t other, const char *second) {
  int map = map_create(), size;
  FILE *f = fopen(path, "r");
  fseek(f, 0, SEEK_END), size = ftell(f), fclose(f);
  int kp = load(map, 0, BPF_PROG_TYPE_KPROBE, 0, 0), kp2 = load(map, 1, BPF_PROG_TYPE_KPROBE, 0, 0);
  int um = load(map, 0, BPF_PROG_TYPE_KPROBE, UPROBE_MULTI, 0), um2 = load(map, 1, BPF_PROG_TYPE_KPROBE, UPROBE_MULTI, 0);
  int pe = load(map, 2, BPF_PROG_TYPE_PERF_EVENT, 0, 0), pe2 = load(map, 3, BPF_PROG_TYPE_PERF_EVENT, 0, 0);
  int ev = uprobe_event(path, off, 0, 0);
  int link = result("perf link", perf_link(ev, kp, 77));
  result("second program on the event", perf_link(ev, kp2, 0));
  result("wrong program type on the event", perf_link(uprobe_event(path, off, 0, 0), pe, 0));
  result("multi program on an event", perf_link(uprobe_event(path, off, 0, 0), um, 0));
  result("multi program by ioctl", ioctl(uprobe_event(path, off, 0, 0), PERF_EVENT_IOC_SET_BPF, um));
  result("program of another attach type by ioctl", ioctl(uprobe_event(path, off, 0, 0), PERF_EVENT_IOC_SET_BPF, pe));
  int rlink = perf_link(uprobe_event(path, off, 1, 0), kp, 78);
  int clink = result("clock link", perf_link(clock_event(), pe, 79));
  perf_info("info of a uprobe", link, 256);
  perf_info("info of a uretprobe", rlink, 256);
  perf_info("info without room", link, 0);
  perf_info("info with little room", link, 4);
  struct info i;
  memset(&i, 0, sizeof i);
  result("info of a clock", info(clink, &i));
  printf("  type %u kind %u config %lu cookie %lu\n", i.type, i.event.kind, i.event.config, i.event.cookie);
  result("update a perf link", update(link, kp2, 0, 0));
  result("update with the wrong old program", update(link, kp, F_REPLACE, kp));
  result("update with the right old program", update(link, kp, F_REPLACE, kp2));
  result("old program without the flag", update(link, kp2, 0, kp));
  result("wild flags", update(link, kp2, 64, 0));
  result("update to another type", update(link, pe, 0, 0));
  result("update to another attach type", update(link, um, 0, 0));
  result("update a clock link", update(clink, pe2, 0, 0));
  result("update to no program", update(link, 9999, 0, 0));
  result("update to a map", update(link, map, 0, 0));
  result("update no link", update(map, kp, 0, 0));
  result("update a closed link", update(9999, kp, 0, 0));
  memset(&i, 0, sizeof i);
  info(link, &i);
  uint32_t before = i.prog_id;
  update(link, kp2, 0, 0);
  memset(&i, 0, sizeof i);
  info(link, &i);
  printf("prog_id changed %d\n", before != i.prog_id);
  result("detach a perf link", detach(link));
  result("detach no link", detach(map));
  result("detach a closed link", detach(9999));

  uint64_t good[] = {off, other}, beyond[] = {off, size + 4096}, end[] = {off, size}, minus[] = {off, -1ull}, cookies[] = {5, 6};
  uint64_t odd[] = {1, 0}, refs[] = {0, 0}, twice[] = {off, off};
  struct multi ok = {um, 0, UPROBE_MULTI, 0, (uint64_t)path, (uint64_t)good, 0, (uint64_t)cookies, 2, 0, 0, 0}, m;
#define MULTI(name, change) (m = ok, change, result(name, bpf(BPF_LINK_CREATE, &m, sizeof m)))
  int ml = MULTI("multi link", (void)0);
  MULTI("multi link with a target", m.target = 5);
  MULTI("multi link of a plain program", m.prog = kp);
  MULTI("multi link of a clock program", m.prog = pe);
  MULTI("multi link with flags", m.flags = 1);
  MULTI("multi link with wild multi flags", m.multi_flags = 2);
  int mr = MULTI("multi return link", m.multi_flags = 1);
  MULTI("multi link without path", m.path = 0);
  MULTI("multi link with a wild path", m.path = 8);
  MULTI("multi link without offsets", m.offsets = 0);
  MULTI("multi link with wild offsets", m.offsets = 8);
  MULTI("multi link with wild cookies", m.cookies = 8);
  MULTI("multi link with wild semaphores", m.refs = 8);
  MULTI("multi link of nothing", m.cnt = 0);
  MULTI("multi link of too much", m.cnt = (1 << 20) + 1);
  MULTI("multi link to a missing file", m.path = (uint64_t) "/no/such/file");
  MULTI("multi link to a directory", m.path = (uint64_t) "/tmp");
  MULTI("multi link to a missing process", m.pid = 0x3ffffff);
  MULTI("multi link to a negative process", m.pid = -5);
  int mp = MULTI("multi link to this process", m.pid = getpid());
  MULTI("one offset beyond the file", m.offsets = (uint64_t)beyond);
  MULTI("one offset at the end of the file", m.offsets = (uint64_t)end);
  MULTI("one negative offset", m.offsets = (uint64_t)minus);
  MULTI("one odd semaphore", m.refs = (uint64_t)odd);
  MULTI("one offset twice", m.offsets = (uint64_t)twice);
  int ms = MULTI("multi link with semaphores", m.refs = (uint64_t)refs);
  int mc = MULTI("multi link without cookies", m.cookies = 0);
  MULTI("multi link of a closed program", m.prog = 9999);
  multi_info("info of a multi link", ml, 256, 2);
  multi_info("info of a multi return link", mr, 256, 2);
  multi_info("info of a multi link of one process", mp, 256, 2);
  multi_info("info of a multi link with semaphores", ms, 256, 2);
  multi_info("info of a multi link without cookies", mc, 256, 2);
  multi_info("info of a multi link, counts only", ml, 0, 0);
  multi_info("info of a multi link, one place", ml, 256, 1);
  multi_info("info of a multi link, many places", ml, 256, 4);
  multi_info("info of a multi link, little path", ml, 3, 2);
  memset(&i, 0, sizeof i);
  i.multi.path_size = 10;
  result("path size without path", info(ml, &i));
  memset(&i, 0, sizeof i);
  uint64_t o[2];
  i.multi.offsets = (uint64_t)o;
  result("offsets without count", info(ml, &i));
  result("update a multi link", update(ml, um2, 0, 0));
  result("detach a multi link", detach(ml));
  (void)second;
}

static volatile int stop;
static void on_term(int s) { (void)s; stop = 1; }

static void many(int argc, char **argv) {
  int as_multi = !strcmp(argv[1], "multi"), as_link = !strcmp(argv[1], "perf");
  int n = atoi(argv[5]), map = map_create();
  uint64_t first = strtoull(argv[3], 0, 0), step = strtoull(argv[4], 0, 0), *offsets = calloc(n, 8);
  for (int i = 0; i < n; i++) offsets[i] = first + i * step;
  int prog = load(map, 0, BPF_PROG_TYPE_KPROBE, as_multi ? UPROBE_MULTI : 0, 0);
  struct timespec a, b;
  clock_gettime(CLOCK_MONOTONIC, &a);
  if (as_multi) {
    struct multi m = {prog, 0, UPROBE_MULTI, 0, (uint64_t)argv[2], (uint64_t)offsets, 0, 0, n, 0, argc > 6 ? atoi(argv[6]) : 0, 0};
    if (bpf(BPF_LINK_CREATE, &m, sizeof m) < 0) die("LINK_CREATE");
  }
  for (int i = 0; i < n && !as_multi; i++) {
    int ev = uprobe_event(argv[2], offsets[i], 0, 0);
    if (ev < 0) die("perf_event_open");
    if (as_link && perf_link(ev, prog, i) < 0) die("LINK_CREATE");
    if (!as_link && ioctl(ev, PERF_EVENT_IOC_SET_BPF, prog) < 0) die("SET_BPF");
    if (ioctl(ev, PERF_EVENT_IOC_ENABLE, 0) < 0) die("ENABLE");
    if (as_link) close(ev);
  }
  clock_gettime(CLOCK_MONOTONIC, &b);
  printf("READY %ld\n", (b.tv_sec - a.tv_sec) * 1000000000l + b.tv_nsec - a.tv_nsec);
  fflush(stdout);
  while (!stop) pause();
  printf("COUNT %lu\n", value(map, 0));
}

// A helper that takes the context, or the number, and the number.
static void change(const char *path, uint64_t offset, int helper, int with, int ret) {
  int arg = helper == 58 ? 2 : 1;
  struct bpf_insn p[] = {I(0xb7, arg, 0, 0, with), I(0x85, 0, 0, 0, helper), I(0xb7, 0, 0, 0, 0), I(0x95, 0, 0, 0, 0)};
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.prog_type = BPF_PROG_TYPE_KPROBE, a.insns = (uint64_t)p, a.insn_cnt = 4, a.license = (uint64_t)"GPL";
  int prog = bpf(BPF_PROG_LOAD, &a, sizeof a), ev = uprobe_event(path, offset, ret, 0);
  if (prog < 0 || ev < 0) die("change");
  result("ATTACHED", perf_link(ev, prog, 0));
  fflush(stdout);
  while (!stop) pause();
}

static void pulse(const char *path, uint64_t offset, uint64_t ref) {
  int map = map_create(), prog = load(map, 0, BPF_PROG_TYPE_KPROBE, 0, 0);
  int ev = uprobe_event(path, offset, 0, ref), link = perf_link(ev, prog, 0);
  if (link < 0) die("LINK_CREATE");
  puts("READY");
  fflush(stdout);
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    if (!strcmp(line, "close\n")) close(link), close(ev);
    printf("COUNT %lu\n", value(map, 0));
    fflush(stdout);
  }
}

static int descriptors(void) {
  DIR *d = opendir("/proc/self/fd");
  int n = 0;
  while (readdir(d)) n++;
  closedir(d);
  return n;
}

static long resident(void) {
  long size, pages = 0;
  FILE *f = fopen("/proc/self/statm", "r");
  if (fscanf(f, "%ld %ld", &size, &pages) != 2) pages = 0;
  fclose(f);
  return pages * 4;
}

static void churn(int n) {
  long fds = 0, kb = 0;
  for (int i = 0; i < n; i++) {
    int map = map_create(), prog = load(map, 0, BPF_PROG_TYPE_KPROBE, 0, 0), ev = uprobe_event("/proc/self/exe", 64, 0, 0);
    if (ev < 0) die("perf_event_open");
    close(map), close(prog), close(ev);
    if (i == n / 4) fds = descriptors(), kb = resident();
  }
  printf("GROWTH %ld %ld\n", descriptors() - fds, resident() - kb);
}

static void full(void) {
  struct rlimit r = {64, 64};
  setrlimit(RLIMIT_NOFILE, &r);
  for (int round = 0; round < 3; round++) {
    int fds[64], n = 0;
    union bpf_attr a;
    memset(&a, 0, sizeof a);
    a.map_type = BPF_MAP_TYPE_ARRAY, a.key_size = 4, a.value_size = 8, a.max_entries = 4;
    while (n < 64 && (fds[n] = bpf(BPF_MAP_CREATE, &a, sizeof a)) >= 0) n++;
    printf("round %d errno %d enough %d\n", round, errno, n > 10);
    while (n > 0) close(fds[--n]);
  }
}

int main(int argc, char **argv) {
  struct rlimit r = {RLIM_INFINITY, RLIM_INFINITY}, files;
  setrlimit(RLIMIT_MEMLOCK, &r);
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  signal(SIGTERM, on_term);
  const char *what = argc > 1 ? argv[1] : "";
  if (argc > 5 && !strcmp(what, "cases")) cases(argv[2], strtoull(argv[3], 0, 0), strtoull(argv[4], 0, 0), argv[5]);
  else if (argc > 5 && (!strcmp(what, "multi") || !strcmp(what, "perf") || !strcmp(what, "ioctl"))) many(argc, argv);
  else if (argc > 5 && !strcmp(what, "override")) change(argv[2], strtoull(argv[3], 0, 0), 58, atoi(argv[4]), atoi(argv[5]));
  else if (argc > 4 && !strcmp(what, "signal")) change(argv[2], strtoull(argv[3], 0, 0), 109, atoi(argv[4]), 0);
  else if (argc > 3 && !strcmp(what, "pulse")) pulse(argv[2], strtoull(argv[3], 0, 0), argc > 4 ? strtoull(argv[4], 0, 0) : 0);
  else if (argc > 2 && !strcmp(what, "churn")) churn(atoi(argv[2]));
  else if (argc > 1 && !strcmp(what, "full")) full();
  else { fprintf(stderr, "usage\n"); return 2; }
  return 0;
}
