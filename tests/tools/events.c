// A tool of clock events and links.
//   events sample HZ PID       CPU_CLOCK by frequency, on every CPU (PID -1) or for one process; on SIGTERM: PID p SAMPLES n
//                              PERIOD ns per process, then END
//   events tick NS             CPU_CLOCK by period on CPU 0 only; on SIGTERM: TICKS n PID p
//   events errno               what perf_event_open and its ioctls answer, one result per line
//   events counted             what they answer for events that only the kernel sees
//   events query               what PERF_EVENT_IOC_QUERY_BPF answers
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

#define I(c, d, s, o, i) ((struct bpf_insn){.code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i})
static void die(const char *what) { fprintf(stderr, "%s: %s\n", what, strerror(errno)); exit(1); }
static long bpf(int cmd, union bpf_attr *a) { return syscall(SYS_bpf, cmd, a, sizeof *a); }

struct seen { uint64_t count, period; };

static int map_create(void) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_type = BPF_MAP_TYPE_HASH, a.key_size = 4, a.value_size = sizeof(struct seen), a.max_entries = 1024;
  int fd = bpf(BPF_MAP_CREATE, &a);
  if (fd < 0) die("MAP_CREATE");
  return fd;
}

// seen[pid].count += 1, seen[pid].period = ctx->sample_period
static int load(int map) {
  struct bpf_insn p[] = {
      I(0x79, 7, 1, 168, 0),
      I(0x85, 0, 0, 0, 14), I(0x77, 0, 0, 0, 32), I(0x63, 10, 0, -4, 0),
      I(0xbf, 2, 10, 0, 0), I(0x07, 2, 0, 0, -4), I(0x18, 1, 1, 0, map), I(0, 0, 0, 0, 0), I(0x85, 0, 0, 0, 1),
      I(0x15, 0, 0, 4, 0),
      I(0xb7, 1, 0, 0, 1), I(0xdb, 0, 1, 0, 0), I(0x7b, 0, 7, 8, 0), I(0x05, 0, 0, 9, 0),
      I(0x7a, 10, 0, -24, 1), I(0x7b, 10, 7, -16, 0),
      I(0xbf, 2, 10, 0, 0), I(0x07, 2, 0, 0, -4), I(0xbf, 3, 10, 0, 0), I(0x07, 3, 0, 0, -24), I(0xb7, 4, 0, 0, 0),
      I(0x18, 1, 1, 0, map), I(0, 0, 0, 0, 0), I(0x85, 0, 0, 0, 2),
      I(0xb7, 0, 0, 0, 0), I(0x95, 0, 0, 0, 0)};
  p[13].off = 10;
  static char log[65536];
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.prog_type = BPF_PROG_TYPE_PERF_EVENT, a.insns = (uint64_t)p, a.insn_cnt = sizeof p / sizeof *p;
  a.license = (uint64_t)"GPL", a.log_buf = (uint64_t)log, a.log_size = sizeof log, a.log_level = 1;
  int fd = bpf(BPF_PROG_LOAD, &a);
  if (fd < 0) fprintf(stderr, "%s", log), die("PROG_LOAD");
  return fd;
}

static int clock_event(uint64_t value, int freq, int pid, int cpu) {
  struct perf_event_attr a;
  memset(&a, 0, sizeof a);
  a.size = sizeof a, a.type = PERF_TYPE_SOFTWARE, a.config = PERF_COUNT_SW_CPU_CLOCK, a.sample_period = value, a.freq = freq;
  return syscall(SYS_perf_event_open, &a, pid, cpu, -1, PERF_FLAG_FD_CLOEXEC);
}

static void start(uint64_t value, int freq, int pid, int cpu, int prog) {
  int fd = clock_event(value, freq, pid, cpu);
  if (fd < 0) die("perf_event_open");
  if (ioctl(fd, PERF_EVENT_IOC_SET_BPF, prog) < 0) die("SET_BPF");
  if (ioctl(fd, PERF_EVENT_IOC_ENABLE, 0) < 0) die("ENABLE");
}

static volatile int stop;
static void on_term(int s) { (void)s; stop = 1; }

