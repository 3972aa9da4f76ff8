// Loads progs/every.bpf.c, attaches all its programs to one function of a file, and for each line of input prints what they
// answered: NAME RAN VALUE MORE.
//   every OBJECT FILE OFFSET NAME:NUMBER...     for these helpers
//   every room OBJECT FILE OFFSET                fills the user ring buffer, and waits until a program has drained it
//   every refused NUMBER...                     what loading programs that call these says: NUMBER TYPE ERRNO REASON
#include "bss.h"
#include <bpf/bpf.h>
#include <errno.h>
#include <poll.h>
#include <sys/stat.h>

struct result { long ran, value, more; };

static int quiet(enum libbpf_print_level level, const char *fmt, va_list args) { return level == LIBBPF_WARN ? vfprintf(stderr, fmt, args) : 0; }

static int samples;
static void on_sample(void *ctx, int cpu, void *data, __u32 size) { (void)ctx, (void)cpu, (void)size, samples += *(long *)data == 77; }

static void send(struct bpf_object *obj) {
  struct user_ring_buffer *user = user_ring_buffer__new(bpf_object__find_map_fd_by_name(obj, "user"), 0);
  static const long values[] = {10, 20, -1, 30, 40};
  for (int i = 0; user && i < 5; i++) {
    long *sample = user_ring_buffer__reserve(user, 8);
    if (!sample) break;
    *sample = values[i];
    if (*sample < 0) user_ring_buffer__discard(user, sample);
    else user_ring_buffer__submit(user, sample);
  }
  user_ring_buffer__free(user);
}

// Whether a program calls a helper.
static int calls(struct bpf_program *prog, int helper) {
  const struct bpf_insn *insn = bpf_program__insns(prog);
  for (size_t i = 0; i < bpf_program__insn_cnt(prog); i++)
    if (insn[i].code == 0x85 && insn[i].src_reg == 0 && insn[i].imm == helper) return 1;
  return 0;
}

// The program of a helper that is given as NAME:NUMBER.
static struct bpf_program *program_of(struct bpf_object *obj, const char *helper) {
  char name[64];
  snprintf(name, sizeof name, "h_%.*s", (int)strcspn(helper, ":"), helper);
  return bpf_object__find_program_by_name(obj, name);
}
static int number_of(const char *helper) { return atoi(helper + strcspn(helper, ":") + 1); }

// Tries programs of the types that tracing uses, of nothing but a call.
static int refused(int argc, char **argv) {
  static const struct { const char *name; int type; } types[] = {{"kprobe", 2}, {"tracepoint", 5}, {"perf_event", 7}, {"raw_tracepoint", 17}};
  static char log[4096];
  for (int i = 2; i < argc; i++)
    for (int t = 0; t < 4; t++) {
      const struct bpf_insn code[] = {{.code = 0x85, .imm = atoi(argv[i])}, {.code = 0x95}};
      LIBBPF_OPTS(bpf_prog_load_opts, o, .log_buf = log, .log_size = sizeof log, .log_level = 1);
      int fd = bpf_prog_load(types[t].type, "p", "GPL", code, 2, &o), e = errno;
      char *line = strstr(log, ")\n") ? strchr(log, '\n') : log;
      for (char *next; (next = strchr(line + 1, '\n')) && strncmp(next + 1, "processed", 9) && next[1];) line = next;
      printf("%s %s %d %.*s\n", argv[i], types[t].name, fd < 0 ? -e : 0, (int)strcspn(line + 1, "\n"), line + 1);
    }
  return 0;
}

static int writable(int fd, int wait) {
  struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT};
  return poll(&p, 1, wait) < 0 ? -1 : p.revents;
}

