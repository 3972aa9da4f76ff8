// Under a seccomp filter that allows everything, with a page of generated code that makes a system call: READY, then for each
// line the call is made and `called` said.
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
  struct sock_filter f[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  struct sock_fprog p = {1, f};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p)) return perror("seccomp"), 1;
  unsigned char text[] = {0xb8, SYS_getppid, 0, 0, 0, 0x0f, 0x05, 0xc3};
  char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(page, text, sizeof text);
  if (mprotect(page, 4096, PROT_READ | PROT_EXEC)) return perror("mprotect"), 1;
  puts("READY");
  fflush(stdout);
  char line[16];
  while (fgets(line, sizeof line, stdin)) {
    puts(((long (*)(void))page)() == getppid() ? "called" : "wrong");
    fflush(stdout);
  }
}