static void show(int map) {
  uint32_t key, *last = 0;
  struct seen v;
  union bpf_attr a;
  for (;; last = &key) {
    uint32_t next;
    memset(&a, 0, sizeof a);
    a.map_fd = map, a.key = (uint64_t)last, a.next_key = (uint64_t)&next;
    if (bpf(BPF_MAP_GET_NEXT_KEY, &a) < 0) break;
    key = next;
    memset(&a, 0, sizeof a);
    a.map_fd = map, a.key = (uint64_t)&key, a.value = (uint64_t)&v;
    if (bpf(BPF_MAP_LOOKUP_ELEM, &a) == 0) printf("PID %u SAMPLES %lu PERIOD %lu\n", key, v.count, v.period);
  }
  puts("END");
}

static void wait_and_show(int map) {
  puts("READY");
  fflush(stdout);
  while (!stop) pause();
  show(map);
}

static void errno_of(const char *name, struct perf_event_attr *a, int pid, int cpu) {
  int fd = syscall(SYS_perf_event_open, a, pid, cpu, -1, 0);
  printf("%s %d\n", name, fd < 0 ? errno : 0);
  if (fd < 0) return;
  uint64_t values[] = {1000, 0, ~0ull};
  for (int i = 0; i < 3; i++)
    printf("  period %ld %d\n", (long)values[i], ioctl(fd, PERF_EVENT_IOC_PERIOD, &values[i]) < 0 ? errno : 0);
  printf("  reset %d\n", ioctl(fd, PERF_EVENT_IOC_RESET, 0) < 0 ? errno : 0);
  printf("  refresh %d\n", ioctl(fd, PERF_EVENT_IOC_REFRESH, 1) < 0 ? errno : 0);
  printf("  wild %d\n", ioctl(fd, 0x24ff, 0) < 0 ? errno : 0);
  close(fd);
}

static void counted(void) {
  struct { const char *name; int type; uint64_t config, value; } t[] = {
      {"page faults", PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS, 100},
      {"minor faults", PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS_MIN, 1},
      {"major faults", PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS_MAJ, 1},
      {"faults that are counted", PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS, 0},
      {"context switches", PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CONTEXT_SWITCHES, 1000},
      {"migrations", PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_MIGRATIONS, 1},
      {"alignment faults", PERF_TYPE_SOFTWARE, PERF_COUNT_SW_ALIGNMENT_FAULTS, 1},
      {"emulation faults", PERF_TYPE_SOFTWARE, PERF_COUNT_SW_EMULATION_FAULTS, 1},
      {"nothing", PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY, 1}};
  for (unsigned i = 0; i < sizeof t / sizeof *t; i++) {
    struct perf_event_attr a;
    memset(&a, 0, sizeof a);
    a.size = sizeof a, a.type = t[i].type, a.config = t[i].config, a.sample_period = t[i].value;
    errno_of(t[i].name, &a, -1, 0);
  }
}

static int tracepoint(void) {
  FILE *f = fopen("/sys/kernel/tracing/events/raw_syscalls/sys_exit/id", "r");
  struct perf_event_attr a;
  memset(&a, 0, sizeof a);
  int id = 0;
  if (!f || fscanf(f, "%d", &id) != 1) die("id");
  fclose(f);
  a.size = sizeof a, a.type = PERF_TYPE_TRACEPOINT, a.config = id, a.sample_period = 1;
  int fd = syscall(SYS_perf_event_open, &a, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);
  if (fd < 0) die("perf_event_open");
  return fd;
}

static void ask(const char *name, int fd, unsigned room) {
  uint32_t b[70];
  memset(b, 0xff, sizeof b);
  b[0] = room;
  int e = ioctl(fd, PERF_EVENT_IOC_QUERY_BPF, b) < 0 ? errno : 0;
  printf("%s %d count %d ids %d%d\n", name, e, (int)b[1], b[2] != ~0u && b[2] != 0, b[3] != ~0u && b[3] != 0);
}

