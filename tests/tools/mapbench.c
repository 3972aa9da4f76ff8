// Nanoseconds per operation on maps inside of a program, by BPF_PROG_TEST_RUN: on the kernel or, preloaded, on bpftime.
//   mapbench             one line per operation: NAME ns, median of runs, less than what the loop itself costs
//   mapbench threads N   operations per microsecond of N threads on one map, all with the same keys in the same order, or each
//                        with keys of its own
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define I(c, d, s, o, i) ((struct bpf_insn){.code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i})
enum { UNROLLED = 16, ROUNDS = 512, OPS = UNROLLED * ROUNDS, KEYS = 1024, RUNS = 41, RING = 4 << 20 };

static void die(const char *what) { fprintf(stderr, "%s: %s\n", what, strerror(errno)); exit(1); }

static int map_of(int type, int key, int value, int entries) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_type = type, a.key_size = key, a.value_size = value, a.max_entries = entries;
  int fd = syscall(SYS_bpf, BPF_MAP_CREATE, &a, sizeof a);
  if (fd < 0) die("BPF_MAP_CREATE");
  static uint64_t values[1024];
  for (uint64_t k = 0; key && type != BPF_MAP_TYPE_ARRAY && type != BPF_MAP_TYPE_PERCPU_ARRAY && k < KEYS; k++) {
    memset(&a, 0, sizeof a);
    a.map_fd = fd, a.key = (uint64_t)&k, a.value = (uint64_t)values;
    if (syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &a, sizeof a)) die("BPF_MAP_UPDATE_ELEM");
  }
  return fd;
}

enum op { NOTHING, LOOKUP, UPDATE, DELETE_INSERT, RESERVE_SUBMIT, PUSH_POP };

// r8 goes through the keys; its value is the key at fp-8. The value is at fp-16.
static int emit_op(struct bpf_insn *p, enum op op, int map, int keys_from) {
  int n = 0;
#define E(...) p[n++] = I(__VA_ARGS__)
#define MAP E(0x18, 1, 1, 0, map), E(0, 0, 0, 0, 0)
#define CALLS(id) MAP, E(0xbf, 2, 10, 0, 0), E(0x07, 2, 0, 0, -8), E(0xbf, 3, 10, 0, 0), E(0x07, 3, 0, 0, -16), E(0xb7, 4, 0, 0, 0), E(0x85, 0, 0, 0, id)
  E(0x07, 8, 0, 0, 1), E(0x57, 8, 0, 0, KEYS - 1), E(0x47, 8, 0, 0, keys_from), E(0x7b, 10, 8, -8, 0);
  switch (op) {
  case NOTHING: break;
  case LOOKUP: CALLS(1); E(0x15, 0, 0, 2, 0); E(0x79, 1, 0, 0, 0); E(0x0f, 9, 1, 0, 0); break;
  case UPDATE: CALLS(2); break;
  case DELETE_INSERT: CALLS(3); CALLS(2); break;
  case PUSH_POP: MAP, E(0xbf, 2, 10, 0, 0), E(0x07, 2, 0, 0, -16), E(0xb7, 3, 0, 0, 0), E(0x85, 0, 0, 0, 87); MAP, E(0xbf, 2, 10, 0, 0), E(0x07, 2, 0, 0, -16), E(0x85, 0, 0, 0, 88); break;
  case RESERVE_SUBMIT: MAP, E(0xb7, 2, 0, 0, 64), E(0xb7, 3, 0, 0, 0), E(0x85, 0, 0, 0, 131), E(0x15, 0, 0, 4, 0), E(0x7b, 0, 8, 0, 0), E(0xbf, 1, 0, 0, 0), E(0xb7, 2, 0, 0, 1), E(0x85, 0, 0, 0, 132); break;
  }
  return n;
}

// Keys are KEYS in a row, from a multiple of KEYS on.
static int program_from(enum op op, int map, int keys_from) {
  static struct bpf_insn p[4096];
  int n = 0;
  E(0xb7, 7, 0, 0, 0), E(0xb7, 8, 0, 0, 0), E(0xb7, 9, 0, 0, 0), E(0x7a, 10, 0, -8, 0), E(0x7a, 10, 0, -16, 1);
  int top = n;
  for (int i = 0; i < UNROLLED; i++) n += emit_op(p + n, op, map, keys_from);
  E(0x07, 7, 0, 0, 1);
  int back = top - n - 1;
  E(0xa5, 7, 0, back, ROUNDS), E(0xbf, 0, 9, 0, 0), E(0x95, 0, 0, 0, 0);
  static char log[1 << 20];
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT, a.insns = (uint64_t)p, a.insn_cnt = n, a.license = (uint64_t)"GPL";
  int fd = syscall(SYS_bpf, BPF_PROG_LOAD, &a, sizeof a);
  if (fd < 0) {
    a.log_buf = (uint64_t)log, a.log_size = sizeof log, a.log_level = 1;
    syscall(SYS_bpf, BPF_PROG_LOAD, &a, sizeof a);
    fprintf(stderr, "%.4000s\n", log), die("BPF_PROG_LOAD");
  }
  return fd;
}

static int program(enum op op, int map) { return program_from(op, map, 0); }

static uint64_t now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000ull + t.tv_nsec; }

