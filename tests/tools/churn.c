// Threads that count, each under a key of its own, while elements with other keys come and go in the same chains.
//   churn THREADS RUNS   prints what went wrong, and whether all counts are right
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define I(c, d, s, o, i) ((struct bpf_insn){.code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i})
enum { ROUNDS = 64, CPUS = 1024, ENTRIES = 16 };

static void die(const char *what) { fprintf(stderr, "%s: %s\n", what, strerror(errno)); exit(1); }

static int map_of(int type) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_type = type, a.key_size = 8, a.value_size = 8, a.max_entries = ENTRIES;
  int fd = syscall(SYS_bpf, BPF_MAP_CREATE, &a, sizeof a);
  if (fd < 0) die("BPF_MAP_CREATE");
  return fd;
}

// r6: the thread's id, r7: round, r8: errors. The stable key is at fp-8, one that comes and goes at fp-16, a value at fp-24.
static int program(int counts, int others) {
  static struct bpf_insn p[256];
  int n = 0;
#define E(...) p[n++] = I(__VA_ARGS__)
#define CALL(map, key, id) E(0x18, 1, 1, 0, map), E(0, 0, 0, 0, 0), E(0xbf, 2, 10, 0, 0), E(0x07, 2, 0, 0, key), E(0xbf, 3, 10, 0, 0), E(0x07, 3, 0, 0, -24), E(0xb7, 4, 0, 0, 0), E(0x85, 0, 0, 0, id)
  E(0x85, 0, 0, 0, 14), E(0xbf, 6, 0, 0, 0), E(0x67, 6, 0, 0, 32), E(0x77, 6, 0, 0, 32), E(0x7b, 10, 6, -8, 0), E(0xb7, 7, 0, 0, 0), E(0xb7, 8, 0, 0, 0);
  int top = n;
  // @[tid]++
  E(0x7a, 10, 0, -24, 1);
  CALL(counts, -8, 1), E(0x15, 0, 0, 3, 0), E(0x79, 1, 0, 0, 0), E(0x07, 1, 0, 0, 1), E(0x7b, 10, 1, -24, 0);
  CALL(counts, -8, 2), E(0x15, 0, 0, 1, 0), E(0x47, 8, 0, 0, 1);
  // A key of this thread's own: not there, then there with its value, then not.
  E(0xbf, 1, 7, 0, 0), E(0x57, 1, 0, 0, 7), E(0x67, 1, 0, 0, 32), E(0x4f, 1, 6, 0, 0), E(0x07, 1, 0, 0, 1), E(0x67, 1, 0, 0, 8), E(0x7b, 10, 1, -16, 0);
  E(0x27, 1, 0, 0, 3), E(0x7b, 10, 1, -24, 0), E(0xbf, 9, 1, 0, 0);
  for (int which = 0; which < 2; which++) {
    int map = which ? counts : others;
    CALL(map, -16, 1), E(0x15, 0, 0, 1, 0), E(0x47, 8, 0, 0, 2);
    CALL(map, -16, 2), E(0x15, 0, 0, 1, 0), E(0x47, 8, 0, 0, 4);
    CALL(map, -16, 1), E(0x55, 0, 0, 2, 0), E(0x47, 8, 0, 0, 8), E(0x05, 0, 0, 3, 0), E(0x79, 1, 0, 0, 0), E(0x1d, 1, 9, 1, 0), E(0x47, 8, 0, 0, 16);
    CALL(map, -16, 3), E(0x15, 0, 0, 1, 0), E(0x47, 8, 0, 0, 32);
  }
  E(0x07, 7, 0, 0, 1);
  int back = top - n - 1;
  E(0xa5, 7, 0, back, ROUNDS), E(0xbf, 0, 8, 0, 0), E(0x95, 0, 0, 0, 0);
  static char log[1 << 18];
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT, a.insns = (uint64_t)p, a.insn_cnt = n, a.license = (uint64_t) "GPL";
  int fd = syscall(SYS_bpf, BPF_PROG_LOAD, &a, sizeof a);
  if (fd < 0) {
    a.log_buf = (uint64_t)log, a.log_size = sizeof log, a.log_level = 1;
    syscall(SYS_bpf, BPF_PROG_LOAD, &a, sizeof a);
    fprintf(stderr, "%.4000s\n", log), die("BPF_PROG_LOAD");
  }
  return fd;
}

static int prog, runs;
static unsigned wrong;

struct thread { pthread_t thread; uint64_t tid; };

static void *work(void *arg) {
  struct thread *me = arg;
  me->tid = syscall(SYS_gettid);
  for (int i = 0; i < runs; i++) {
    union bpf_attr a;
    memset(&a, 0, sizeof a);
    a.test.prog_fd = prog;
    if (syscall(SYS_bpf, BPF_PROG_TEST_RUN, &a, sizeof a)) die("BPF_PROG_TEST_RUN");
    if (a.test.retval) __atomic_fetch_or(&wrong, a.test.retval, __ATOMIC_RELAXED);
  }
  return 0;
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 4;
  runs = argc > 2 ? atoi(argv[2]) : 100;
  int counts = map_of(BPF_MAP_TYPE_PERCPU_HASH), others = map_of(BPF_MAP_TYPE_HASH);
  prog = program(counts, others);
  static struct thread all[8];
  if (threads > 8) return 1;
  for (int i = 0; i < threads; i++) pthread_create(&all[i].thread, 0, work, &all[i]);
  int exact = 0, left = 0;
  for (int i = 0; i < threads; i++) pthread_join(all[i].thread, 0);
  static uint64_t values[CPUS];
  uint64_t key = 0, next = 0;
  union bpf_attr a;
  for (int i = 0; i < threads; i++) {
    memset(&a, 0, sizeof a);
    a.map_fd = counts, a.key = (uint64_t)&all[i].tid, a.value = (uint64_t)values;
    memset(values, 0, sizeof values);
    if (syscall(SYS_bpf, BPF_MAP_LOOKUP_ELEM, &a, sizeof a)) die("BPF_MAP_LOOKUP_ELEM");
    uint64_t sum = 0;
    for (int cpu = 0; cpu < CPUS; cpu++) sum += values[cpu];
    exact += sum == (uint64_t)runs * ROUNDS;
    if (sum != (uint64_t)runs * ROUNDS) printf("counted %lu of %d\n", sum, runs * ROUNDS);
  }
  for (int which = 0; which < 2; which++) {
    memset(&a, 0, sizeof a);
    a.map_fd = which ? others : counts, a.next_key = (uint64_t)&next;
    while (!syscall(SYS_bpf, BPF_MAP_GET_NEXT_KEY, &a, sizeof a)) left++, key = next, a.key = (uint64_t)&key;
  }
  printf("wrong %u, exact %d, left %d\n", wrong, exact, left);
}