static void query(void) {
  struct bpf_insn p[] = {I(0xb7, 0, 0, 0, 0), I(0x95, 0, 0, 0, 0)};
  union bpf_attr l;
  memset(&l, 0, sizeof l);
  l.prog_type = BPF_PROG_TYPE_TRACEPOINT, l.insns = (uint64_t)p, l.insn_cnt = 2, l.license = (uint64_t)"GPL";
  int one = tracepoint(), two = tracepoint(), clock = clock_event(1000000000, 0, -1, 0);
  ask("none", one, 4);
  ioctl(one, PERF_EVENT_IOC_SET_BPF, bpf(BPF_PROG_LOAD, &l));
  ask("one", one, 4);
  ask("by the other event", two, 4);
  ioctl(two, PERF_EVENT_IOC_SET_BPF, bpf(BPF_PROG_LOAD, &l));
  ask("two", one, 4);
  ask("two without room", one, 0);
  ask("two with room for one", one, 1);
  ask("too much room", one, 65);
  ask("a clock", clock, 4);
  printf("wild %d\n", ioctl(one, PERF_EVENT_IOC_QUERY_BPF, 8) < 0 ? errno : 0);
  struct perf_event_attr a;
  memset(&a, 0, sizeof a);
  a.size = sizeof a, a.type = PERF_TYPE_SOFTWARE, a.sample_period = 1;
  printf("modify %d\n", ioctl(clock, PERF_EVENT_IOC_MODIFY_ATTRIBUTES, &a) < 0 ? errno : 0);
}

static void errnos(void) {
  struct { const char *name; int type; uint64_t config, value; int freq, cpu; } t[] = {
      {"cycles", PERF_TYPE_HARDWARE, PERF_COUNT_HW_CPU_CYCLES, 1000000, 0, 0},
      {"cache", PERF_TYPE_HW_CACHE, 0, 100, 0, 0},
      {"raw", PERF_TYPE_RAW, 0, 100, 0, 0},
      {"unknown software event", PERF_TYPE_SOFTWARE, 99, 1, 0, 0},
      {"unknown type", 9999, 0, 1, 0, 0},
      {"clock that counts", PERF_TYPE_SOFTWARE, 0, 0, 0, 0},
      {"clock of 99 Hz", PERF_TYPE_SOFTWARE, 0, 99, 1, 0},
      {"task clock of 99 Hz", PERF_TYPE_SOFTWARE, 1, 99, 1, 0},
      {"clock of 0 Hz", PERF_TYPE_SOFTWARE, 0, 0, 1, 0},
      {"clock of 1 GHz", PERF_TYPE_SOFTWARE, 0, 1000000000, 1, 0},
      {"negative period", PERF_TYPE_SOFTWARE, 0, 1ull << 63, 0, 0},
      {"wild cpu", PERF_TYPE_SOFTWARE, 0, 99, 1, 99999}};
  for (unsigned i = 0; i < sizeof t / sizeof *t; i++) {
    struct perf_event_attr a;
    memset(&a, 0, sizeof a);
    a.size = sizeof a, a.type = t[i].type, a.config = t[i].config, a.sample_period = t[i].value, a.freq = t[i].freq;
    errno_of(t[i].name, &a, -1, t[i].cpu);
  }
}

int main(int argc, char **argv) {
  struct rlimit r = {RLIM_INFINITY, RLIM_INFINITY};
  setrlimit(RLIMIT_MEMLOCK, &r);
  signal(SIGTERM, on_term);
  const char *what = argc > 1 ? argv[1] : "";
  if (!strcmp(what, "errno")) return errnos(), 0;
  if (!strcmp(what, "counted")) return counted(), 0;
  if (!strcmp(what, "query")) return query(), 0;
  int map = map_create(), prog = load(map);
  if (argc > 3 && !strcmp(what, "sample")) {
    int pid = atoi(argv[3]);
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    for (int c = 0; c < (pid > 0 ? 1 : cpus); c++) start(atol(argv[2]), 1, pid, pid > 0 ? -1 : c, prog);
  } else if (argc > 2 && !strcmp(what, "tick")) {
    start(atol(argv[2]), 0, -1, 0, prog);
  } else {
    fprintf(stderr, "usage\n");
    return 2;
  }
  wait_and_show(map);
  return 0;
}
