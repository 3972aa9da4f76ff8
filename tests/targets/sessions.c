// Calls a function that calls itself. A line N: deep(N) is called, N + 1 calls in all; a line `threads N`: by four threads at once;
// `jump N`: it is left by longjmp from its innermost call. Each answers `done`.
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static jmp_buf out;

__attribute__((noipa)) long deep(long n, int jumps) {
  if (n <= 0) {
    if (jumps) longjmp(out, 1);
    return 0;
  }
  long below = deep(n - 1, jumps);
  __asm__ volatile("" : "+r"(below)); // no loop in its place
  return below + n;
}

static void *runs(void *n) {
  for (int i = 0; i < 50; i++) deep((long)n, 0);
  return 0;
}

int main(void) {
  char line[64];
  puts("RUNNING");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    if (!strncmp(line, "threads ", 8)) {
      pthread_t t[4];
      for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, runs, (void *)atol(line + 8));
      for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
    } else if (!strncmp(line, "jump ", 5)) {
      if (!setjmp(out)) deep(atol(line + 5), 1);
    } else {
      deep(atol(line), 0);
    }
    puts("done");
    fflush(stdout);
  }
}
