// What maps answer, through bpf(2) and from programs. Raw system calls; runs on the kernel or, preloaded, on bpftime, and
// must print the same.
//   maps create           every type and template, wrong flags and sizes: one result per line
//   maps batch            batch commands on every type
//   maps programs         helpers on maps, by programs that BPF_PROG_TEST_RUN runs
//   maps inner            maps in maps and tail calls, by such programs
//   maps storage          task storage by pidfd
//   maps watch PATH OFF   counts calls of a function through a map-in-map and a tail call; commands on stdin:
//                         inner K | none | tail K | untail | counts | end
//   maps ring PATH OFF    a program that takes long between reserve and submit; for each line on stdin what was consumed
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define I(c, d, s, o, i) ((struct bpf_insn){.code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i})
#define LD_MAP(r, fd) I(0x18, r, 1, 0, fd), I(0, 0, 0, 0, 0)
#define CALL(n) I(0x85, 0, 0, 0, n)
#define MOV(d, s) I(0xbf, d, s, 0, 0)
#define MOVI(d, i) I(0xb7, d, 0, 0, i)
#define ADDI(d, i) I(0x07, d, 0, 0, i)
#define EXIT I(0x95, 0, 0, 0, 0)

static long bpf(int cmd, union bpf_attr *a) { long r = syscall(SYS_bpf, cmd, a, sizeof *a); return r < 0 ? -errno : r; }
static void die(const char *what) { fprintf(stderr, "%s: %s\n", what, strerror(errno)); exit(1); }

struct def { int type, key, value, entries, flags, inner, btf; };

static long create(struct def d) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_type = d.type, a.key_size = d.key, a.value_size = d.value, a.max_entries = d.entries, a.map_flags = d.flags;
  a.inner_map_fd = d.inner;
  if (d.btf) a.btf_fd = d.btf, a.btf_key_type_id = 1, a.btf_value_type_id = d.value == 8 ? 2 : 1;
  return bpf(BPF_MAP_CREATE, &a);
}

static int must(long fd, const char *what) { if (fd < 0) { errno = -fd; die(what); } return fd; }

static long elem(int cmd, int map, const void *key, const void *value, uint64_t flags) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_fd = map, a.key = (uint64_t)key, a.value = (uint64_t)value, a.flags = flags;
  return bpf(cmd, &a);
}
static long update(int map, uint64_t key, uint64_t value, uint64_t flags) {
  uint64_t values[64] = {value};
  return elem(BPF_MAP_UPDATE_ELEM, map, &key, values, flags);
}

// struct btf_header, int (type 1) and long (type 2), as bpf(2) wants it.
static int int_btf(void) {
  static const struct { uint16_t magic; uint8_t version, flags; uint32_t header, type_off, type_len, str_off, str_len, types[2][4]; char names[10]; } __attribute__((packed))
  blob = {0xeb9f, 1, 0, 24, 0, 32, 32, 10, {{1, 1 << 24, 4, 1 << 24 | 32}, {5, 1 << 24, 8, 1 << 24 | 64}}, "\0int\0long"};
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.btf = (uint64_t)&blob, a.btf_size = sizeof blob;
  return must(bpf(BPF_BTF_LOAD, &a), "BPF_BTF_LOAD");
}

static long load(int type, struct bpf_insn *code, int n) {
  static char log[1 << 16];
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.prog_type = type, a.insns = (uint64_t)code, a.insn_cnt = n, a.license = (uint64_t)"GPL";
  a.log_buf = (uint64_t)log, a.log_size = sizeof log, a.log_level = 1;
  long fd = bpf(BPF_PROG_LOAD, &a);
  if (fd < 0 && getenv("MAPS_LOG")) fprintf(stderr, "%s", log);
  return fd;
}
#define LOAD(type, code) load(type, code, sizeof(code) / sizeof *(code))

static int run(int prog) {
  uint64_t ctx[2] = {0};
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.test.prog_fd = prog, a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = sizeof ctx, a.test.flags = 1;
  must(bpf(BPF_PROG_TEST_RUN, &a), "BPF_PROG_TEST_RUN");
  return a.test.retval;
}

