// A minimal BPF tool on raw system calls, so that a test knows exactly what it asks for. Runs on the kernel or, preloaded,
// on bpftime.
//   probe count KIND PATH OFFSET [KIND PATH OFFSET]...   KIND = entry|ret; prints READY; on SIGTERM: COUNT n per probe
//   probe pid PID PATH OFFSET        as count, of one process
//   probe churn N PATH OFFSET        attaches and detaches N times, entry and return in turn; prints DONE
//   probe attr                       malformed attributes, one result per line: NAME errno
//   probe objects                    what descriptors of objects can do, one result per line
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static long bpf(int cmd, void *attr, unsigned size) { return syscall(SYS_bpf, cmd, attr, size); }
#define I(c, d, s, o, i) ((struct bpf_insn){.code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i})

static void die(const char *what) { fprintf(stderr, "%s: %s\n", what, strerror(errno)); exit(1); }

static int map_create(int type, int key, int value, int entries) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_type = type, a.key_size = key, a.value_size = value, a.max_entries = entries;
  return bpf(BPF_MAP_CREATE, &a, sizeof a);
}

// @count[0] += 1 on this CPU's value
static int load_counter(int map) {
  struct bpf_insn p[32];
  int n = 0;
  p[n++] = I(0x62, 10, 0, -4, 0);
  p[n++] = I(0xbf, 2, 10, 0, 0);
  p[n++] = I(0x07, 2, 0, 0, -4);
  p[n++] = I(0x18, 1, 1, 0, map);
  p[n++] = I(0, 0, 0, 0, 0);
  p[n++] = I(0x85, 0, 0, 0, 1);
  p[n++] = I(0x15, 0, 0, 3, 0);
  p[n++] = I(0x79, 1, 0, 0, 0);
  p[n++] = I(0x07, 1, 0, 0, 1);
  p[n++] = I(0x7b, 0, 1, 0, 0);
  p[n++] = I(0xb7, 0, 0, 0, 0);
  p[n++] = I(0x95, 0, 0, 0, 0);
  static char log[65536];
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.prog_type = BPF_PROG_TYPE_KPROBE, a.insns = (uint64_t)p, a.insn_cnt = n, a.license = (uint64_t)"GPL";
  a.log_buf = (uint64_t)log, a.log_size = sizeof log, a.log_level = 1;
  int fd = bpf(BPF_PROG_LOAD, &a, sizeof a);
  if (fd < 0) fprintf(stderr, "%s", log), die("BPF_PROG_LOAD");
  return fd;
}

static int uprobe_pmu(void) {
  FILE *f = fopen("/sys/bus/event_source/devices/uprobe/type", "r");
  int v = 8;
  if (f) { if (fscanf(f, "%d", &v) != 1) v = 8; fclose(f); }
  return v;
}

static int uprobe(const char *path, uint64_t offset, int ret, int pid) {
  struct perf_event_attr a;
  memset(&a, 0, sizeof a);
  a.size = sizeof a, a.type = uprobe_pmu(), a.config = ret, a.config1 = (uint64_t)path, a.config2 = offset;
  a.sample_period = 1, a.wakeup_events = 1;
  return syscall(SYS_perf_event_open, &a, pid, pid > 0 ? -1 : 0, -1, PERF_FLAG_FD_CLOEXEC);
}

static int only_pid = -1;

static int attach(const char *path, uint64_t offset, int ret, int prog) {
  int fd = uprobe(path, offset, ret, only_pid);
  if (fd < 0) die("perf_event_open");
  if (ioctl(fd, PERF_EVENT_IOC_SET_BPF, prog) < 0) die("SET_BPF");
  if (ioctl(fd, PERF_EVENT_IOC_ENABLE, 0) < 0) die("ENABLE");
  return fd;
}

static uint64_t total(int map) {
  static uint64_t v[8192];
  uint32_t key = 0;
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  memset(v, 0, sizeof v);
  a.map_fd = map, a.key = (uint64_t)&key, a.value = (uint64_t)v;
  if (bpf(BPF_MAP_LOOKUP_ELEM, &a, sizeof a) < 0) die("lookup");
  uint64_t t = 0;
  for (int i = 0; i < 8192; i++) t += v[i];
  return t;
}

