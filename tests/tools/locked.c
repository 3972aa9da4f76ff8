// Threads and children that change one element under its lock, the children killed while they do: is it ever seen half
// written? Runs on the kernel or, preloaded, on bpftime.
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *what) { perror(what), exit(1); }

static int racing;
static volatile int over;
#define WIDE 62 // numbers of a value, which are equal at any time

// Numbers before and behind the lock.
struct wide { uint32_t before[WIDE / 2]; uint32_t lock; uint32_t behind[WIDE / 2]; };

static void *writer(void *arg) {
  struct wide value;
  int key = 0;
  for (uint32_t n = (uintptr_t)arg << 24; !over; n++) {
    for (int i = 0; i < WIDE / 2; i++) value.before[i] = value.behind[i] = n;
    if (bpf_map_update_elem(racing, &key, &value, BPF_F_LOCK)) die("update");
  }
  return 0;
}

static long torn(int rounds) {
  struct wide value;
  int key = 0;
  long bad = 0;
  for (int n = 0; n < rounds; n++) {
    if (bpf_map_lookup_elem_flags(racing, &key, &value, BPF_F_LOCK)) die("lookup");
    int same = value.lock == 0;
    for (int i = 0; i < WIDE / 2; i++) same &= value.before[i] == value.before[0] && value.behind[i] == value.before[0];
    bad += !same;
  }
  return bad;
}

static void race_on(int type) {
  struct btf *wide = btf__new_empty();
  int number = btf__add_int(wide, "int", 4, 0), numbers = btf__add_array(wide, number, number, WIDE / 2), lock = btf__add_struct(wide, "bpf_spin_lock", 4);
  btf__add_field(wide, "val", number, 0, 0);
  int value = btf__add_struct(wide, "wide", sizeof(struct wide));
  btf__add_field(wide, "before", numbers, 0, 0);
  btf__add_field(wide, "lock", lock, 8 * offsetof(struct wide, lock), 0);
  btf__add_field(wide, "behind", numbers, 8 * offsetof(struct wide, behind), 0);
  if (btf__load_into_kernel(wide)) die("BPF_BTF_LOAD");
  LIBBPF_OPTS(bpf_map_create_opts, o, .btf_fd = btf__fd(wide), .btf_key_type_id = number, .btf_value_type_id = value);
  if ((racing = bpf_map_create(type, "racing", 4, sizeof(struct wide), 1, &o)) < 0) die("map");
  struct wide zero = {0};
  int key = 0;
  bpf_map_update_elem(racing, &key, &zero, 0);
  pthread_t threads[2];
  over = 0;
  for (uintptr_t i = 0; i < 2; i++) pthread_create(&threads[i], 0, writer, (void *)(i + 1));
  long bad = 0;
  for (int i = 0; i < 20; i++) {
    pid_t child = fork();
    if (child == 0) writer((void *)(uintptr_t)(i + 3));
    bad += torn(200);
    kill(child, SIGKILL);
    waitpid(child, 0, 0);
  }
  over = 1;
  for (int i = 0; i < 2; i++) pthread_join(threads[i], 0);
  printf("map of type %d: torn %ld\n", type, bad + torn(100));
  close(racing);
}

int main(void) {
  race_on(BPF_MAP_TYPE_ARRAY);
  race_on(BPF_MAP_TYPE_HASH);
  return 0;
}