static const struct def TYPES[] = {
  {BPF_MAP_TYPE_HASH, 4, 8, 8}, {BPF_MAP_TYPE_ARRAY, 4, 8, 8}, {BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 8},
  {BPF_MAP_TYPE_PERF_EVENT_ARRAY, 4, 4, 8}, {BPF_MAP_TYPE_PERCPU_HASH, 4, 8, 8}, {BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 8},
  {BPF_MAP_TYPE_STACK_TRACE, 4, 64, 8}, {BPF_MAP_TYPE_CGROUP_ARRAY, 4, 4, 8}, {BPF_MAP_TYPE_LRU_HASH, 4, 8, 1000},
  {BPF_MAP_TYPE_LRU_PERCPU_HASH, 4, 8, 1000}, {BPF_MAP_TYPE_LPM_TRIE, 8, 8, 8, BPF_F_NO_PREALLOC},
  {BPF_MAP_TYPE_QUEUE, 0, 8, 4}, {BPF_MAP_TYPE_STACK, 0, 8, 4}, {BPF_MAP_TYPE_RINGBUF, 0, 0, 4096},
  {BPF_MAP_TYPE_BLOOM_FILTER, 0, 8, 100}, {BPF_MAP_TYPE_USER_RINGBUF, 0, 0, 4096},
};
#define EACH_TYPE(d) for (const struct def *d = TYPES; d < TYPES + sizeof TYPES / sizeof *TYPES; d++)

static void creation(void) {
  int btf = int_btf();
  int outers[] = {BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_HASH_OF_MAPS};
  EACH_TYPE(d) {
    long inner = create(*d);
    printf("type %d %s\n", d->type, inner < 0 ? strerror(-inner) : "made");
    struct def with = *d;
    with.btf = btf;
    long r = create(with);
    printf("  with BTF %ld\n", r < 0 ? r : 0);
    for (int o = 0; o < 2; o++) {
      long outer = create((struct def){outers[o], 4, 4, 2, 0, inner});
      printf("  inside of %d: %ld", outers[o], outer < 0 ? outer : 0);
      if (outer >= 0) {
        struct def bigger = *d;
        bigger.entries *= 2;
        int other = must(create(bigger), "bigger");
        printf(", same %ld, bigger %ld", update(outer, 1, inner, 0), update(outer, 1, other, 0));
        printf(", an outer %ld, outer inside %ld", update(outer, 1, outer, 0), create((struct def){outers[o], 4, 4, 2, 0, outer}));
        close(outer), close(other);
      }
      puts("");
    }
    close(inner);
  }
  for (int o = 0; o < 2; o++)
    printf("outer without inner %ld, with no map inside %ld\n", create((struct def){outers[o], 4, 4, 2, 0, 9999}), create((struct def){outers[o], 4, 4, 2, 0, btf}));
  for (int size = 65400; size < 65536; size += 8) {
    long r = create((struct def){BPF_MAP_TYPE_TASK_STORAGE, 4, size, 0, BPF_F_NO_PREALLOC, 0, btf});
    printf("task storage of %d: %ld\n", size, r < 0 ? r : 0);
    if (r >= 0) close(r);
  }
  struct def bad[] = {{29, 4, 4, 0, 1}, {29, 4, 4, 0, 0, 0, btf}, {29, 4, 4, 1, 1, 0, btf}, {29, 8, 4, 0, 1, 0, btf}, {29, 4, 0, 0, 1, 0, btf}, {29, 4, 4, 0, 1, 0, btf}};
  for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) { long r = create(bad[i]); printf("task storage %u: %ld\n", i, r < 0 ? r : 0); }
}

static long batch(int cmd, int map, void *in, void *out, void *keys, void *values, uint32_t *count, uint64_t elem_flags, uint64_t flags) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.batch.map_fd = map, a.batch.in_batch = (uint64_t)in, a.batch.out_batch = (uint64_t)out, a.batch.keys = (uint64_t)keys;
  a.batch.values = (uint64_t)values, a.batch.count = *count, a.batch.elem_flags = elem_flags, a.batch.flags = flags;
  long r = bpf(cmd, &a);
  *count = a.batch.count;
  return r;
}

static uint64_t keys[64], values[64 * 512], token[2];

