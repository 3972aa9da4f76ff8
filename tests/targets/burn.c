// N threads use S milliseconds of processor time each; others sleep and wait all the while and count calls that a
// signal ended; another waits for signals. Prints READY, waits for a line, burns, prints
// PID p CPU ms EINTR n STRAY n per process; with `fork` a child does the same in between.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static atomic_int stop;
static atomic_long eintr, stray;

static long ms(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

__attribute__((noinline)) static void burn(long until) {
  volatile unsigned x = 0;
  while (ms(CLOCK_THREAD_CPUTIME_ID) < until)
    for (int i = 0; i < 20000; i++) x += i;
}

static void *burner(void *arg) { burn((long)arg); return 0; }

// Short bursts of work between calls that must not end early.
static void *sleeper(void *arg) {
  (void)arg;
  while (!stop) {
    struct timespec t = {0, 200000};
    burn(ms(CLOCK_THREAD_CPUTIME_ID) + 1);
    if (nanosleep(&t, 0) < 0 && errno == EINTR) eintr++;
    if (poll(0, 0, 1) < 0 && errno == EINTR) eintr++;
  }
  return 0;
}

static void *waiter(void *arg) {
  (void)arg;
  sigset_t all;
  siginfo_t info;
  struct timespec t = {0, 1000000};
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, 0);
  while (!stop) {
    burn(ms(CLOCK_THREAD_CPUTIME_ID) + 1);
    if (sigtimedwait(&all, &info, &t) > 0) stray++;
  }
  return 0;
}

static void run(int n, long each, int others) {
  pthread_t t[64], s, w;
  stop = 0;
  eintr = stray = 0;
  long before = ms(CLOCK_PROCESS_CPUTIME_ID);
  if (others) pthread_create(&s, 0, sleeper, 0), pthread_create(&w, 0, waiter, 0);
  for (int i = 0; i < n; i++) pthread_create(&t[i], 0, burner, (void *)each);
  for (int i = 0; i < n; i++) pthread_join(t[i], 0);
  stop = 1;
  if (others) pthread_join(s, 0), pthread_join(w, 0);
  printf("PID %d CPU %ld EINTR %ld STRAY %ld\n", getpid(), ms(CLOCK_PROCESS_CPUTIME_ID) - before, eintr, stray);
  fflush(stdout);
}

int main(int argc, char **argv) {
  int n = argc > 1 ? atoi(argv[1]) : 1;
  long each = argc > 2 ? atol(argv[2]) : 100;
  const char *how = argc > 3 ? argv[3] : "";
  char line[64];
  puts("READY");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    run(n, each, !strcmp(how, "others"));
    if (!strcmp(how, "fork")) {
      pid_t p = fork();
      if (!p) { run(n, each, 0); _exit(0); }
      waitpid(p, 0, 0);
    }
    puts("BURNT");
    fflush(stdout);
  }
  return 0;
}
