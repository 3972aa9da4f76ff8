// Ten thousand functions of 32 bytes each, from `first` on. Reads lines: `a` calls each once; `v` prints what the first
// returns for 1; `t` prints what a call of it takes, in ns; `s` prints the semaphore; `f` forks by a bare system call a child that calls the first every millisecond for ten seconds; `c` closes
// every descriptor the program does not know; anything else prints whether their bytes are as at start.
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define N 10000
#define SIZE 32
__asm__(".text\n.globl first\n.type first,@function\n.p2align 5\nfirst:\n"
        ".rept 10000\n push %rbp\n mov %rsp,%rbp\n mov %edi,%eax\n inc %eax\n pop %rbp\n ret\n.p2align 5\n.endr\n"
        ".size first,.-first\n");
extern int first(int);

static unsigned char before[N * SIZE];
volatile unsigned short semaphore __attribute__((section(".probes"), used));

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }

// The least of some rounds: what the machine does beside comes on top.
static double call_takes(void) {
  double least = 1e9;
  for (int r = 0; r < 201; r++) {
    double t = now();
    for (int i = 0; i < 2000; i++) first(i);
    t = (now() - t) / 2000;
    if (t < least) least = t;
  }
  return least;
}

int main(void) {
  const char *code = (const char *)first;
  memcpy(before, code, sizeof before);
  puts("RUNNING");
  fflush(stdout);
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    long bad = 0;
    if (*line == 'a') {
      for (int i = 0; i < N; i++) bad += ((int (*)(int))(code + i * SIZE))(i) != i + 1;
      printf("called errors %ld\n", bad);
    } else if (*line == 'v') {
      printf("value %d\n", first(1));
    } else if (!strcmp(line, "t\n")) {
      printf("takes %.2f\n", call_takes());
    } else if (*line == 's') {
      printf("semaphore %d\n", semaphore);
    } else if (*line == 'c') {
      printf("closed %ld\n", syscall(SYS_close_range, 3, ~0u, 0));
    } else if (*line == 'f') {
      long pid = syscall(SYS_fork);
      for (int i = 0; !pid && i < 10000; i++) first(i), usleep(1000);
      if (!pid) _exit(0);
      printf("child %ld\n", pid);
    } else {
      printf("text %s\n", memcmp(before, code, sizeof before) ? "changed" : "same");
    }
    fflush(stdout);
  }
  return 0;
}