// A batch command on a fresh map with six elements (or slots).
static void batch_on(const struct def *d) {
  int map = must(create(*d), "map");
  uint32_t n = 6, k32[64];
  for (int i = 0; i < 64; i++) keys[i] = d->key == 8 ? (uint64_t)i << 32 | 32 : (uint64_t)(2 * i + 1) << 32 | 2 * i, values[i] = i + 1;
  for (int i = 0; i < 64; i++) k32[i] = i;
  void *k = d->key == 4 ? (void *)k32 : (void *)keys;
  printf("type %d\n  update %ld", d->type, batch(BPF_MAP_UPDATE_BATCH, map, 0, 0, k, values, &n, 0, 0)), printf(" %u", n);
  n = 3; printf(", exist %ld", batch(BPF_MAP_UPDATE_BATCH, map, 0, 0, k, values, &n, BPF_EXIST, 0)), printf(" %u", n);
  n = 3; printf(", noexist %ld", batch(BPF_MAP_UPDATE_BATCH, map, 0, 0, k, values, &n, BPF_NOEXIST, 0)), printf(" %u", n);
  n = 0; printf(", none %ld", batch(BPF_MAP_UPDATE_BATCH, map, 0, 0, k, values, &n, 0, 0)), printf(" %u\n", n);
  n = 64; long r = batch(BPF_MAP_LOOKUP_BATCH, map, 0, token, keys, values, &n, 0, 0);
  uint64_t sum = 0;
  unsigned stride = d->type == BPF_MAP_TYPE_PERCPU_HASH || d->type == BPF_MAP_TYPE_LRU_PERCPU_HASH || d->type == BPF_MAP_TYPE_PERCPU_ARRAY ? sysconf(_SC_NPROCESSORS_CONF) : 1;
  if (r == -ENOENT) for (unsigned i = 0; i < n; i++) sum += values[i * stride];
  printf("  lookup %ld %u", r, n), printf(" sum %lu", sum);
  n = 0; r = batch(BPF_MAP_LOOKUP_BATCH, map, 0, token, keys, values, &n, 0, 0), printf(", none %ld %u", r, n);
  n = 6; r = batch(BPF_MAP_LOOKUP_BATCH, map, 0, token, keys, values, &n, 8, 0), printf(", elem_flags %ld", r);
  n = 6; r = batch(BPF_MAP_LOOKUP_BATCH, map, 0, token, keys, values, &n, 0, 1), printf(", flags %ld\n", r);
  // In steps, with the token.
  unsigned total = 0;
  void *in = 0;
  for (int step = 0; step < 100; step++) {
    n = 4;
    r = batch(BPF_MAP_LOOKUP_BATCH, map, in, token, keys, values, &n, 0, 0);
    if (r && r != -ENOENT) break;
    total += n, in = token;
    if (r) break;
  }
  printf("  steps %ld, %u elements\n", r, total);
  n = 2; r = batch(BPF_MAP_DELETE_BATCH, map, 0, 0, k, values, &n, 0, 0), printf("  delete %ld %u", r, n);
  n = 2; r = batch(BPF_MAP_DELETE_BATCH, map, 0, 0, k, values, &n, 0, 0), printf(", again %ld %u", r, n);
  n = 64; r = batch(BPF_MAP_LOOKUP_AND_DELETE_BATCH, map, 0, token, keys, values, &n, 0, 0), printf(", take %ld %u", r, n);
  n = 64; r = batch(BPF_MAP_LOOKUP_AND_DELETE_BATCH, map, 0, token, keys, values, &n, 0, 0), printf(", take again %ld %u\n", r, n);
  close(map);
}

static void batches(void) {
  EACH_TYPE(d) batch_on(d);
  int inner = must(create((struct def){BPF_MAP_TYPE_ARRAY, 4, 8, 1}), "inner");
  for (int type = BPF_MAP_TYPE_ARRAY_OF_MAPS; type <= BPF_MAP_TYPE_HASH_OF_MAPS; type++) {
    int map = must(create((struct def){type, 4, 4, 4, 0, inner}), "outer");
    uint32_t k[4] = {0, 1, 2, 3}, v[4] = {inner, inner, inner, inner}, n = 3, bad[2] = {inner, 9999};
    printf("type %d update %ld", type, batch(BPF_MAP_UPDATE_BATCH, map, 0, 0, k, v, &n, 0, 0)), printf(" %u", n);
    n = 2; printf(", bad %ld", batch(BPF_MAP_UPDATE_BATCH, map, 0, 0, k, bad, &n, 0, 0)), printf(" %u", n);
    n = 4; printf(", lookup %ld", batch(BPF_MAP_LOOKUP_BATCH, map, 0, token, k, v, &n, 0, 0)), printf(" %u %d %d", n, v[0] == v[1], v[0] != 0);
    n = 1; printf(", delete %ld", batch(BPF_MAP_DELETE_BATCH, map, 0, 0, k, v, &n, 0, 0)), printf(" %u", n);
    n = 4; printf(", take %ld", batch(BPF_MAP_LOOKUP_AND_DELETE_BATCH, map, 0, token, k, v, &n, 0, 0)), printf(" %u\n", n);
  }
}

