// Maps whose values hold locks, timers and pointers that belong to the kernel, through bpf(2). Runs on the kernel or,
// preloaded, on bpftime, and must print the same.
//   values create      values of many forms in every type of map: one form per line
//   values elements    BPF_F_LOCK, and what is copied of such values
//   values programs    programs that name such maps
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum kind { END, LONG, INT, CHAR, LOCK, RESILIENT, TIMER, WORK, REFCOUNT, DYNPTR, LIST, TREE, NODE, PTR, KPTR, UNTRUSTED, PERCPU, USER, OWN, INNER, UNION, ALIAS, VOLATILE, ALIASED, KINDS };
struct member { enum kind kind; int count; int at; }; // at: offset, or 0 for the next aligned one

static const struct form { const char *name; struct member members[5]; } FORMS[] = {
    {"plain", {{LONG}, {LONG}}},
    {"lock", {{LONG}, {LOCK}, {INT}}},
    {"lock_first", {{LOCK}, {INT}}},
    {"lock_alone", {{LOCK}}},
    {"lock_unaligned", {{CHAR}, {LOCK, 0, 1}}},
    {"lock_two", {{LONG}, {LOCK}, {LOCK}}},
    {"lock_inside", {{LONG}, {INNER}}},
    {"lock_array", {{LONG}, {LOCK, 2}}},
    {"lock_array_of_one", {{LONG}, {LOCK, 1}, {INT}}},
    {"lock_inside_array", {{LONG}, {INNER, 2}}},
    {"lock_inside_array_of_one", {{LONG}, {INNER, 1}}},
    {"lock_in_union", {{LONG}, {UNION}, {INT}}},
    {"lock_resilient", {{LONG}, {RESILIENT}, {INT}}},
    {"lock_both_kinds", {{LOCK}, {RESILIENT}}},
    {"timer", {{LONG}, {TIMER}}},
    {"timer_unaligned", {{INT}, {TIMER, 0, 4}}},
    {"timer_two", {{TIMER}, {TIMER}}},
    {"timer_and_lock", {{TIMER}, {LOCK}, {INT}}},
    {"work", {{LONG}, {WORK}}},
    {"work_and_timer", {{WORK}, {TIMER}}},
    {"refcount", {{REFCOUNT}, {INT}}},
    {"dynptr", {{DYNPTR}}},
    {"list_head", {{LOCK}, {LIST}}},
    {"tree_root", {{LOCK}, {TREE}}},
    {"list_node", {{NODE}, {LONG}}},
    {"pointer", {{PTR}, {LONG}}},
    {"kptr", {{KPTR}, {LONG}}},
    {"kptr_and_lock", {{KPTR}, {KPTR}, {LOCK}}},
    {"kptr_array", {{KPTR, 3}}},
    {"kptr_untrusted", {{UNTRUSTED}, {LONG}}},
    {"kptr_of_own_type", {{OWN}, {LONG}}},
    {"kptr_per_cpu", {{PERCPU}}},
    {"user_pointer", {{USER}}},
    {"lock_by_other_name", {{LONG}, {ALIAS}, {INT}}},
    {"lock_volatile", {{LONG}, {VOLATILE}, {INT}}},
    {"lock_inside_other_name", {{LONG}, {ALIASED}}},
    {"lock_array_and_kptr", {{LOCK, 2}, {KPTR}}},
    {"kptr_and_timer_two", {{TIMER}, {TIMER}, {KPTR}}},
    {"kptr_and_timer_unaligned", {{KPTR}, {TIMER, 0, 12}}},
    {"kptr_many", {{KPTR, 12}}},
    {"kptr_as_many", {{KPTR, 11}}},
};
#define COUNT(x) (int)(sizeof(x) / sizeof(x)[0])

