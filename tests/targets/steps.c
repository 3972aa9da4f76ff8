// Calls a probed function between two labels, and makes a system call between two others, for whoever counts the
// instructions. Stops itself before.
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

__attribute__((noinline, noclone, used)) long probed(long a, long b) { __asm__ volatile("" ::: "memory"); return a + b; }

__attribute__((noinline, noclone)) static void counted(void) {
  long r;
  __asm__ volatile(".globl steps_begin, steps_end\n"
                   "steps_begin: mov $7, %%edi\n mov $1, %%esi\n call probed\n"
                   "steps_end: nop\n"
                   : "=a"(r) : : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
}

__attribute__((noinline, noclone)) static void called(void) {
  __asm__ volatile(".globl steps_call, steps_called\n"
                   "steps_call: nop\n call getppid@PLT\n"
                   "steps_called: nop\n"
                   : : : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
}

int main(void) {
  extern char steps_begin[], steps_end[], steps_call[], steps_called[];
  char line[16];
  printf("RUNNING %lx %lx %lx %lx\n", (long)steps_begin, (long)steps_end, (long)steps_call, (long)steps_called);
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) return 1;
  // Warm: thread block, slots, map elements, lazily bound symbols.
  for (int i = 0; i < 100; i++) {
    counted();
    called();
  }
  for (;;) {
    raise(SIGSTOP);
    counted();
    called();
  }
}