// Calls `helper` on `map` with a key and a value on the stack; a pointer that it returns is read.
static long call_on(int map, int helper, uint64_t key, uint64_t value, int flags) {
  struct bpf_insn p[32];
  int n = 0, takes_value = helper == 87 || helper == 88 || helper == 89;
  struct bpf_insn head[] = {{.code = 0x18, .dst_reg = 1, .imm = key}, {.imm = key >> 32}, I(0x7b, 10, 1, -8, 0), {.code = 0x18, .dst_reg = 1, .imm = value}, {.imm = value >> 32}, I(0x7b, 10, 1, -16, 0), LD_MAP(1, map), MOV(2, 10), ADDI(2, takes_value ? -16 : -8)};
  memcpy(p, head, sizeof head), n = sizeof head / sizeof *head;
  if (helper == 2) p[n++] = MOV(3, 10), p[n++] = ADDI(3, -16), p[n++] = MOVI(4, flags);
  else p[n++] = MOVI(3, flags);
  p[n++] = CALL(helper);
  if (helper == 1 || helper == 195) p[n++] = I(0x55, 0, 0, 2, 0), p[n++] = MOVI(0, -1000), p[n++] = EXIT, p[n++] = I(0x79, 0, 0, 0, 0);
  if (helper == 88 || helper == 89) p[n++] = I(0x55, 0, 0, 1, 0), p[n++] = I(0x79, 0, 10, -16, 0);
  p[n++] = EXIT;
  long fd = load(BPF_PROG_TYPE_RAW_TRACEPOINT, p, n);
  if (fd < 0) return -100000 + fd;
  long r = run(fd);
  close(fd);
  return (int)r;
}

// To the CPU that programs run on: they find its values in per-CPU maps, and this task.
static void pin(void) {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(0, &cpus);
  if (sched_setaffinity(0, sizeof cpus, &cpus)) die("sched_setaffinity");
}

static void programs(void) {
  pin();
  static const int HELPERS[] = {1, 2, 3, 87, 88, 89, 195};
  EACH_TYPE(d) {
    int map = must(create(*d), "map"), n = d->type == BPF_MAP_TYPE_LPM_TRIE ? 32 : 0;
    printf("type %d:", d->type);
    for (int flags = 0; flags < 5; flags++)
      for (unsigned h = 0; h < sizeof HELPERS / sizeof *HELPERS; h++)
        printf(" %d/%d=%ld", HELPERS[h], flags, call_on(map, HELPERS[h], (uint64_t)flags << 32 | (n ? n : flags / 2), 7 + flags, flags));
    puts("");
    if (d->type == BPF_MAP_TYPE_HASH || d->type == BPF_MAP_TYPE_PERCPU_HASH || d->type == BPF_MAP_TYPE_LPM_TRIE) {
      printf("  filled:");
      for (int i = 0; i < 11; i++) printf(" %ld", call_on(map, 2, (uint64_t)i << 32 | (n ? n : i), i, 0));
      puts("");
    }
    if (n) for (int i = 0; i <= 33; i++) printf(" /%d=%ld", i, call_on(map, 1, 5ull << 32 | i, 0, 0));
    if (d->type == BPF_MAP_TYPE_QUEUE || d->type == BPF_MAP_TYPE_STACK) {
      for (int i = 0; i < 6; i++) printf(" push %ld", call_on(map, 87, 0, 100 + i, i == 5 ? BPF_EXIST : 0));
      for (int i = 0; i < 6; i++) printf(" peek %ld pop %ld", call_on(map, 89, 0, 0, 0), call_on(map, 88, 0, 0, 0));
      puts("");
    }
    close(map);
  }
  // What programs look up stays in an LRU map, what bpf(2) looks up does not.
  int lru = must(create((struct def){BPF_MAP_TYPE_LRU_HASH, 4, 8, 2048}), "lru");
  update(lru, 1, 1, 0), update(lru, 2, 2, 0);
  uint64_t value, one = 1, two = 2;
  for (int i = 0; i < 8192; i++) {
    if (i % 64 == 0 && call_on(lru, 1, 1, 0, 0) != 1) break;
    elem(BPF_MAP_LOOKUP_ELEM, lru, &two, &value, 0);
    update(lru, 1000 + i, i, 0);
  }
  printf("lru: used by a program %ld, by bpf(2) %ld\n", elem(BPF_MAP_LOOKUP_ELEM, lru, &one, &value, 0), elem(BPF_MAP_LOOKUP_ELEM, lru, &two, &value, 0));
}

