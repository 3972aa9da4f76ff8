// Times one function: prints MEDIAN MIN MAX in ns per call. Waits for a line on stdin first, so that a probe can be attached.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

__attribute__((noinline, noclone, used)) long probed(long a, long b) { __asm__ volatile("" ::: "memory"); return a + b; }

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
static int cmp(const void *a, const void *b) { double x = *(double *)a, y = *(double *)b; return (x > y) - (x < y); }

int main(int argc, char **argv) {
  int reps = argc > 1 ? atoi(argv[1]) : 21;
  long n = argc > 2 ? atol(argv[2]) : 200000;
  double v[1001];
  volatile long sink = 0;
  char line[16];
  puts("RUNNING");
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) return 1;
  for (long i = 0; i < 10000; i++) sink += probed(i, 1);
  for (int k = 0; k < reps; k++) {
    double t = now();
    for (long i = 0; i < n; i++) sink += probed(i, 1);
    v[k] = (now() - t) / n;
  }
  qsort(v, reps, sizeof *v, cmp);
  printf("RESULT %.2f %.2f %.2f\n", v[reps / 2], v[0], v[reps - 1]);
  return 0;
}
