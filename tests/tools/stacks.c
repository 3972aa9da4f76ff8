// Loads progs/stacks.bpf.c, attaches it to a function and for each line of input prints what it saw: the innermost
// frames of each stack, as status, build id and offset, and the other answers.
//   stacks OBJECT FILE OFFSET
#include "bss.h"
#include <bpf/bpf.h>
#include <errno.h>

static void show(const char *what, const struct bpf_stack_build_id *frames, int n) {
  for (int f = 0; f < n; f++) {
    printf("%s %d ", what, frames[f].status);
    for (int i = 0; i < BPF_BUILD_ID_SIZE; i++) printf("%02x", frames[f].build_id[i]);
    printf(" %llx\n", frames[f].offset);
  }
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  setvbuf(stdout, 0, _IOLBF, 0);
  struct bpf_object *obj = bpf_object__open_file(argv[1], 0);
  if (!obj || bpf_object__load(obj)) return fprintf(stderr, "load: %s\n", strerror(errno)), 1;
  struct bpf_program *prog = bpf_object__find_program_by_name(obj, "stack");
  if (!bpf_program__attach_uprobe(prog, false, -1, argv[2], strtoull(argv[3], 0, 0))) return fprintf(stderr, "attach: %s\n", strerror(errno)), 1;
  char *bss = variables(obj);
  int stacks = bpf_object__find_map_fd_by_name(obj, "stacks");
  puts("READY");
  while (getchar() == '\n') {
    struct bpf_stack_build_id frames[8];
    long *results = (long *)(bss + variable(obj, "results"));
    show("stack", (void *)(bss + variable(obj, "frames")), 3);
    show("skipped", (void *)(bss + variable(obj, "skipped")), 1);
    unsigned id = results[2];
    printf("found %d\n", bpf_map_lookup_elem(stacks, &id, frames));
    show("by id", frames, 3);
    for (int i = 0; i < 10; i++) printf("%ld%c", i == 2 ? results[i] >= 0 : results[i], i < 9 ? ' ' : '\n');
    puts("END");
  }
  return 0;
}
