// Every map command on every map type in every state, with good and bad flags, keys, values and descriptors. Prints one
// line per question, with the errno; runs on the kernel or, preloaded, on bpftime, and must print the same.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ENTRIES 2
enum { USER_RINGBUF = 31 };
static const struct type { const char *name; int type, key, value, entries, flags; } TYPES[] = {
  {"hash", BPF_MAP_TYPE_HASH, 4, 8, ENTRIES}, {"array", BPF_MAP_TYPE_ARRAY, 4, 8, ENTRIES},
  {"hash on demand", BPF_MAP_TYPE_HASH, 4, 8, ENTRIES, BPF_F_NO_PREALLOC},
  {"prog array", BPF_MAP_TYPE_PROG_ARRAY, 4, 4, ENTRIES}, {"perf array", BPF_MAP_TYPE_PERF_EVENT_ARRAY, 4, 4, ENTRIES},
  {"percpu hash", BPF_MAP_TYPE_PERCPU_HASH, 4, 8, ENTRIES}, {"percpu array", BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, ENTRIES},
  {"stack trace", BPF_MAP_TYPE_STACK_TRACE, 4, 64, ENTRIES}, {"cgroup array", BPF_MAP_TYPE_CGROUP_ARRAY, 4, 4, ENTRIES},
  {"lru hash", BPF_MAP_TYPE_LRU_HASH, 4, 8, 64}, {"lru percpu hash", BPF_MAP_TYPE_LRU_PERCPU_HASH, 4, 8, 64},
  {"lpm trie", BPF_MAP_TYPE_LPM_TRIE, 8, 8, ENTRIES, BPF_F_NO_PREALLOC},
  {"array of maps", BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, ENTRIES}, {"hash of maps", BPF_MAP_TYPE_HASH_OF_MAPS, 4, 4, ENTRIES},
  {"queue", BPF_MAP_TYPE_QUEUE, 0, 8, ENTRIES}, {"stack", BPF_MAP_TYPE_STACK, 0, 8, ENTRIES},
  {"bloom filter", BPF_MAP_TYPE_BLOOM_FILTER, 0, 8, ENTRIES}, {"ringbuf", BPF_MAP_TYPE_RINGBUF, 0, 0, 4096},
  {"user ringbuf", USER_RINGBUF, 0, 0, 4096},
};
static const char *const STATES[] = {"empty", "one", "full", "frozen"};
enum { EMPTY, ONE, FULL, FROZEN };

static int program, inner, nothing;

static long bpf(int cmd, const void *a, unsigned n) { long r = syscall(SYS_bpf, cmd, a, n); return r < 0 ? -errno : r; }
static int must(long fd, const char *what) { if (fd < 0) { fprintf(stderr, "%s: %s\n", what, strerror(-fd)); exit(1); } return fd; }

static long create(const struct type *t) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_type = t->type, a.key_size = t->key, a.value_size = t->value, a.max_entries = t->entries, a.map_flags = t->flags;
  if (t->type == BPF_MAP_TYPE_ARRAY_OF_MAPS || t->type == BPF_MAP_TYPE_HASH_OF_MAPS) a.inner_map_fd = inner;
  return bpf(BPF_MAP_CREATE, &a, sizeof a);
}

static long load(void) {
  struct bpf_insn p[] = {{.code = 0xb7}, {.code = 0x95}};
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.prog_type = BPF_PROG_TYPE_KPROBE, a.insns = (uint64_t)p, a.insn_cnt = 2, a.license = (uint64_t)"GPL";
  return bpf(BPF_PROG_LOAD, &a, sizeof a);
}

// Keys of a trie begin with the prefix's length in bits.
static void *key(const struct type *t, uint32_t k) {
  static uint32_t keys[8][2];
  uint32_t *at = keys[k % 8];
  if (t->type == BPF_MAP_TYPE_LPM_TRIE) at[0] = 32, at[1] = k;
  else at[0] = k, at[1] = 0;
  return at;
}

