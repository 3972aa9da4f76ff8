// N threads call work(i) all the time and check its result; on SIGTERM or after its input closes: prints
// CALLS n ERRORS e TEXT ok|changed. TEXT compares the bytes of work() with those at start.
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

__attribute__((noinline, noclone, used)) long work(long a, long b) { __asm__ volatile("" ::: "memory"); return a * 3 + b; }
__attribute__((noinline, noclone, used)) long other(long a) { __asm__ volatile("" ::: "memory"); return a + 1; }

static atomic_int stop;
static atomic_long calls, errors;

static void *body(void *arg) {
  long n = 0, bad = 0, id = (long)arg;
  while (!stop) {
    for (int i = 0; i < 100; i++, n++) bad += work(i, id) != i * 3 + id;
    if ((n & 0xfff) == 0) usleep(100);
  }
  atomic_fetch_add(&calls, n);
  atomic_fetch_add(&errors, bad);
  return 0;
}

int main(int argc, char **argv) {
  int n = argc > 1 ? atoi(argv[1]) : 1;
  unsigned char before[32];
  memcpy(before, (void *)work, sizeof before);
  pthread_t t[256];
  for (long i = 0; i < n; i++) pthread_create(&t[i], 0, body, (void *)i);
  puts("RUNNING");
  fflush(stdout);
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 'c') {
      long k = atol(line + 1), bad = 0;
      for (long i = 0; i < k; i++) bad += other(i) != i + 1;
      printf("called %ld errors %ld\n", k, bad);
    } else {
      printf("text %s\n", memcmp(before, (void *)work, sizeof before) ? "changed" : "same");
    }
    fflush(stdout);
  }
  stop = 1;
  for (int i = 0; i < n; i++) pthread_join(t[i], 0);
  printf("CALLS %ld ERRORS %ld\n", calls, errors);
  return errors != 0;
}