// Adds 1 to element 0 of the map that `outer` holds under `key`; 1, or 0 when it holds none.
static long inner_counter(int type, int outer, int key) {
  struct bpf_insn p[] = {I(0x7a, 10, 0, -8, key), LD_MAP(1, outer), MOV(2, 10), ADDI(2, -8), CALL(1), I(0x55, 0, 0, 1, 0), EXIT, MOV(1, 0), I(0x7a, 10, 0, -8, 0), MOV(2, 10), ADDI(2, -8), CALL(1), I(0x55, 0, 0, 1, 0), EXIT, MOVI(1, 1), I(0xdb, 0, 1, 0, 0), MOVI(0, 1), EXIT};
  return LOAD(type, p);
}
static long tail_caller(int type, int array, int index) {
  struct bpf_insn p[] = {LD_MAP(2, array), MOVI(3, index), CALL(12), MOVI(0, 7), EXIT};
  return LOAD(type, p);
}
static long returning(int type, int value) { struct bpf_insn p[] = {MOVI(0, value), EXIT}; return LOAD(type, p); }
// Adds 1 to array[key] and tail calls slot `next` of `progs`.
static long counter_then(int type, int array, int key, int progs, int next) {
  struct bpf_insn p[] = {MOV(6, 1), I(0x7a, 10, 0, -8, key), LD_MAP(1, array), MOV(2, 10), ADDI(2, -8), CALL(1), I(0x55, 0, 0, 1, 0), EXIT, MOVI(1, 1), I(0xdb, 0, 1, 0, 0), MOV(1, 6), LD_MAP(2, progs), MOVI(3, next), CALL(12), MOVI(0, 0), EXIT};
  return LOAD(type, p);
}
static uint64_t at(int map, uint32_t key) { uint64_t v = -1; elem(BPF_MAP_LOOKUP_ELEM, map, &key, &v, 0); return v; }

static uint32_t id_of(int fd, int offset) {
  uint32_t info[64] = {0};
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.info.bpf_fd = fd, a.info.info_len = sizeof info, a.info.info = (uint64_t)info;
  must(bpf(BPF_OBJ_GET_INFO_BY_FD, &a), "info");
  return info[offset];
}

