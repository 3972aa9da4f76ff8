// Processes of every kind, each calling work() as often as it says. Prints CALLS n, the sum, at the end.
//   family LIB     in one process after the other: threads, fork, vfork + exec, posix_spawn, exec, and LIB loaded, closed, loaded
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

__attribute__((noinline, noclone, used)) long work(long a) { __asm__ volatile("" ::: "memory"); return a + 1; }

extern char **environ;
static char *self;
static long calls;

static void call(int n) {
  for (int i = 0; i < n; i++)
    if (work(i) != i + 1) abort();
}

static void *thread(void *n) { call((long)n); return 0; }

static void wait_for(pid_t pid, int n) {
  int status = -1;
  if (pid <= 0 || waitpid(pid, &status, 0) != pid || status) { printf("child %d failed: %d\n", pid, status); exit(1); }
  calls += n;
}

static void threads(void) {
  pthread_t t[8];
  for (long i = 0; i < 8; i++) pthread_create(&t[i], 0, thread, (void *)(i + 1));
  for (int i = 0; i < 8; i++) pthread_join(t[i], 0);
  calls += 36;
}

static void forks(void) {
  for (int i = 1; i <= 5; i++) {
    pid_t p = fork();
    if (!p) { call(i * 10); _exit(0); }
    wait_for(p, i * 10);
  }
  pid_t p = fork();
  if (!p) {
    pid_t q = fork();
    if (!q) { call(3); _exit(0); }
    waitpid(q, 0, 0);
    call(4);
    _exit(0);
  }
  wait_for(p, 7);
}

static void execs(void) {
  char *argv[] = {self, "call", "11", 0};
  pid_t p = vfork();
  if (!p) { execv(self, argv); _exit(127); }
  wait_for(p, 11);
  argv[2] = "13";
  posix_spawn(&p, self, 0, 0, argv, environ);
  wait_for(p, 13);
  char command[4096];
  snprintf(command, sizeof command, "exec '%s' call 17", self);
  if (system(command)) exit(1);
  calls += 17;
  p = fork();
  if (!p) { call(2); execl(self, self, "call", "19", (char *)0); _exit(127); }
  wait_for(p, 21);
}

static void library(const char *path) {
  for (int i = 0; i < 3; i++) {
    void *lib = dlopen(path, RTLD_NOW);
    long (*f)(long) = lib ? (long (*)(long))dlsym(lib, "in_library") : 0;
    if (!f) { puts(dlerror()); exit(1); }
    for (int k = 0; k < 7; k++)
      if (f(k) != k + 2) abort();
    dlclose(lib);
  }
}

int main(int argc, char **argv) {
  self = argv[0];
  if (argc > 2 && !strcmp(argv[1], "call")) { call(atoi(argv[2])); return 0; }
  char line[16];
  puts("READY");
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) return 1;
  call(1), calls++;
  threads();
  forks();
  execs();
  library(argv[1]);
  call(1), calls++;
  printf("CALLS %ld\n", calls);
  return 0;
}