static volatile int stop;
static void on_term(int s) { (void)s; stop = 1; }

static int count(int argc, char **argv) {
  int maps[64], n = 0;
  for (int i = 0; i + 2 < argc; i += 3, n++) {
    maps[n] = map_create(BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 1);
    if (maps[n] < 0) die("MAP_CREATE");
    attach(argv[i + 1], strtoull(argv[i + 2], 0, 0), !strcmp(argv[i], "ret"), load_counter(maps[n]));
  }
  puts("READY");
  fflush(stdout);
  while (!stop) pause();
  for (int i = 0; i < n; i++) printf("COUNT %lu\n", total(maps[i]));
  return 0;
}

static int churn(int n, const char *path, uint64_t offset) {
  int map = map_create(BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 1);
  int prog = load_counter(map);
  puts("READY");
  fflush(stdout);
  for (int i = 0; i < n && !stop; i++) close(attach(path, offset, i & 1, prog));
  printf("DONE\n");
  return 0;
}

static void result(const char *name, long r) { printf("%s %d\n", name, r < 0 ? errno : 0); }

static int attr_cases(void) {
  char big[5000];
  union bpf_attr a;
  uint32_t key = 0;
  uint64_t value = 7;
  int map = map_create(BPF_MAP_TYPE_ARRAY, 4, 8, 2);
#define TRY(name, call) result(name, call)
#define ATTR memset(&a, 0, sizeof a)
  TRY("null attr", bpf(BPF_MAP_CREATE, 0, 16));
  TRY("wild attr", bpf(BPF_MAP_CREATE, (void *)8, 72));
  memset(big, 0, sizeof big);
  TRY("oversized attr", bpf(BPF_MAP_CREATE, big, sizeof big));
  TRY("zero attr", bpf(BPF_MAP_CREATE, big, 72));
  TRY("zero size", bpf(BPF_MAP_CREATE, big, 0));
  big[300] = 1;
  TRY("unknown tail bit", bpf(BPF_MAP_CREATE, big, 400));
  big[300] = 0;
  TRY("unknown command", bpf(9999, big, 72));
  ATTR, a.map_type = BPF_MAP_TYPE_ARRAY, a.key_size = 4, a.value_size = 8, a.max_entries = 1;
  TRY("short attr is enough", bpf(BPF_MAP_CREATE, &a, 16));
  ATTR, a.map_type = BPF_MAP_TYPE_ARRAY, a.key_size = 8, a.value_size = 8, a.max_entries = 1;
  TRY("array with 8 byte keys", bpf(BPF_MAP_CREATE, &a, sizeof a));
  ATTR, a.map_type = 1000, a.key_size = 4, a.value_size = 8, a.max_entries = 1;
  TRY("unknown map type", bpf(BPF_MAP_CREATE, &a, sizeof a));
  ATTR, a.map_type = BPF_MAP_TYPE_HASH, a.key_size = 4, a.value_size = 8, a.max_entries = 0;
  TRY("hash without entries", bpf(BPF_MAP_CREATE, &a, sizeof a));
  ATTR, a.map_type = BPF_MAP_TYPE_ARRAY, a.key_size = 4, a.value_size = 8, a.max_entries = 1, strcpy(a.map_name, "a b");
  TRY("bad name", bpf(BPF_MAP_CREATE, &a, sizeof a));
  ATTR, a.map_type = BPF_MAP_TYPE_RINGBUF, a.max_entries = 4097;
  TRY("ring size no power of two", bpf(BPF_MAP_CREATE, &a, sizeof a));
  ATTR, a.map_fd = map, a.key = 8, a.value = (uint64_t)&value;
  TRY("wild key", bpf(BPF_MAP_LOOKUP_ELEM, &a, sizeof a));
  ATTR, a.map_fd = map, a.key = (uint64_t)&key, a.value = 8;
  TRY("wild value", bpf(BPF_MAP_LOOKUP_ELEM, &a, sizeof a));
  ATTR, a.map_fd = 9999, a.key = (uint64_t)&key, a.value = (uint64_t)&value;
  TRY("closed fd", bpf(BPF_MAP_LOOKUP_ELEM, &a, sizeof a));
  ATTR, a.map_fd = 0, a.key = (uint64_t)&key, a.value = (uint64_t)&value;
  TRY("fd of no map", bpf(BPF_MAP_LOOKUP_ELEM, &a, sizeof a));
  key = 2;
  ATTR, a.map_fd = map, a.key = (uint64_t)&key, a.value = (uint64_t)&value;
  TRY("lookup out of range", bpf(BPF_MAP_LOOKUP_ELEM, &a, sizeof a));
  TRY("update out of range", bpf(BPF_MAP_UPDATE_ELEM, &a, sizeof a));
  key = 0;
  a.flags = 77;
  TRY("update with wild flags", bpf(BPF_MAP_UPDATE_ELEM, &a, sizeof a));
  a.flags = BPF_NOEXIST;
  TRY("array update noexist", bpf(BPF_MAP_UPDATE_ELEM, &a, sizeof a));
  ATTR, a.map_fd = map, a.key = (uint64_t)&key;
  TRY("array delete", bpf(BPF_MAP_DELETE_ELEM, &a, sizeof a));
  struct bpf_insn ok[] = {I(0xb7, 0, 0, 0, 0), I(0x95, 0, 0, 0, 0)}, bad[] = {I(0xff, 0, 0, 0, 0), I(0x95, 0, 0, 0, 0)};
  struct bpf_insn fall[] = {I(0xb7, 0, 0, 0, 0)}, helper[] = {I(0x85, 0, 0, 0, 9999), I(0x95, 0, 0, 0, 0)};
#define LOAD(p, n) ATTR, a.prog_type = BPF_PROG_TYPE_KPROBE, a.insns = (uint64_t)(p), a.insn_cnt = (n), a.license = (uint64_t)"GPL"
  LOAD(ok, 2);
  TRY("trivial program", bpf(BPF_PROG_LOAD, &a, sizeof a));
  LOAD(8, 2);
  TRY("wild instructions", bpf(BPF_PROG_LOAD, &a, sizeof a));
  LOAD(ok, 0);
  TRY("no instructions", bpf(BPF_PROG_LOAD, &a, sizeof a));
  LOAD(ok, 2), a.license = 8;
  TRY("wild license", bpf(BPF_PROG_LOAD, &a, sizeof a));
  LOAD(bad, 2);
  TRY("unknown opcode", bpf(BPF_PROG_LOAD, &a, sizeof a));
  LOAD(fall, 1);
  TRY("falls off the end", bpf(BPF_PROG_LOAD, &a, sizeof a));
  LOAD(helper, 2);
  TRY("unknown helper", bpf(BPF_PROG_LOAD, &a, sizeof a));
  int hash = map_create(BPF_MAP_TYPE_HASH, 4, 8, 2);
  struct bpf_insn unchecked[] = {I(0x62, 10, 0, -4, 0), I(0xbf, 2, 10, 0, 0), I(0x07, 2, 0, 0, -4), I(0x18, 1, 1, 0, hash), I(0, 0, 0, 0, 0),
                                 I(0x85, 0, 0, 0, 1), I(0x79, 0, 0, 0, 0), I(0x95, 0, 0, 0, 0)};
  LOAD(unchecked, 8);
  TRY("value used without a null check", bpf(BPF_PROG_LOAD, &a, sizeof a));
  struct bpf_insn wild[] = {I(0xb7, 1, 0, 0, 4096), I(0x79, 0, 1, 0, 0), I(0x95, 0, 0, 0, 0)};
  LOAD(wild, 3);
  TRY("number used as address", bpf(BPF_PROG_LOAD, &a, sizeof a));
  struct bpf_insn forever[] = {I(0xb7, 0, 0, 0, 0), I(0x05, 0, 0, -1, 0), I(0x95, 0, 0, 0, 0)};
  LOAD(forever, 3);
  TRY("endless loop", bpf(BPF_PROG_LOAD, &a, sizeof a));
  LOAD(ok, 2), a.prog_type = 9999;
  TRY("unknown program type", bpf(BPF_PROG_LOAD, &a, sizeof a));
  LOAD(ok, 2), a.log_level = 1;
  TRY("log level without buffer", bpf(BPF_PROG_LOAD, &a, sizeof a));
  LOAD(ok, 2), a.log_buf = 8, a.log_size = 4096;
  TRY("log buffer without level", bpf(BPF_PROG_LOAD, &a, sizeof a));
  LOAD(ok, 2), a.log_buf = 8, a.log_size = 4096, a.log_level = 1;
  TRY("wild log buffer", bpf(BPF_PROG_LOAD, &a, sizeof a));
  LOAD(ok, 2);
  int prog = bpf(BPF_PROG_LOAD, &a, sizeof a);
  ATTR, a.link_create.prog_fd = prog, a.link_create.target_fd = -1, a.link_create.attach_type = BPF_PERF_EVENT;
  TRY("link to fd -1", bpf(BPF_LINK_CREATE, &a, sizeof a));
  ATTR, a.link_create.prog_fd = 9999, a.link_create.attach_type = BPF_PERF_EVENT;
  TRY("link of closed program", bpf(BPF_LINK_CREATE, &a, sizeof a));
  ATTR, a.info.bpf_fd = prog, a.info.info = 8, a.info.info_len = 16;
  TRY("info to a wild pointer", bpf(BPF_OBJ_GET_INFO_BY_FD, &a, sizeof a));
  struct perf_event_attr p;
  memset(&p, 0, sizeof p);
  TRY("perf wild attr", syscall(SYS_perf_event_open, (void *)8, -1, 0, -1, 0));
  p.size = 1, p.type = uprobe_pmu();
  TRY("perf size 1", syscall(SYS_perf_event_open, &p, -1, 0, -1, 0));
  p.size = sizeof p;
  TRY("uprobe without path", syscall(SYS_perf_event_open, &p, -1, 0, -1, 0));
  p.config1 = 8;
  TRY("uprobe wild path", syscall(SYS_perf_event_open, &p, -1, 0, -1, 0));
  TRY("uprobe missing file", uprobe("/no/such/file", 0, 0, -1));
  TRY("uprobe on a directory", uprobe("/tmp", 0, 0, -1));
  TRY("uprobe offset beyond the file", uprobe("/bin/true", 1ull << 40, 0, -1));
  TRY("uprobe of a missing process", uprobe("/bin/true", 0, 0, 0x3ffffff));
  TRY("perf no pid no cpu", syscall(SYS_perf_event_open, &p, -1, -1, -1, 0));
  TRY("perf wild flags", syscall(SYS_perf_event_open, &p, -1, 0, -1, 1 << 20));
  TRY("perf wild cpu", syscall(SYS_perf_event_open, &p, -1, 99999, -1, 0));
  return 0;
}