static const struct type { const char *name; int type, flags, key, entries; } TYPES[] = {
    {"hash", 1, 0, 4, 4}, {"array", 2, 0, 4, 4}, {"percpu_hash", 5, 0, 4, 4}, {"percpu_array", 6, 0, 4, 4},
    {"lru", 9, 0, 4, 4}, {"lru_percpu", 10, 0, 4, 4}, {"lpm", 11, 1, 8, 4}, {"queue", 22, 0, 0, 4}, {"stack", 23, 0, 0, 4},
    {"bloom", 30, 0, 0, 4}, {"task", 29, 1, 4, 0}, {"hash_rdonly", 1, 1 << 7, 4, 4}, {"array_mmap", 2, 1 << 10, 4, 4},
    {"hash_noprealloc", 1, 1, 4, 4},
};

static struct btf *btf;
static int ids[KINDS], sizes[KINDS] = {[LONG] = 8, [INT] = 4, [CHAR] = 1, [INNER] = 8, [UNION] = 4, [ALIAS] = 4, [VOLATILE] = 4, [ALIASED] = 8}, value, value_size;

// A struct of 8-byte numbers (or one of 4 bytes) with this name, as the kernel looks for.
static void opaque(enum kind k, const char *name, int size, int number) {
  int numbers = size < 8 ? ids[INT] : btf__add_array(btf, ids[INT], number, size / 8);
  sizes[k] = size, ids[k] = btf__add_struct(btf, name, size);
  btf__add_field(btf, "opaque", numbers, 0, 0);
}
static void pointer(enum kind k, const char *tag, const char *to) {
  int id = btf__find_by_name_kind(btf, to, BTF_KIND_STRUCT);
  if (id < 0) id = btf__add_struct(btf, to, 8), btf__add_field(btf, "x", ids[LONG], 0, 0);
  sizes[k] = 8, ids[k] = btf__add_ptr(btf, tag ? btf__add_type_tag(btf, tag, id) : id);
}

// BTF with one form: the kernel refuses some as a whole.
static int types(int f) {
  btf__free(btf);
  btf = btf__new_empty();
  ids[INT] = btf__add_int(btf, "int", 4, BTF_INT_SIGNED), ids[LONG] = btf__add_int(btf, "long", 8, BTF_INT_SIGNED);
  ids[CHAR] = btf__add_int(btf, "char", 1, BTF_INT_SIGNED);
  opaque(LOCK, "bpf_spin_lock", 4, ids[LONG]), opaque(RESILIENT, "bpf_res_spin_lock", 4, ids[LONG]), opaque(TIMER, "bpf_timer", 16, ids[LONG]);
  opaque(WORK, "bpf_wq", 16, ids[LONG]), opaque(REFCOUNT, "bpf_refcount", 4, ids[LONG]), opaque(DYNPTR, "bpf_dynptr", 16, ids[LONG]);
  opaque(LIST, "bpf_list_head", 16, ids[LONG]), opaque(TREE, "bpf_rb_root", 16, ids[LONG]), opaque(NODE, "bpf_list_node", 24, ids[LONG]);
  pointer(PTR, 0, "task_struct"), pointer(KPTR, "kptr", "task_struct"), pointer(UNTRUSTED, "kptr_untrusted", "task_struct");
  pointer(OWN, "kptr", "own"), pointer(PERCPU, "percpu_kptr", "own"), pointer(USER, "uptr", "own");
  ids[INNER] = btf__add_struct(btf, "inner", 8), btf__add_field(btf, "q", ids[INT], 0, 0), btf__add_field(btf, "l", ids[LOCK], 32, 0);
  ids[UNION] = btf__add_union(btf, "either", 4), btf__add_field(btf, "q", ids[INT], 0, 0), btf__add_field(btf, "l", ids[LOCK], 0, 0);
  ids[ALIAS] = btf__add_typedef(btf, "lock_t", ids[LOCK]), ids[VOLATILE] = btf__add_volatile(btf, ids[LOCK]), ids[ALIASED] = btf__add_typedef(btf, "inner_t", ids[INNER]);
  int member[5], at[5], n = 0, size = 0, widest = 1;
  for (; n < 5 && FORMS[f].members[n].kind != END; n++) {
    struct member m = FORMS[f].members[n];
    int align = sizes[m.kind] > 8 ? 8 : sizes[m.kind];
    member[n] = m.count ? btf__add_array(btf, ids[INT], ids[m.kind], m.count) : ids[m.kind];
    at[n] = m.at ? m.at : (size + align - 1) / align * align;
    size = at[n] + sizes[m.kind] * (m.count ? m.count : 1);
    if (!m.at && align > widest) widest = align;
  }
  if (!FORMS[f].members[1].at) size = (size + widest - 1) / widest * widest;
  value = btf__add_struct(btf, FORMS[f].name, value_size = size);
  for (int i = 0; i < n; i++) {
    char name[2] = {'a' + i};
    btf__add_field(btf, name, member[i], at[i] * 8, 0);
  }
  return btf__load_into_kernel(btf);
}

