// A tool that runs out of something. Makes maps of every size, programs and links while a resource is short, and prints
// what each step says; then the resource is back and everything is made again. Runs on the kernel or, preloaded, on bpftime.
//   faults RESOURCE AMOUNT early|late   RESOURCE = memory (KiB beyond what is mapped) | files | writes (bytes) | locked |
//                                       tasks | none; early: short from the first call on; late: after all was made once
// One line per step: NAME errno. The parts are headed SHORT and AGAIN.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define I(c, d, s, o, i) ((struct bpf_insn){.code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i})
#define LONG 4000

static int fds[64], open_fds;
static int tell(const char *what, long r) {
  printf("%s %d\n", what, r < 0 ? errno : 0);
  if (r > 0 && open_fds < 64) fds[open_fds++] = r;
  return r;
}
static long bpf(int cmd, union bpf_attr *a) { return syscall(SYS_bpf, cmd, a, sizeof *a); }

static int map(const char *name, int type, int key, int value, int entries) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_type = type, a.key_size = key, a.value_size = value, a.max_entries = entries;
  return tell(name, bpf(BPF_MAP_CREATE, &a));
}

static void use(int map, int n) {
  static char value[1 << 16];
  int failed = 0;
  for (uint32_t key = 0; map >= 0 && key < n && !failed; key++) {
    union bpf_attr a;
    memset(&a, 0, sizeof a);
    a.map_fd = map, a.key = (uint64_t)&key, a.value = (uint64_t)value;
    if (bpf(BPF_MAP_UPDATE_ELEM, &a) < 0 || bpf(BPF_MAP_LOOKUP_ELEM, &a) < 0) failed = errno;
  }
  if (failed) printf("  use %d\n", failed);
}

static int load(const char *name, int map, int n) {
  static struct bpf_insn p[LONG + 8];
  int at = 0;
  p[at++] = I(0x18, 1, 1, 0, map), p[at++] = I(0, 0, 0, 0, 0);
  p[at++] = I(0x62, 10, 0, -4, 0), p[at++] = I(0xbf, 2, 10, 0, 0), p[at++] = I(0x07, 2, 0, 0, -4);
  p[at++] = I(0x85, 0, 0, 0, 1), p[at++] = I(0xb7, 0, 0, 0, 0);
  while (at < n) p[at] = I(0x07, 0, 0, 0, at), at++;
  p[at++] = I(0x95, 0, 0, 0, 0);
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.prog_type = BPF_PROG_TYPE_KPROBE, a.insns = (uint64_t)p, a.insn_cnt = at, a.license = (uint64_t)"GPL";
  return tell(name, bpf(BPF_PROG_LOAD, &a));
}

static int event(int type, uint64_t config, uint64_t path, uint64_t offset) {
  struct perf_event_attr a;
  memset(&a, 0, sizeof a);
  a.size = sizeof a, a.type = type, a.config = config, a.config1 = path, a.config2 = offset;
  if (type == PERF_TYPE_SOFTWARE) a.sample_type = PERF_SAMPLE_RAW, a.sample_period = a.wakeup_events = 1;
  return syscall(SYS_perf_event_open, &a, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);
}

static int uprobe_type(void) {
  int type = 8;
  FILE *f = fopen("/sys/bus/event_source/devices/uprobe/type", "r");
  if (f && fscanf(f, "%d", &type) != 1) type = 8;
  if (f) fclose(f);
  return type;
}

static void everything(uint64_t offset) {
  static int uprobe;
  if (!uprobe) uprobe = uprobe_type();
  int small = map("array", BPF_MAP_TYPE_ARRAY, 4, 8, 16);
  use(small, 16);
  use(map("large array", BPF_MAP_TYPE_ARRAY, 4, 4096, 4096), 8);
  use(map("hash", BPF_MAP_TYPE_HASH, 4, 8, 10000), 100);
  use(map("percpu hash", BPF_MAP_TYPE_PERCPU_HASH, 4, 8, 1000), 100);
  use(map("lru hash", BPF_MAP_TYPE_LRU_HASH, 4, 8, 1000), 100);
  int ring = map("ring", BPF_MAP_TYPE_RINGBUF, 0, 0, 1 << 20);
  if (ring >= 0) {
    void *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0);
    tell("ring memory", m == MAP_FAILED ? -1 : 0);
    if (m != MAP_FAILED) munmap(m, 4096);
  }
  map("perf array", BPF_MAP_TYPE_PERF_EVENT_ARRAY, 4, 4, 4);
  int buffer = tell("buffer", event(PERF_TYPE_SOFTWARE, PERF_COUNT_SW_BPF_OUTPUT, 0, 0));
  if (buffer >= 0) {
    void *m = mmap(NULL, 65 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, buffer, 0);
    tell("buffer memory", m == MAP_FAILED ? -1 : 0);
    if (m != MAP_FAILED) munmap(m, 65 * 4096);
  }
  int prog = small < 0 ? -1 : load("program", small, 0);
  if (small >= 0) load("long program", small, LONG);
  int ev = tell("event", event(uprobe, 0, (uint64_t) "/proc/self/exe", offset));
  if (ev >= 0 && prog >= 0) tell("attach", ioctl(ev, PERF_EVENT_IOC_SET_BPF, prog));
  if (ev >= 0 && prog >= 0) tell("enable", ioctl(ev, PERF_EVENT_IOC_ENABLE, 0));
  while (open_fds > 0) close(fds[--open_fds]);
}

static unsigned long mapped(void) {
  unsigned long pages = 0;
  FILE *f = fopen("/proc/self/statm", "r");
  if (fscanf(f, "%lu", &pages) != 1) pages = 0;
  fclose(f);
  return pages * 4096;
}

int main(int argc, char **argv) {
  const char *what = argc > 4 ? argv[1] : "";
  long amount = argc > 4 ? atol(argv[2]) : 0;
  uint64_t offset = argc > 4 ? strtoull(argv[4], 0, 0) : 0;
  int resource = !strcmp(what, "memory") ? RLIMIT_AS : !strcmp(what, "files") ? RLIMIT_NOFILE
      : !strcmp(what, "writes") ? RLIMIT_FSIZE : !strcmp(what, "locked") ? RLIMIT_MEMLOCK
      : !strcmp(what, "tasks") ? RLIMIT_NPROC : -1;
  struct rlimit before, less;
  static char buffer[1 << 16];
  setvbuf(stdout, buffer, _IOFBF, sizeof buffer); // a full disk or a limit on files must not lose what is said
  if (!strcmp(argv[3], "late")) everything(offset);
  puts("SHORT");
  if (resource >= 0) {
    getrlimit(resource, &before);
    less = before, less.rlim_cur = resource == RLIMIT_AS ? mapped() + amount * 1024 : amount;
    setrlimit(resource, &less);
  }
  everything(offset);
  if (resource >= 0) setrlimit(resource, &before);
  puts("AGAIN");
  everything(offset);
  puts("END");
  return 0;
}