static int good_value(const struct type *t) {
  switch (t->type) {
    case BPF_MAP_TYPE_PROG_ARRAY: return program;
    case BPF_MAP_TYPE_ARRAY_OF_MAPS: case BPF_MAP_TYPE_HASH_OF_MAPS: return inner;
    default: return 1;
  }
}

static long elem(int cmd, int map, const void *key, const void *value, uint64_t flags) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_fd = map, a.key = (uint64_t)key, a.value = (uint64_t)value, a.flags = flags;
  return bpf(cmd, &a, sizeof a);
}

static int in_state(const struct type *t, int state) {
  int map = must(create(t), t->name), value[64] = {good_value(t)};
  for (int k = 0; k < (state == FULL ? t->entries : state == EMPTY ? 0 : 1) && k < 8; k++)
    elem(BPF_MAP_UPDATE_ELEM, map, t->key ? key(t, k) : NULL, value, 0);
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_fd = map;
  if (state == FROZEN) bpf(BPF_MAP_FREEZE, &a, sizeof a);
  return map;
}

static const struct type *type;
static int state, map = -1;
// A map that a question has changed is made anew for the next.
static int changed;
static int fresh(void) {
  if (changed && map >= 0) close(map);
  if (changed) map = in_state(type, state);
  changed = 0;
  return map;
}
static void tell(const char *what, const char *how, uint64_t flags, long r) {
  changed |= r >= 0 && *what != 'l' && *what != 'n';
  printf("%s, %s: %s %s flags %lx: %ld\n", type->name, STATES[state], what, how, flags, r < 0 ? r : 0);
}

static const uint64_t FLAGS[] = {0, 4, 1ull << 63, 1, 2, 3, 5, 8, 16, 1ull << 32};
// The kernel waits for a grace period at every update of a map of maps: those are asked with the first flags only.
static unsigned flags(void) { return type->value == 4 && good_value(type) == inner ? 3 : sizeof FLAGS / sizeof *FLAGS; }
#define EACH(i, array) for (unsigned i = 0; i < sizeof array / sizeof *array; i++)

// A question about one element, to a map that is as `state` says.
static void ask(int cmd, const char *name, const char *how, const void *key, const int *value, uint64_t flags) {
  int copy[64] = {value ? *value : 0};
  tell(name, how, flags, elem(cmd, map, key, value ? copy : NULL, flags));
}

static int is_hash(void) {
  return type->type == BPF_MAP_TYPE_HASH || type->type == BPF_MAP_TYPE_PERCPU_HASH || type->type == BPF_MAP_TYPE_LRU_HASH
      || type->type == BPF_MAP_TYPE_LRU_PERCPU_HASH || type->type == BPF_MAP_TYPE_HASH_OF_MAPS;
}

static void elements(void) {
  static const struct { int cmd; const char *name; } COMMANDS[] = {
    {BPF_MAP_LOOKUP_ELEM, "lookup"}, {BPF_MAP_UPDATE_ELEM, "update"}, {BPF_MAP_DELETE_ELEM, "delete"},
    {BPF_MAP_GET_NEXT_KEY, "next"}, {BPF_MAP_LOOKUP_AND_DELETE_ELEM, "take"}};
  static const struct { uint32_t key; const char *name; } KEYS[] = {{0, "first"}, {1, "second"}, {2007, "other"}};
  static const int bad = 9999, none = 0;
  int good = good_value(type), wrong = nothing;
  EACH(c, COMMANDS) {
    const char *name = COMMANDS[c].name;
    int cmd = COMMANDS[c].cmd, keyed = type->key || cmd == BPF_MAP_GET_NEXT_KEY;
    // Which of two keys comes first is up to the hash function, which differs from map to map.
    int last = cmd == BPF_MAP_GET_NEXT_KEY && is_hash() && state == FULL ? 2 : 0;
    const void *first = type->key ? key(type, last ? 2007 : 0) : NULL;
    EACH(k, KEYS) for (unsigned f = 0; f < flags(); f++)
      if (k >= last && (keyed || !k)) fresh(), ask(cmd, name, KEYS[k].name, keyed ? key(type, KEYS[k].key) : NULL, &good, FLAGS[f]);
    fresh(), ask(cmd, name, "no key", NULL, &good, 0);
    fresh(), ask(cmd, name, "wild key", (void *)8, &good, 0);
    fresh(), ask(cmd, name, "a key", key(type, last ? 2007 : 0), &good, 0);
    fresh(), tell(name, "wild value", 0, elem(cmd, map, first, (void *)8, 0));
    fresh(), ask(cmd, name, "bad value", first, &bad, 0);
    fresh(), ask(cmd, name, "wrong value", first, &wrong, 0);
    fresh(), ask(cmd, name, "no value", first, NULL, 0);
    tell(name, "closed map", 0, elem(cmd, 9999, first, &none, 0));
    tell(name, "no map", 0, elem(cmd, nothing, first, &none, 0));
    tell(name, "a program", 0, elem(cmd, program, first, &none, 0));
  }
}