static int form(const char *name) {
  for (int f = 0; f < COUNT(FORMS); f++)
    if (!strcmp(FORMS[f].name, name)) return f;
  return -1;
}
// A map of the form that was loaded last.
static int make(const struct type *t) {
  LIBBPF_OPTS(bpf_map_create_opts, o, .btf_fd = btf__fd(btf), .btf_value_type_id = value, .map_flags = t->flags);
  if (t->key == 4) o.btf_key_type_id = ids[INT];
  if (t->key == 8) o.btf_key_type_id = ids[LONG];
  int fd = bpf_map_create(t->type, "m", t->key, value_size, t->entries, &o);
  return fd < 0 ? -errno : fd;
}

static void create(void) {
  for (int f = 0; f < COUNT(FORMS); f++) {
    printf("%s: btf %d", FORMS[f].name, types(f));
    for (int t = 0; t < COUNT(TYPES) && btf__fd(btf) >= 0; t++) {
      int fd = make(&TYPES[t]);
      printf(" %s %d", TYPES[t].name, fd < 0 ? fd : 0);
      if (fd >= 0) close(fd);
    }
    putchar('\n');
  }
}

static long result(long r) { return r < 0 ? -errno : r; }

static void bytes(const char *what, long r, const uint8_t *value, int len) {
  printf("  %s %ld", what, r);
  for (int i = 0; i < len && r == 0; i++) printf("%s%02x", i % 4 ? "" : " ", value[i]);
  putchar('\n');
}

// What is copied of a value that is all ones, in both directions, with and without its lock.
static void elements_of(const struct type *t, const char *name) {
  int fd = types(form(name)) ? -1 : make(t), len = value_size, key = 1;
  uint8_t ones[128], got[128] = {0};
  memset(ones, 0xff, sizeof ones);
  printf("%s of %s: %d\n", t->name, name, fd < 0 ? fd : 0);
  if (fd < 0) return;
  printf("  locked update of none %ld, ", result(bpf_map_update_elem(fd, &key, ones, BPF_F_LOCK)));
  printf("update %ld, ", result(bpf_map_update_elem(fd, &key, ones, 0)));
  printf("noexist %ld, locked %ld, ", result(bpf_map_update_elem(fd, &key, ones, BPF_NOEXIST)), result(bpf_map_update_elem(fd, &key, ones, BPF_NOEXIST | BPF_F_LOCK)));
  printf("exist %ld, locked %ld, odd %ld\n", result(bpf_map_update_elem(fd, &key, ones, BPF_EXIST)), result(bpf_map_update_elem(fd, &key, ones, BPF_EXIST | BPF_F_LOCK)), result(bpf_map_update_elem(fd, &key, ones, 8)));
  long r = result(bpf_map_lookup_elem(fd, &key, got));
  bytes("lookup", r, got, len);
  memset(got, 0x55, sizeof got);
  r = result(bpf_map_lookup_elem_flags(fd, &key, got, BPF_F_LOCK));
  bytes("locked", r, got, len);
  memset(ones, 0xaa, sizeof ones);
  printf("  again %ld locked %ld\n", result(bpf_map_update_elem(fd, &key, ones, 0)), result(bpf_map_update_elem(fd, &key, ones, BPF_F_LOCK)));
  bytes("lookup", result(bpf_map_lookup_elem(fd, &key, got)), got, len);
  uint32_t keys[4], count = 4, batch;
  uint8_t values[4 * 64] = {0};
  LIBBPF_OPTS(bpf_map_batch_opts, o, .elem_flags = BPF_F_LOCK);
  r = result(bpf_map_lookup_batch(fd, 0, &batch, keys, values, &count, &o));
  printf("  batch %ld %u\n", r, count);
  count = 1;
  printf("  update batch %ld\n", result(bpf_map_update_batch(fd, &key, ones, &count, &o)));
  memset(got, 0x55, sizeof got);
  r = result(bpf_map_lookup_and_delete_elem_flags(fd, &key, got, BPF_F_LOCK));
  bytes("locked take", r, got, len);
  memset(got, 0x55, sizeof got);
  r = result(bpf_map_lookup_and_delete_elem(fd, &key, got));
  bytes("take", r, got, len);
  printf("  delete %ld\n", result(bpf_map_delete_elem(fd, &key)));
  close(fd);
}

