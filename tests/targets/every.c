// A function that all programs of progs/every.bpf.c are attached to. Calls it once for each line of input.
#include <signal.h>
#include <stdio.h>

static volatile int usr1, usr2;
static void on_signal(int sig) { sig == SIGUSR1 ? usr1++ : usr2++; }

__attribute__((noinline, noclone)) long hit(char *text, long n) { __asm__ volatile("" ::: "memory"); return text[0] + n; }

int main(void) {
  static char text[64] = "wordwordwordword of the target";
  signal(SIGUSR1, on_signal), signal(SIGUSR2, on_signal);
  setvbuf(stdout, 0, _IOLBF, 0);
  puts("RUNNING");
  while (getchar() == '\n') {
    long result = hit(text, 77);
    printf("result %ld text %s signals %d %d\n", result, text, usr1, usr2);
  }
  return 0;
}
