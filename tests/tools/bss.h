// Variables of a BPF object, as a tool sees them.
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// Offset of a variable of .bss.
static inline long variable(struct bpf_object *obj, const char *name) {
  const struct btf *btf = bpf_object__btf(obj);
  const struct btf_type *sec = btf__type_by_id(btf, btf__find_by_name_kind(btf, ".bss", BTF_KIND_DATASEC));
  struct btf_var_secinfo *var = btf_var_secinfos(sec);
  for (int i = 0; i < btf_vlen(sec); i++, var++)
    if (!strcmp(btf__name_by_offset(btf, btf__type_by_id(btf, var->type)->name_off), name)) return var->offset;
  fprintf(stderr, "%s is not in .bss\n", name);
  exit(1);
}

// The variables of .bss, mapped.
static inline char *variables(struct bpf_object *obj) {
  struct bpf_map *map = bpf_object__find_map_by_name(obj, ".bss");
  size_t size;
  bpf_map__initial_value(map, &size);
  char *bss = mmap(0, (size + 4095) & ~4095ul, PROT_READ | PROT_WRITE, MAP_SHARED, bpf_map__fd(map), 0);
  if (bss == MAP_FAILED) perror("mmap"), exit(1);
  return bss;
}