static void elements(void) {
  static const char *const which[] = {"plain", "lock", "lock_alone", "lock_inside", "timer", "timer_and_lock", "kptr", "kptr_and_lock", "kptr_array", "work", "list_node", "lock_array_and_kptr", "kptr_and_timer_two", "kptr_and_timer_unaligned"};
  for (int i = 0; i < COUNT(which); i++)
    for (int t = 0; t < COUNT(TYPES); t++)
      if (TYPES[t].type == 1 || TYPES[t].type == 2 || TYPES[t].type == 9 || TYPES[t].type == 5) elements_of(&TYPES[t], which[i]);
}

// The last line of a log before its statistics.
static const char *reason(char *log) {
  char *end = strstr(log, "processed ");
  if (!end) return log;
  *end = 0;
  while (end > log && end[-1] == '\n') *--end = 0;
  char *line = strrchr(log, '\n');
  return line ? line + 1 : log;
}

static void load(const char *what, int type, const struct bpf_insn *code, int n) {
  static char log[1 << 16];
  LIBBPF_OPTS(bpf_prog_load_opts, o, .log_buf = log, .log_size = sizeof log, .log_level = 1);
  *log = 0;
  int fd = bpf_prog_load(type, "p", "GPL", code, n, &o), e = errno;
  printf("%s: %d %s\n", what, fd < 0 ? -e : 0, fd < 0 ? reason(log) : "");
  if (fd >= 0) close(fd);
}

#define I(c, d, s, o, i) {.code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i}
#define LOOKUP(map, lost) I(0x7a, 10, 0, -8, 0), I(0xbf, 2, 10, 0, 0), I(0x07, 2, 0, 0, -8), I(0x18, 1, 1, 0, map), {0}, I(0x85, 0, 0, 0, BPF_FUNC_map_lookup_elem), I(0x15, 0, 0, lost, 0)
#define END_WELL I(0xb7, 0, 0, 0, 0), I(0x95, 0, 0, 0, 0)

// A program that looks an element up, and does nothing with it.
static void program(const char *kind, int type, const char *name, int map, int inner) {
  const struct bpf_insn code[] = {LOOKUP(map, 0), END_WELL};
  char what[64];
  snprintf(what, sizeof what, "%s %s%s", kind, name, inner ? " in a map" : "");
  load(what, type, code, COUNT(code));
}

