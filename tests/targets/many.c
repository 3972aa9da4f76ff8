// Ten thousand functions of 32 bytes each, from `first` on. Reads lines: `a` calls each once; anything else prints whether
// their bytes are as at start.
#include <stdio.h>
#include <string.h>

#define N 10000
#define SIZE 32
__asm__(".text\n.globl first\n.type first,@function\n.p2align 5\nfirst:\n"
        ".rept 10000\n push %rbp\n mov %rsp,%rbp\n mov %edi,%eax\n inc %eax\n pop %rbp\n ret\n.p2align 5\n.endr\n"
        ".size first,.-first\n");
extern int first(int);

static unsigned char before[N * SIZE];

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
    } else {
      printf("text %s\n", memcmp(before, code, sizeof before) ? "changed" : "same");
    }
    fflush(stdout);
  }
  return 0;
}