static void inner(void) {
  const int RT = BPF_PROG_TYPE_RAW_TRACEPOINT;
  for (int type = BPF_MAP_TYPE_ARRAY_OF_MAPS; type <= BPF_MAP_TYPE_HASH_OF_MAPS; type++) {
    int a = must(create((struct def){BPF_MAP_TYPE_ARRAY, 4, 8, 1}), "a"), b = must(create((struct def){BPF_MAP_TYPE_ARRAY, 4, 8, 1}), "b");
    int outer = must(create((struct def){type, 4, 4, 2, 0, a}), "outer");
    int p = must(inner_counter(RT, outer, 1), "program");
    printf("type %d: empty %d", type, run(p));
    printf(", set %ld", update(outer, 1, a, 0)), printf(" %d", run(p)), printf(" %d", run(p));
    uint32_t key = 1, id = 0;
    elem(BPF_MAP_LOOKUP_ELEM, outer, &key, &id, 0);
    printf(", id %d", id == id_of(a, 1));
    printf(", replace %ld", update(outer, 1, b, 0)), printf(" %d", run(p));
    printf(", flags %ld", update(outer, 1, a, BPF_NOEXIST)), printf(" %ld", update(outer, 1, a, BPF_EXIST)), printf(" %ld", update(outer, 1, a, 7));
    printf(", range %ld", update(outer, 5, b, 0)), printf(", bad %ld", update(outer, 1, 9999, 0)), printf(", program %ld", update(outer, 1, p, 0));
    printf(", delete %ld", elem(BPF_MAP_DELETE_ELEM, outer, &key, 0, 0)), printf(" %ld", elem(BPF_MAP_DELETE_ELEM, outer, &key, 0, 0)), printf(" %d", run(p));
    printf(", counts %lu %lu\n", at(a, 0), at(b, 0));
    // The inner map lives in the outer one alone.
    update(outer, 1, a, 0), close(a);
    printf("  after close %d", run(p));
    for (int i = 0; i < 20; i++) { int c = must(create((struct def){BPF_MAP_TYPE_ARRAY, 4, 8, 1}), "c"); update(outer, 1, c, 0), close(c), run(p); }
    printf(" %d\n", run(p));
    struct bpf_insn unchecked[] = {I(0x7a, 10, 0, -8, 0), LD_MAP(1, outer), MOV(2, 10), ADDI(2, -8), CALL(1), MOV(1, 0), MOV(2, 10), ADDI(2, -8), CALL(1), EXIT};
    struct bpf_insn written[] = {I(0x7a, 10, 0, -8, 0), LD_MAP(1, outer), MOV(2, 10), ADDI(2, -8), MOV(3, 10), ADDI(3, -8), MOVI(4, 0), CALL(2), EXIT};
    printf("  unchecked %ld, update by a program %ld\n", LOAD(RT, unchecked), LOAD(RT, written));
    close(b), close(outer), close(p);
  }
  int progs = must(create((struct def){BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 3}), "progs"), counts = must(create((struct def){BPF_MAP_TYPE_ARRAY, 4, 8, 4}), "counts");
  int caller = must(tail_caller(RT, progs, 1), "caller"), far = must(tail_caller(RT, progs, 99), "far"), forty = must(returning(RT, 42), "42"), other = must(returning(BPF_PROG_TYPE_KPROBE, 0), "kprobe");
  printf("tail call: empty %d, far %d", run(caller), run(far));
  printf(", set %ld", update(progs, 1, forty, 0)), printf(" %d", run(caller));
  uint32_t key = 1, id = 0;
  printf(", lookup %ld", elem(BPF_MAP_LOOKUP_ELEM, progs, &key, &id, 0)), printf(" %d", id == id_of(forty, 1));
  printf(", flags %ld, range %ld, bad %ld, a map %ld, another type %ld", update(progs, 1, forty, 1), update(progs, 3, forty, 0), update(progs, 1, 9999, 0), update(progs, 1, counts, 0), update(progs, 1, other, 0));
  printf(", loaded by another type %d", (int)tail_caller(BPF_PROG_TYPE_KPROBE, progs, 1));
  printf(", delete %ld", elem(BPF_MAP_DELETE_ELEM, progs, &key, 0, 0)), printf(" %ld", elem(BPF_MAP_DELETE_ELEM, progs, &key, 0, 0)), printf(" %d\n", run(caller));
  int self = must(counter_then(RT, counts, 0, progs, 0), "self");
  update(progs, 0, self, 0);
  printf("  to itself %d", run(self)), printf(", ran %lu times", at(counts, 0));
  int first = must(counter_then(RT, counts, 1, progs, 1), "first"), second = must(counter_then(RT, counts, 2, progs, 2), "second");
  update(progs, 1, second, 0), update(progs, 2, first, 0);
  printf(", two in turn %d:", run(first)), printf(" %lu %lu\n", at(counts, 1), at(counts, 2));
}