// Programs that use a part of a value, of a map or of one inside of it.
static void access_to(const char *name, int at, int size, int map, int inner) {
  static const int codes[9] = {[1] = 0x71, [2] = 0x69, [4] = 0x61, [8] = 0x79};
  int op = codes[size];
  char what[64];
  const struct bpf_insn again[] = {I(0xbf, 1, 0, 0, 0), I(0xbf, 2, 10, 0, 0), I(0x07, 2, 0, 0, -8), I(0x85, 0, 0, 0, BPF_FUNC_map_lookup_elem)};
  const struct bpf_insn uses[][5] = {
      {I(op, 1, 0, at, 0)}, {I(op + 1, 0, 0, at, 7)}, {I(op + 1, 0, 0, at, 0)}, {I(0xb7, 1, 0, 0, 5), I(op + 2, 0, 1, at, 0)},
      {I(0xbf, 1, 0, 0, 0), I(0xb7, 2, 0, 0, at + size), I(0xb7, 3, 0, 0, 0), I(0x85, 0, 0, 0, BPF_FUNC_probe_read_kernel)},
      {I(0xbf, 1, 0, 0, 0), I(0xb7, 2, 0, 0, at + size), I(0x85, 0, 0, 0, BPF_FUNC_trace_printk)},
      {I(0xbf, 6, 0, 0, 0), I(0x85, 0, 0, 0, BPF_FUNC_get_prandom_u32), I(0x57, 0, 0, 0, 7), I(0x0f, 6, 0, 0, 0), I(0x71, 1, 6, 0, 0)},
      {I(op, 1, 0, at, 0), I(0x15, 1, 0, 1, 0), I(op, 2, 1, 0, 0)},
      {I(0xb7, 1, 0, 0, 5), I(size == 8 ? 0xdb : 0xc3, 0, 1, at, 0)},
  };
  static const char *const names[] = {"load", "store 7", "store 0", "store", "written by a helper", "read by a helper", "load somewhere", "follow", "add"};
  for (int u = 0; u < COUNT(uses); u++) {
    struct bpf_insn code[32] = {LOOKUP(map, 0)};
    int n = 7;
    if (inner) memcpy(code + n, again, sizeof again), n += COUNT(again), code[n] = (struct bpf_insn)I(0x15, 0, 0, 0, 0), n++;
    for (int i = 0; i < 5 && uses[u][i].code; i++) code[n++] = uses[u][i];
    const struct bpf_insn last[] = {END_WELL};
    memcpy(code + n, last, sizeof last);
    for (int i = 0; i < n; i++)
      if (code[i].code == 0x15 && code[i].off == 0) code[i].off = n - i - 1;
    snprintf(what, sizeof what, "%s%s, %d bytes at %d, %s", name, inner ? " in a map" : "", size, at, names[u]);
    load(what, BPF_PROG_TYPE_KPROBE, code, n + 2);
  }
}

static void programs(void) {
  static const struct { const char *name; int type; } kinds[] = {{"kprobe", 2}, {"tracepoint", 5}, {"perf_event", 7}, {"raw_tracepoint", 17}};
  static const char *const which[] = {"plain", "lock", "timer", "timer_and_lock", "work", "kptr", "kptr_untrusted", "refcount", "lock_resilient"};
  for (int i = 0; i < COUNT(which); i++) {
    int map = types(form(which[i])) ? -1 : make(&TYPES[0]), key = 0;
    LIBBPF_OPTS(bpf_map_create_opts, o, .inner_map_fd = map);
    int outer = bpf_map_create(BPF_MAP_TYPE_ARRAY_OF_MAPS, "outer", 4, 4, 1, &o), e = errno;
    printf("%s: %d, as template %d", which[i], map < 0 ? map : 0, outer < 0 ? -e : 0);
    printf(", inside %ld", outer < 0 ? 0 : result(bpf_map_update_elem(outer, &key, &map, 0)));
    int other = bpf_map_create(BPF_MAP_TYPE_HASH, "other", 4, value_size, 4, 0);
    printf(", one without %ld\n", outer < 0 ? 0 : result(bpf_map_update_elem(outer, &key, &other, 0)));
    for (int k = 0; k < COUNT(kinds) && map >= 0; k++) {
      program(kinds[k].name, kinds[k].type, which[i], map, 0);
      if (outer >= 0) program(kinds[k].name, kinds[k].type, which[i], outer, 1);
    }
    for (int at = 0; at < value_size && map >= 0; at += 4)
      for (int inside = 0; inside < 2; inside++)
        access_to(which[i], at, 4, inside ? outer : map, inside), access_to(which[i], at, at % 8 ? 1 : 8, inside ? outer : map, inside);
  }
}

int main(int argc, char **argv) {
  libbpf_set_print(0);
  
  const char *what = argc > 1 ? argv[1] : "";
  if (!strcmp(what, "create")) create();
  else if (!strcmp(what, "elements")) elements();
  else if (!strcmp(what, "programs")) programs();
  else return fprintf(stderr, "values create|elements|programs\n"), 2;
  return 0;
}