static int object_cases(void) {
  union bpf_attr a;
  uint32_t key = 1;
  uint64_t value = 42, out = 0;
  int map = map_create(BPF_MAP_TYPE_ARRAY, 4, 8, 2), other = dup(map);
#define ELEM(fd, v) memset(&a, 0, sizeof a), a.map_fd = (fd), a.key = (uint64_t)&key, a.value = (uint64_t)(v)
  ELEM(map, &value);
  TRY("update", bpf(BPF_MAP_UPDATE_ELEM, &a, sizeof a));
  close(map);
  ELEM(other, &out);
  TRY("lookup through a dup after close", bpf(BPF_MAP_LOOKUP_ELEM, &a, sizeof a));
  printf("value %lu\n", out);
  pid_t p = fork();
  if (!p) { value = 43; ELEM(other, &value); _exit(bpf(BPF_MAP_UPDATE_ELEM, &a, sizeof a) < 0); }
  int st;
  waitpid(p, &st, 0);
  ELEM(other, &out);
  bpf(BPF_MAP_LOOKUP_ELEM, &a, sizeof a);
  printf("child exit %d, value %lu\n", WEXITSTATUS(st), out);
  int ring = map_create(BPF_MAP_TYPE_RINGBUF, 0, 0, 4096);
  struct pollfd pf = {.fd = ring, .events = POLLIN};
  printf("empty ring readable %d\n", poll(&pf, 1, 0));
  printf("consumer page %d\n", mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0) != MAP_FAILED);
  printf("producer pages %d\n", mmap(0, 4096 * 3, PROT_READ, MAP_SHARED, ring, 4096) != MAP_FAILED);
  printf("writable producer pages %d\n", mmap(0, 4096 * 3, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 4096) != MAP_FAILED);
  memset(&a, 0, sizeof a);
  a.map_type = BPF_MAP_TYPE_ARRAY, a.key_size = 4, a.value_size = 8, a.max_entries = 4, a.map_flags = BPF_F_MMAPABLE;
  int mm = bpf(BPF_MAP_CREATE, &a, sizeof a);
  uint64_t *m = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, mm, 0);
  printf("mmapable %d\n", m != MAP_FAILED);
  m[1] = 99;
  ELEM(mm, &out);
  bpf(BPF_MAP_LOOKUP_ELEM, &a, sizeof a);
  printf("mmapped value %lu\n", out);
  memset(&a, 0, sizeof a), a.map_fd = mm;
  result("freeze while mapped writable", bpf(BPF_MAP_FREEZE, &a, sizeof a));
  printf("cloexec %d\n", fcntl(other, F_GETFD));
  int prog = load_counter(other);