static void storage(void) {
  int btf = int_btf(), map = must(create((struct def){BPF_MAP_TYPE_TASK_STORAGE, 4, 8, 0, BPF_F_NO_PREALLOC, 0, btf}), "storage");
  int me = syscall(SYS_pidfd_open, getpid(), 0), out = 1, none = 9999;
  uint64_t value = 1, got = 0;
  printf("lookup %ld", elem(BPF_MAP_LOOKUP_ELEM, map, &me, &got, 0));
  printf(", exist %ld", elem(BPF_MAP_UPDATE_ELEM, map, &me, &value, BPF_EXIST));
  printf(", update %ld", elem(BPF_MAP_UPDATE_ELEM, map, &me, &value, BPF_ANY));
  printf(", lookup %ld", elem(BPF_MAP_LOOKUP_ELEM, map, &me, &got, 0));
  printf(" %lu", got), value = 5;
  printf(", noexist %ld", elem(BPF_MAP_UPDATE_ELEM, map, &me, &value, BPF_NOEXIST));
  printf(", again %ld", elem(BPF_MAP_UPDATE_ELEM, map, &me, &value, BPF_EXIST));
  printf(", bad flags %ld", elem(BPF_MAP_UPDATE_ELEM, map, &me, &value, 8));
  elem(BPF_MAP_LOOKUP_ELEM, map, &me, &got, 0), printf(" %lu", got);
  printf(", no pidfd %ld", elem(BPF_MAP_LOOKUP_ELEM, map, &out, &got, 0));
  printf(" %ld", elem(BPF_MAP_UPDATE_ELEM, map, &out, &got, 0));
  printf(" %ld", elem(BPF_MAP_DELETE_ELEM, map, &out, 0, 0));
  printf(" %ld", elem(BPF_MAP_LOOKUP_ELEM, map, &none, &got, 0));
  printf(", next %ld", elem(BPF_MAP_GET_NEXT_KEY, map, 0, &got, 0));
  printf(", take %ld", elem(BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, &me, &got, 0));
  printf(", delete %ld", elem(BPF_MAP_DELETE_ELEM, map, &me, 0, 0)), printf(" %ld\n", elem(BPF_MAP_DELETE_ELEM, map, &me, 0, 0));
  pin();
  // From a program: value += 1, made from 10 on the stack; then deleted.
  struct bpf_insn count[] = {I(0x7a, 10, 0, -8, 10), CALL(158), MOV(2, 0), LD_MAP(1, map), MOV(3, 10), ADDI(3, -8), MOVI(4, 1), CALL(156), I(0x55, 0, 0, 2, 0), MOVI(0, -1), EXIT, I(0x79, 1, 0, 0, 0), ADDI(1, 1), I(0x7b, 0, 1, 0, 0), MOV(0, 1), EXIT};
  struct bpf_insn only[] = {CALL(158), MOV(2, 0), LD_MAP(1, map), MOVI(3, 0), MOVI(4, 0), CALL(156), I(0x55, 0, 0, 2, 0), MOVI(0, -1), EXIT, I(0x79, 0, 0, 0, 0), EXIT};
  struct bpf_insn forget[] = {CALL(158), MOV(2, 0), LD_MAP(1, map), CALL(157), EXIT};
  struct bpf_insn no_task[] = {MOV(2, 10), LD_MAP(1, map), CALL(157), EXIT}, lookup[] = {I(0x7a, 10, 0, -8, 0), MOV(2, 10), ADDI(2, -8), LD_MAP(1, map), CALL(1), EXIT};
  const int RT = BPF_PROG_TYPE_RAW_TRACEPOINT;
  int c = must(LOAD(RT, count), "count"), o = must(LOAD(RT, only), "only"), f = must(LOAD(RT, forget), "forget");
  printf("program: none %d", run(o)), printf(", made %d", run(c)), printf(" %d", run(c)), printf(", there %d", run(o));
  got = 0, printf(", by pidfd %ld", elem(BPF_MAP_LOOKUP_ELEM, map, &me, &got, 0)), printf(" %lu", got);
  value = 40, printf(", set %ld", elem(BPF_MAP_UPDATE_ELEM, map, &me, &value, 0)), printf(" %d", run(c));
  printf(", forgotten %d", run(f)), printf(" %d", run(f)), printf(" %ld", elem(BPF_MAP_LOOKUP_ELEM, map, &me, &got, 0));
  printf(", set before the program %ld", elem(BPF_MAP_UPDATE_ELEM, map, &me, &value, 1)), printf(" %d", run(c));
  printf(", no task %ld, lookup %ld\n", LOAD(RT, no_task), LOAD(RT, lookup));
  // A child is another task.
  fflush(stdout);
  if (!fork()) { printf("child: %d", run(o)), printf(" %d\n", run(c)), fflush(stdout), _exit(0); }
  wait(0);
  printf("parent: %d\n", run(o));
}

static void attach(int prog, const char *path, uint64_t offset) {
  int type = 8;
  FILE *f = fopen("/sys/bus/event_source/devices/uprobe/type", "r");
  if (f) { if (fscanf(f, "%d", &type) != 1) type = 8; fclose(f); }
  struct perf_event_attr a;
  memset(&a, 0, sizeof a);
  a.size = sizeof a, a.type = type, a.config1 = (uint64_t)path, a.config2 = offset, a.sample_period = 1, a.wakeup_events = 1;
  int fd = syscall(SYS_perf_event_open, &a, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);
  if (fd < 0 || ioctl(fd, PERF_EVENT_IOC_SET_BPF, prog) || ioctl(fd, PERF_EVENT_IOC_ENABLE, 0)) die("uprobe");
}

