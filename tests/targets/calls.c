// calls [REPS [N [THREADS]]]: times one function in each thread; prints MEDIAN MIN MAX in ns per call, of the slowest thread. Waits for a line
// on stdin first, so that a probe can be attached.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MOST = 1001 };
static int reps = 21;
static long n = 200000;
static pthread_barrier_t together;
struct times { double v[MOST]; char apart[128]; };

__attribute__((noinline, noclone, used)) long probed(long a, long b) { __asm__ volatile("" ::: "memory"); return a + b; }

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
static int cmp(const void *a, const void *b) { double x = *(double *)a, y = *(double *)b; return (x > y) - (x < y); }

static void *calls(void *arg) {
  struct times *times = arg;
  volatile long sink = 0;
  for (long i = 0; i < 10000; i++) sink += probed(i, 1);
  pthread_barrier_wait(&together);
  for (int k = 0; k < reps; k++) {
    double t = now();
    for (long i = 0; i < n; i++) sink += probed(i, 1);
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