#define BIND(p, m, f) (memset(&a, 0, sizeof a), a.prog_bind_map.prog_fd = (p), a.prog_bind_map.map_fd = (m), a.prog_bind_map.flags = (f))
  BIND(prog, mm, 0);
  TRY("bind", bpf(BPF_PROG_BIND_MAP, &a, sizeof a));
  TRY("bind again", bpf(BPF_PROG_BIND_MAP, &a, sizeof a));
  BIND(prog, other, 0);
  TRY("bind a map it names", bpf(BPF_PROG_BIND_MAP, &a, sizeof a));
  BIND(prog, mm, 1);
  TRY("bind with flags", bpf(BPF_PROG_BIND_MAP, &a, sizeof a));
  BIND(prog, prog, 0);
  TRY("bind a program to a program", bpf(BPF_PROG_BIND_MAP, &a, sizeof a));
  BIND(other, mm, 0);
  TRY("bind a map to a map", bpf(BPF_PROG_BIND_MAP, &a, sizeof a));
  BIND(prog, 999, 0);
  TRY("bind a closed number", bpf(BPF_PROG_BIND_MAP, &a, sizeof a));
  struct bpf_prog_info info = {0};
  memset(&a, 0, sizeof a), a.info.bpf_fd = prog, a.info.info_len = sizeof info, a.info.info = (uint64_t)&info;
  TRY("info", bpf(BPF_OBJ_GET_INFO_BY_FD, &a, sizeof a));
  printf("maps of the program %u\n", info.nr_map_ids);
  return 0;
}

int main(int argc, char **argv) {
  struct rlimit r = {RLIM_INFINITY, RLIM_INFINITY};
  setrlimit(RLIMIT_MEMLOCK, &r);
  signal(SIGTERM, on_term);
  signal(SIGINT, on_term);
  if (argc > 4 && !strcmp(argv[1], "count")) return count(argc - 2, argv + 2);
  if (argc > 4 && !strcmp(argv[1], "pid")) {
    only_pid = atoi(argv[2]);
    char *args[] = {"entry", argv[3], argv[4]};
    return count(3, args);
  }
  if (argc > 4 && !strcmp(argv[1], "churn")) return churn(atoi(argv[2]), argv[3], strtoull(argv[4], 0, 0));
  if (argc > 1 && !strcmp(argv[1], "attr")) return attr_cases();
  if (argc > 1 && !strcmp(argv[1], "objects")) return object_cases();
  fprintf(stderr, "usage\n");
  return 2;
}
