// calls [REPS [N [THREADS [FUNCTION]]]]: times a function in each thread; prints MEDIAN MIN MAX in ns per call, of the slowest thread. Waits
// for a line on stdin first, so that a probe can be attached. FUNCTION is `probed`, or what a probe on it could cost at the least: `entry_limit`
// and `return_limit` do the same behind a hook that is written into them.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST = 1001 };
static int reps = 21;
static long n = 200000;
static pthread_barrier_t together;
struct times { double v[MOST]; char apart[128]; };

// As compilers begin most functions that are worth a probe; the kernel emulates that `push`, where it has to single-step others.
long probed(long a, long b);
__asm__(
  ".text\n .p2align 6\n .type probed, @function\n"
  "probed: push %rbp\n mov %rsp, %rbp\n lea (%rdi,%rsi), %rax\n pop %rbp\n ret\n"
  ".size probed, .-probed\n");

// All of pt_regs is written, C is called, what C may change is put back. One thread at a time: there is one return slot.
struct regs { long word[21]; };
__attribute__((noinline, noclone, used)) static void hook(struct regs *regs) { __asm__ volatile("" :: "r"(regs) : "memory"); }

__asm__(
  ".macro CALL_HOOK sp\n"
  "lea -168(%rsp), %rsp\n"
  "mov %r15, (%rsp)\n mov %r14, 8(%rsp)\n mov %r13, 16(%rsp)\n mov %r12, 24(%rsp)\n mov %rbp, 32(%rsp)\n mov %rbx, 40(%rsp)\n"
  "mov %r11, 48(%rsp)\n mov %r10, 56(%rsp)\n mov %r9, 64(%rsp)\n mov %r8, 72(%rsp)\n mov %rax, 80(%rsp)\n mov %rcx, 88(%rsp)\n"
  "mov %rdx, 96(%rsp)\n mov %rsi, 104(%rsp)\n mov %rdi, 112(%rsp)\n movq $-1, 120(%rsp)\n movq $0x33, 136(%rsp)\n"
  "movq $0x2b, 160(%rsp)\n lea \\sp+168(%rsp), %rax\n mov %rax, 152(%rsp)\n lea probed(%rip), %rax\n mov %rax, 128(%rsp)\n"
  "movq $0x202, 144(%rsp)\n mov %rsp, %rbp\n mov %rsp, %rdi\n and $-16, %rsp\n call hook\n mov %rbp, %rsp\n"
  "mov 32(%rsp), %rbp\n mov 48(%rsp), %r11\n mov 56(%rsp), %r10\n mov 64(%rsp), %r9\n mov 72(%rsp), %r8\n mov 80(%rsp), %rax\n"
  "mov 88(%rsp), %rcx\n mov 96(%rsp), %rdx\n mov 104(%rsp), %rsi\n mov 112(%rsp), %rdi\n lea 168(%rsp), %rsp\n"
  ".endm\n"
  ".pushsection .bss\n return_slot: .skip 8\n .popsection\n"
  ".text\n .p2align 6\n"
  "entry_limit: jmp 1f\n" // for `push %rbp; mov %rsp, %rbp`, and what is left of 5 bytes
  "2: lea (%rdi,%rsi), %rax\n pop %rbp\n ret\n"
  ".p2align 6\n"
  "1: lea -128(%rsp), %rsp\n CALL_HOOK 128\n lea 128(%rsp), %rsp\n push %rbp\n mov %rsp, %rbp\n jmp 2b\n"
  ".p2align 6\n"
  "return_limit: jmp 1f\n"
  "2: lea (%rdi,%rsi), %rax\n pop %rbp\n ret\n"
  ".p2align 6\n"
  "1: pop return_slot(%rip)\n call 3f\n push return_slot(%rip)\n CALL_HOOK 8\n ret\n"
  "3: push %rbp\n mov %rsp, %rbp\n jmp 2b\n");
long entry_limit(long a, long b);
long return_limit(long a, long b);
static long (*volatile function)(long, long) = probed;

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
static int cmp(const void *a, const void *b) { double x = *(double *)a, y = *(double *)b; return (x > y) - (x < y); }

static void *calls(void *arg) {
  struct times *times = arg;
  long (*f)(long, long) = function;
  volatile long sink = 0;
  for (long i = 0; i < 10000; i++) sink += f(i, 1);
  pthread_barrier_wait(&together);
  for (int k = 0; k < reps; k++) {
    double t = now();
    for (long i = 0; i < n; i++) sink += f(i, 1);
    times->v[k] = (now() - t) / n;
  }
  qsort(times->v, reps, sizeof *times->v, cmp);
  return 0;
}

int main(int argc, char **argv) {
  static struct times times[64];
  pthread_t thread[64];
  char line[16];
  if (argc > 1) reps = atoi(argv[1]);
  if (argc > 2) n = atol(argv[2]);
  int threads = argc > 3 ? atoi(argv[3]) : 1, slowest = 0;
  if (argc > 4 && !strcmp(argv[4], "entry_limit")) function = entry_limit;
  if (argc > 4 && !strcmp(argv[4], "return_limit")) function = return_limit;
  puts("RUNNING");
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) return 1;
  pthread_barrier_init(&together, 0, threads);
  for (int i = 1; i < threads; i++) pthread_create(&thread[i], 0, calls, &times[i]);
  calls(&times[0]);
  for (int i = 1; i < threads; i++) pthread_join(thread[i], 0);
  for (int i = 0; i < threads; i++) if (times[i].v[reps / 2] > times[slowest].v[reps / 2]) slowest = i;
  double *v = times[slowest].v;
  printf("RESULT %.2f %.2f %.2f\n", v[reps / 2], v[0], v[reps - 1]);
  return 0;
}