static void batches(void) {
  static const struct { int cmd; const char *name; } COMMANDS[] = {
    {BPF_MAP_LOOKUP_BATCH, "lookup batch"}, {BPF_MAP_LOOKUP_AND_DELETE_BATCH, "take batch"},
    {BPF_MAP_UPDATE_BATCH, "update batch"}, {BPF_MAP_DELETE_BATCH, "delete batch"}};
  uint64_t keys[64], values[512], next[2];
  EACH(c, COMMANDS) for (unsigned f = 0; f < flags(); f++) for (int n = 0; n < 6; n++) {
    int count = n / 2, wild = n % 2;
    // Whether one of two elements fits depends on whether they share a bucket.
    if ((flags() == 3 && count < 2) || (is_hash() && state == FULL && count == 1 && c < 2)) continue;
    memset(keys, 0, sizeof keys), memset(values, 0, sizeof values);
    if (type->type == BPF_MAP_TYPE_LPM_TRIE) keys[0] = 32, keys[1] = 32 | 1ull << 32;
    else keys[0] = 1ull << 32;
    int good[2] = {good_value(type), good_value(type)};
    if (type->value == 4) memcpy(values, good, sizeof good);
    union bpf_attr a;
    memset(&a, 0, sizeof a);
    a.batch.out_batch = (uint64_t)next, a.batch.keys = (uint64_t)keys, a.batch.values = (uint64_t)values;
    a.batch.count = count, a.batch.map_fd = fresh(), a.batch.elem_flags = FLAGS[f], a.batch.flags = wild;
    long r = bpf(COMMANDS[c].cmd, &a, sizeof a);
    char how[64];
    // A full LRU map of the kernel's may have evicted one more than it had to.
    int lru = type->type == BPF_MAP_TYPE_LRU_HASH || type->type == BPF_MAP_TYPE_LRU_PERCPU_HASH;
    unsigned did = lru && state == FULL && !r ? 0 : a.batch.count;
    snprintf(how, sizeof how, "of %d, %d, did %u,", count, wild, did);
    tell(COMMANDS[c].name, how, FLAGS[f], r);
  }
}

static void freezes(void) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_fd = fresh();
  tell("freeze", "", 0, bpf(BPF_MAP_FREEZE, &a, sizeof a));
  tell("freeze", "again", 0, bpf(BPF_MAP_FREEZE, &a, sizeof a));
  a.map_fd = program;
  tell("freeze", "a program", 0, bpf(BPF_MAP_FREEZE, &a, sizeof a));
}

int main(void) {
  struct rlimit r = {RLIM_INFINITY, RLIM_INFINITY};
  setrlimit(RLIMIT_MEMLOCK, &r);
  program = must(load(), "program"), nothing = open("/dev/null", O_RDWR);
  inner = must(create(&TYPES[1]), "inner map");
  EACH(t, TYPES) for (state = 0; state < 4; state++) {
    type = &TYPES[t], changed = 1;
    elements();
    batches();
    freezes();
  }
  return 0;
}