static void watch(const char *path, uint64_t offset) {
  const int KP = BPF_PROG_TYPE_KPROBE;
  int maps[3], array = must(create((struct def){BPF_MAP_TYPE_ARRAY, 4, 8, 4}), "array");
  for (int i = 0; i < 3; i++) maps[i] = must(create((struct def){BPF_MAP_TYPE_ARRAY, 4, 8, 1}), "inner");
  int outer = must(create((struct def){BPF_MAP_TYPE_HASH_OF_MAPS, 4, 4, 2, 0, maps[0]}), "outer"), progs = must(create((struct def){BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 4}), "progs");
  int targets[2] = {must(counter_then(KP, array, 1, progs, 3), "t"), must(counter_then(KP, array, 2, progs, 3), "t")};
  attach(must(inner_counter(KP, outer, 1), "inner_counter"), path, offset);
  attach(must(counter_then(KP, array, 0, progs, 1), "tail"), path, offset);
  puts("READY");
  char word[16];
  uint32_t key = 1, k;
  while (scanf("%15s", word) == 1) {
    long r = 0;
    if (!strcmp(word, "inner") && scanf("%u", &k) == 1) r = update(outer, 1, maps[k % 3], 0);
    else if (!strcmp(word, "fresh")) {
      // A map that only the outer one holds, in place of the former.
      int c = must(create((struct def){BPF_MAP_TYPE_ARRAY, 4, 8, 1}), "fresh");
      r = update(outer, 1, c, 0), close(c);
    } else if (!strcmp(word, "none")) r = elem(BPF_MAP_DELETE_ELEM, outer, &key, 0, 0);
    else if (!strcmp(word, "tail") && scanf("%u", &k) == 1) r = update(progs, 1, targets[k % 2], 0);
    else if (!strcmp(word, "untail")) r = elem(BPF_MAP_DELETE_ELEM, progs, &key, 0, 0);
    else if (!strcmp(word, "end")) return;
    printf("%s %ld: %lu %lu %lu, %lu %lu %lu\n", word, r, at(maps[0], 0), at(maps[1], 0), at(maps[2], 0), at(array, 0), at(array, 1), at(array, 2));
  }
}

// Reserves eight bytes, counts to ten thousand, submits.
static int slow_producer(int ring) {
  struct bpf_insn p[] = {LD_MAP(1, ring), MOVI(2, 8), MOVI(3, 0), CALL(131), I(0x55, 0, 0, 1, 0), EXIT, MOV(6, 0), MOVI(7, 0), ADDI(7, 1), I(0xa5, 7, 0, -2, 10000), I(0x7b, 6, 7, 0, 0), MOV(1, 6), MOVI(2, 0), CALL(132), MOVI(0, 0), EXIT};
  return must(LOAD(BPF_PROG_TYPE_KPROBE, p), "slow_producer");
}

static void ring(const char *path, uint64_t offset) {
  enum { SIZE = 1 << 16 };
  int map = must(create((struct def){BPF_MAP_TYPE_RINGBUF, 0, 0, SIZE}), "ring");
  volatile uint64_t *consumer = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, map, 0);
  char *rest = mmap(0, 4096 + 2 * SIZE, PROT_READ, MAP_SHARED, map, 4096);
  if (consumer == MAP_FAILED || rest == MAP_FAILED) die("mmap");
  attach(slow_producer(map), path, offset);
  puts("READY");
  char line[16];
  long samples = 0, discarded = 0;
  while (fgets(line, sizeof line, stdin)) {
    // Until the ring is empty, a second at most.
    for (int tries = 0; tries < 1000; tries++) {
      uint64_t end = __atomic_load_n((uint64_t *)rest, __ATOMIC_ACQUIRE);
      while (*consumer < end) {
        uint32_t len = __atomic_load_n((uint32_t *)(rest + 4096 + (*consumer & (SIZE - 1))), __ATOMIC_ACQUIRE);
        if (len & BPF_RINGBUF_BUSY_BIT) break;
        if (len & BPF_RINGBUF_DISCARD_BIT) discarded++; else samples++;
        *consumer += 16;
      }
      if (*consumer == end) break;
      usleep(1000);
    }
    printf("left %lu\n", *(volatile uint64_t *)rest - *consumer);
    printf("samples %ld discarded %ld\n", samples, discarded);
  }
}

int main(int argc, char **argv) {
  setvbuf(stdout, 0, _IOLBF, 0);
  const char *what = argc > 1 ? argv[1] : "";
  if (!strcmp(what, "create")) creation();
  else if (!strcmp(what, "batch")) batches();
  else if (!strcmp(what, "programs")) programs();
  else if (!strcmp(what, "inner")) inner();
  else if (!strcmp(what, "storage")) storage();
  else if (!strcmp(what, "watch") && argc == 4) watch(argv[2], strtoull(argv[3], 0, 0));
  else if (!strcmp(what, "ring") && argc == 4) ring(argv[2], strtoull(argv[3], 0, 0));
  else return 2;
}