static int room(char **argv) {
  struct bpf_object *obj = bpf_object__open_file(argv[2], 0);
  if (!obj) return perror("open"), 1;
  struct bpf_program *prog;
  bpf_object__for_each_program(prog, obj) bpf_program__set_autoload(prog, !strcmp(bpf_program__name(prog), "h_user_ringbuf_drain"));
  if (bpf_object__load(obj)) return fprintf(stderr, "load: %s\n", strerror(errno)), 1;
  prog = bpf_object__find_program_by_name(obj, "h_user_ringbuf_drain");
  if (!bpf_program__attach_uprobe(prog, false, -1, argv[3], strtoull(argv[4], 0, 0))) return fprintf(stderr, "attach: %s\n", strerror(errno)), 1;
  int fd = bpf_object__find_map_fd_by_name(obj, "user"), sent = 0;
  struct user_ring_buffer *user = user_ring_buffer__new(fd, 0);
  if (!user) return perror("user ring buffer"), 1;
  for (int round = 0; round < 3; round++) {
    printf("writable %d\n", writable(fd, 0));
    for (void *sample; (sample = user_ring_buffer__reserve(user, 8)); sent++) memset(sample, 1, 8), user_ring_buffer__submit(user, sample);
    printf("sent %d, %s, writable %d %d\n", sent, strerror(errno), writable(fd, 0), writable(fd, 1));
    // The program runs meanwhile.
    void *sample = user_ring_buffer__reserve_blocking(user, 8, 30000);
    printf("room %d\n", sample != 0);
    if (!sample) return 1;
    user_ring_buffer__discard(user, sample);
  }
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 5 && !strcmp(argv[1], "room")) return setvbuf(stdout, 0, _IOLBF, 0), room(argv);
  if (argc > 2 && !strcmp(argv[1], "refused")) return refused(argc, argv);
  if (argc < 4) return 2;
  setvbuf(stdout, 0, _IOLBF, 0);
  libbpf_set_print(quiet);
  struct bpf_object *obj = bpf_object__open_file(argv[1], 0);
  if (!obj) return perror("open"), 1;
  struct bpf_program *prog;
  bpf_object__for_each_program(prog, obj) bpf_program__set_autoload(prog, !strcmp(bpf_program__name(prog), "tail_target"));
  for (int i = 4; i < argc; i++)
    if (!(prog = program_of(obj, argv[i]))) return fprintf(stderr, "no program for %s\n", argv[i]), 1;
    else bpf_program__set_autoload(prog, true);
  if (bpf_object__load(obj)) return fprintf(stderr, "load: %s\n", strerror(errno)), 1;
  char *bss = variables(obj);
  struct stat ns;
  stat("/proc/self/ns/pid", &ns);
  *(unsigned long *)(bss + variable(obj, "ns_dev")) = ns.st_dev;
  *(unsigned long *)(bss + variable(obj, "ns_ino")) = ns.st_ino;
  int zero = 0, tail = bpf_program__fd(bpf_object__find_program_by_name(obj, "tail_target"));
  bpf_map_update_elem(bpf_object__find_map_fd_by_name(obj, "programs"), &zero, &tail, 0);
  struct perf_buffer *buffer = perf_buffer__new(bpf_object__find_map_fd_by_name(obj, "events"), 8, on_sample, 0, 0, 0);
  if (!buffer) return perror("perf buffer"), 1;
  send(obj);
  bpf_object__for_each_program(prog, obj) {
    LIBBPF_OPTS(bpf_uprobe_opts, o, .bpf_cookie = 0x1234);
    if (!bpf_program__autoload(prog) || !strcmp(bpf_program__name(prog), "tail_target")) continue;
    if (!bpf_program__attach_uprobe_opts(prog, -1, argv[2], strtoull(argv[3], 0, 0), &o)) return fprintf(stderr, "attach: %s\n", strerror(errno)), 1;
  }
  puts("READY");
  struct result *results = (struct result *)(bss + variable(obj, "results"));
  while (getchar() == '\n') {
    perf_buffer__consume(buffer);
    for (int i = 4; i < argc; i++) {
      int id = number_of(argv[i]);
      if (calls(program_of(obj, argv[i]), id)) printf("%s %ld %ld %ld\n", argv[i], results[id].ran, results[id].value, results[id].more);
    }
    printf("samples %d\nEND\n", samples);
  }
  return 0;
}
