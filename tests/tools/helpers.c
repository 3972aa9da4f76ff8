// Loads progs/helpers.bpf.c, runs its programs, prints each result: PROGRAM INDEX VALUE TEXT. On the kernel or on bpftime.
//   helpers [--wait|--pipe|--ring] OBJECT [PROGRAM...]
// With --wait, lives until its input ends; with --pipe, copies what it finds in trace_pipe to its output;
// with --ring, prints the numbers in the ring buffer.
#define _GNU_SOURCE
#include "bss.h"
#include <bpf/bpf.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define RESULTS 64
#define TEXT 64
struct result { long value; char text[TEXT]; };

static volatile int process_signals, thread_signals, kernel_sent;
static sigjmp_buf away;
static volatile int jump;

static void on_signal(int sig, siginfo_t *info, void *ctx) {
  (void)ctx;
  if (sig == SIGUSR1) process_signals++;
  else thread_signals++;
  kernel_sent += info->si_code == SI_KERNEL;
  if (jump && sig == SIGUSR2) siglongjmp(away, 1);
}

__attribute__((noinline, noclone)) long sleeping_target(const char *text, long n) { __asm__ volatile("" ::: "memory"); return text[0] + n; }
__attribute__((noinline, noclone)) long awake_target(const char *text, long n) { __asm__ volatile("" ::: "memory"); return text[0] + n; }

static void show(const char *prog, struct result *results, unsigned used) {
  for (unsigned i = 0; i < used && i < RESULTS; i++) {
    printf("%s %u %ld ", prog, i, results[i].value);
    for (int k = 0; k < TEXT; k++) {
      unsigned char c = results[i].text[k];
      if (c >= ' ' && c < 127 && c != '\\') putchar(c);
      else if (c) printf("\\x%02x", c);
      else putchar(k + 1 < TEXT && results[i].text[k + 1] ? '_' : ' ');
    }
    putchar('\n');
  }
  fflush(stdout);
}

static int on_record(void *ctx, void *data, size_t size) {
  (void)ctx, (void)size;
  printf("record %ld\n", *(long *)data);
  return 0;
}

static int quiet(enum libbpf_print_level level, const char *fmt, va_list args) {
  return level == LIBBPF_WARN && !strstr(fmt, "LOAD LOG") ? vfprintf(stderr, fmt, args) : 0;
}

static int run(struct bpf_program *prog) {
  LIBBPF_OPTS(bpf_test_run_opts, opts);
  return bpf_prog_test_run_opts(bpf_program__fd(prog), &opts);
}

static size_t offset_of(void *function) {
  FILE *maps = fopen("/proc/self/maps", "r");
  size_t lo, hi, off, found = 0;
  char line[512];
  while (fgets(line, sizeof line, maps))
    if (sscanf(line, "%zx-%zx %*s %zx", &lo, &hi, &off) == 3 && (size_t)function >= lo && (size_t)function < hi)
      found = (size_t)function - lo + off;
  fclose(maps);
  return found;
}

static void call(const char *name) {
  static char text[] = "some text of the program";
  long (*f)(const char *, long) = strcmp(name, "sleeping") ? awake_target : sleeping_target;
  if (sigsetjmp(away, 1) == 0) f(text, 77);
  else printf("%s jumped\n", name);
}

int main(int argc, char **argv) {
  int wait = argc > 1 && !strcmp(argv[1], "--wait"), pipe = argc > 1 && !strcmp(argv[1], "--pipe");
  int ring = argc > 1 && !strcmp(argv[1], "--ring");
  if (wait || pipe || ring) argc--, argv++;
  struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
  sigaction(SIGUSR1, &action, 0);
  sigaction(SIGUSR2, &action, 0);
  setvbuf(stdout, 0, _IOLBF, 0);
  libbpf_set_print(quiet);
  struct bpf_object *obj = bpf_object__open_file(argv[1], 0);
  if (!obj || bpf_object__load(obj)) return fprintf(stderr, "load: %s\n", strerror(errno)), 1;
  char *bss = variables(obj);
  struct stat ns;
  stat("/proc/self/ns/pid", &ns);
#define VAR(type, name) (*(type *)(bss + variable(obj, name)))
  struct result *results = (struct result *)(bss + variable(obj, "results"));
  VAR(unsigned long, "ns_dev") = ns.st_dev;
  VAR(unsigned long, "ns_ino") = ns.st_ino;
  VAR(unsigned long, "user_hole") = (unsigned long)mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct bpf_program *prog;
  bpf_object__for_each_program(prog, obj) {
    const char *name = bpf_program__name(prog), *section = bpf_program__section_name(prog);
    int wanted = argc == 2;
    for (int i = 2; i < argc; i++) wanted |= !strcmp(argv[i], name);
    if (!wanted) continue;
    memset(results, 0, RESULTS * sizeof *results);
    VAR(unsigned, "used") = 0;
    process_signals = thread_signals = kernel_sent = 0;
    if (!strncmp(section, "uprobe", 6)) {
      void *f = strcmp(name, "sleeping") ? (void *)awake_target : (void *)sleeping_target;
      struct bpf_link *link = bpf_program__attach_uprobe(prog, false, 0, "/proc/self/exe", offset_of(f));
      if (!link) return fprintf(stderr, "attach %s: %s\n", name, strerror(errno)), 1;
      jump = 0;
      call(name);
      jump = strcmp(name, "awake") == 0;
      if (jump) call(name), call(name);
      bpf_link__destroy(link);
    } else if (run(prog)) {
      return fprintf(stderr, "run %s: %s\n", name, strerror(errno)), 1;
    }
    show(name, results, VAR(unsigned, "used"));
    printf("%s signals %d %d of the kernel %d\n", name, process_signals, thread_signals, kernel_sent);
  }
  if (pipe) {
    char text[4096];
    int fd = open("/sys/kernel/debug/tracing/trace_pipe", O_RDONLY | O_NONBLOCK);
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    while (poll(&readable, 1, 300) > 0) {
      ssize_t n = read(fd, text, sizeof text);
      if (n <= 0) break;
      fwrite(text, 1, n, stdout);
    }
  }
  if (ring) {
    struct ring_buffer *records = ring_buffer__new(bpf_object__find_map_fd_by_name(obj, "ring"), on_record, 0, 0);
    printf("consumed %d\n", ring_buffer__consume(records));
  }
  while (wait && getchar() != EOF) {}
  return 0;
}
