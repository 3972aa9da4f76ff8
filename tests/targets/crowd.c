// crowd N CALLS: N processes, of which each calls work() CALLS times; every tenth goes on until it is killed. Waits for a line;
// then prints for each process CHILD pid begun returned, and "done", and stays until its input ends.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

__attribute__((noinline, noclone, used)) int work(int n) {
  __asm__ volatile("" ::: "memory");
  return n + 1;
}

static volatile struct member { int pid; long begun, returned; } *members;

static void call(volatile struct member *me, long calls) {
  for (long i = 0; i < calls; i++) me->begun++, work(i), me->returned++;
}

int main(int argc, char **argv) {
  int n = argc > 2 ? atoi(argv[1]) : 0;
  long calls = argc > 2 ? atol(argv[2]) : 0;
  char line[16];
  members = mmap(NULL, n * sizeof *members, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  puts("READY");
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) return 1;
  for (int i = 0; i < n; i++) {
    int pid = fork();
    if (pid == 0) call(&members[i], i % 10 ? calls : 1l << 60), _exit(0);
    if (pid < 0) return 1;
    members[i].pid = pid;
  }
  for (int i = 0; i < n; i += 10) {
    while (members[i].returned < 10) usleep(100);
    kill(members[i].pid, SIGKILL);
  }
  while (wait(NULL) > 0) {}
  for (int i = 0; i < n; i++) printf("CHILD %d %ld %ld\n", members[i].pid, members[i].begun, members[i].returned);
  puts("done");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {}
  return 0;
}