static void run(int prog) {
  uint64_t ctx[2] = {0};
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.test.prog_fd = prog, a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = sizeof ctx;
  if (syscall(SYS_bpf, BPF_PROG_TEST_RUN, &a, sizeof a)) die("BPF_PROG_TEST_RUN");
}

static int by_size(const void *a, const void *b) { double x = *(double *)a, y = *(double *)b; return x < y ? -1 : x > y; }

// The ring is emptied between the runs.
static double ns_per_op(int prog, volatile uint64_t *consumer, volatile uint64_t *producer) {
  double ns[RUNS];
  for (int i = 0; i < RUNS; i++) {
    uint64_t t = now();
    run(prog);
    ns[i] = (double)(now() - t) / OPS;
    if (consumer) *consumer = *producer;
  }
  qsort(ns, RUNS, sizeof *ns, by_size);
  return ns[RUNS / 2];
}

static double loop_costs;

static void ring_of(int map, volatile uint64_t **consumer, volatile uint64_t **producer) {
  *consumer = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, map, 0), *producer = mmap(0, 4096, PROT_READ, MAP_SHARED, map, 4096);
  if (*consumer == MAP_FAILED || *producer == MAP_FAILED) die("mmap");
}

static void report(const char *name, enum op op, int map) {
  volatile uint64_t *consumer = 0, *producer = 0;
  if (op == RESERVE_SUBMIT) ring_of(map, &consumer, &producer);
  double ns = ns_per_op(program(op, map), consumer, producer);
  if (op == NOTHING) loop_costs = ns;
  printf("%s %.1f\n", name, op == NOTHING ? ns : ns - loop_costs);
}

static volatile int go, stop;
static volatile uint64_t *ring_consumer, *ring_producer;

// The ring is emptied after each run.
static void *hammer(void *arg) {
  long done = 0;
  while (!go) ;
  while (!stop) {
    run((int)(long)arg), done += OPS;
    if (ring_consumer) *ring_consumer = *ring_producer;
  }
  return (void *)done;
}

enum { THREADS = 64 };

// Thread i runs program i % count.
static void threads_of(const char *name, const int *progs, int count, int n) {
  pthread_t t[THREADS];
  long total = 0;
  go = stop = 0;
  for (int i = 0; i < n; i++) pthread_create(&t[i], 0, hammer, (void *)(long)progs[i % count]);
  uint64_t start = now();
  go = 1;
  usleep(600000);
  stop = 1;
  for (int i = 0; i < n; i++) { void *done; pthread_join(t[i], &done), total += (long)done; }
  printf("%s %.1f\n", name, total * 1e3 / (now() - start));
}

static void threads(const char *name, int prog, int n) { threads_of(name, &prog, 1, n); }

// Up to eight threads have keys of their own; the map has room for those of eight.
static void threads_apart(const char *name, enum op op, int map, int n) {
  int progs[8];
  for (int i = 0; i < 8; i++) progs[i] = program_from(op, map, i * KEYS);
  threads_of(name, progs, 8, n);
}

int main(int argc, char **argv) {
  int array = map_of(BPF_MAP_TYPE_ARRAY, 4, 8, KEYS), pa = map_of(BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, KEYS);
  int hash = map_of(BPF_MAP_TYPE_HASH, 4, 8, 8192), ph = map_of(BPF_MAP_TYPE_PERCPU_HASH, 4, 8, 8192), lru = map_of(BPF_MAP_TYPE_LRU_HASH, 4, 8, 8192);
  if (argc == 3 && !strcmp(argv[1], "threads")) {
    int n = atoi(argv[2]);
    if (n < 1 || n > THREADS) die("threads");
    int ring = map_of(BPF_MAP_TYPE_RINGBUF, 0, 0, RING);
    threads("array_lookup", program(LOOKUP, array), n), threads("percpu_array_lookup", program(LOOKUP, pa), n);
    threads("hash_lookup", program(LOOKUP, hash), n);
    threads("hash_update", program(UPDATE, hash), n), threads("percpu_hash_update", program(UPDATE, ph), n);
    threads_apart("hash_update_own_keys", UPDATE, map_of(BPF_MAP_TYPE_HASH, 4, 8, 8192), n), threads_apart("hash_delete_insert_own_keys", DELETE_INSERT, map_of(BPF_MAP_TYPE_HASH, 4, 8, 16384), n);
    ring_of(ring, &ring_consumer, &ring_producer);
    threads("ringbuf_reserve_submit_64B", program(RESERVE_SUBMIT, ring), n);
    return 0;
  }
  report("loop", NOTHING, 0);
  report("array_lookup", LOOKUP, array), report("percpu_array_lookup", LOOKUP, pa);
  report("hash_lookup", LOOKUP, hash), report("hash_lookup_8B_key", LOOKUP, map_of(BPF_MAP_TYPE_HASH, 8, 8, 8192));
  report("hash_update", UPDATE, hash), report("hash_delete_insert", DELETE_INSERT, hash);
  report("percpu_hash_lookup", LOOKUP, ph), report("percpu_hash_update", UPDATE, ph);
  report("lru_hash_lookup", LOOKUP, lru), report("lru_hash_update", UPDATE, lru);
  report("ringbuf_reserve_submit_64B", RESERVE_SUBMIT, map_of(BPF_MAP_TYPE_RINGBUF, 0, 0, RING));
  report("queue_push_pop", PUSH_POP, map_of(BPF_MAP_TYPE_QUEUE, 0, 8, 64));
}
