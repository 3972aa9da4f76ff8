// Calls look(pointer, length), which a program reads through, in a process that makes that hard:
//   reads plain        all sorts of pointers
//   reads handler      with a SIGSEGV handler of its own, which must see its own faults only
//   reads late         installs the handler only after the first reads, by a raw system call
//   reads blocked      in a thread that blocks every signal, by a raw system call
//   reads seccomp      where process_vm_readv kills
//   reads race         while another thread maps and unmaps the page; prints RACED n
// Reads a line before it begins, ends with DONE.
#define _GNU_SOURCE
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

__attribute__((noinline, noclone, used)) long look(const void *p, long n) { __asm__ volatile("" ::"r"(p) : "memory"); return n; }

static sigjmp_buf back;
static volatile sig_atomic_t faults;
static void on_fault(int sig, siginfo_t *info, void *uc) {
  (void)sig, (void)uc;
  faults++;
  if (info->si_addr != (void *)0x18) write(1, "WRONG ADDRESS\n", 14), _exit(3);
  siglongjmp(back, 1);
}

static void own_fault(void) {
  if (!sigsetjmp(back, 1)) *(volatile int *)0x18 = 1;
}

static char *page;
static long size = 4096;

static void pointers(void) {
  strcpy(page, "hello");
  memcpy(page + size - 6, "edge!", 6);
  memcpy(page + size - 3, "abc", 3); // not terminated before the end
  look(page, 8);
  look(page, 3);
  look(page, 0);
  look(page + size - 3, 3);
  look(page + size - 3, 8);
  look(page + size, 8);     // PROT_NONE
  look((void *)0xf000, 8);  // nothing
  look(0, 8);
  look(0, 0);
  look((void *)0x10, 1);
  look((void *)0xffff800000000000, 8);
  look((void *)0x00f0000000000000, 8); // no canonical address
  look((void *)-4, 8);
}

static void *blocked(void *arg) {
  uint64_t all = ~0ull;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, 0, 8);
  pointers();
  return arg;
}

static void filter(void) {
  struct sock_filter f[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog prog = {sizeof f / sizeof *f, f};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog)) puts("NO SECCOMP");
}

static atomic_int stop;
static void *flip(void *at) {
  while (!stop) {
    munmap(at, size);
    mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  }
  return 0;
}

struct kernel_action { void (*handler)(int, siginfo_t *, void *); unsigned long flags; void (*restorer)(void); uint64_t mask; };
extern void restore(void);
__asm__("restore: mov $15, %eax; syscall");

int main(int argc, char **argv) {
  const char *mode = argc > 1 ? argv[1] : "plain";
  page = mmap(0, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(page + size, size, PROT_NONE);
  puts("RUNNING"), fflush(stdout);
  char line[16];
  if (!fgets(line, sizeof line, stdin)) return 1;
  if (!strcmp(mode, "handler")) {
    struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &sa, 0);
    own_fault();
    pointers();
    own_fault();
    struct sigaction now;
    sigaction(SIGSEGV, 0, &now);
    printf("FAULTS %d HANDLER %s\n", faults, now.sa_sigaction == on_fault ? "kept" : "changed");
  } else if (!strcmp(mode, "late")) {
    struct kernel_action ka = {on_fault, SA_SIGINFO | 0x04000000, restore, 0};
    look(0, 8);
    syscall(SYS_rt_sigaction, SIGSEGV, &ka, 0, 8);
    own_fault();
    sleep(3); // longer than between two looks of the agent
    pointers();
    own_fault();
    printf("FAULTS %d\n", faults);
  } else if (!strcmp(mode, "blocked")) {
    pthread_t t;
    pthread_create(&t, 0, blocked, 0);
    pthread_join(t, 0);
  } else if (!strcmp(mode, "seccomp")) {
    filter();
    pointers();
  } else if (!strcmp(mode, "seccomp-blocked")) {
    filter();
    pthread_t t;
    pthread_create(&t, 0, blocked, 0);
    pthread_join(t, 0);
  } else if (!strcmp(mode, "race")) {
    pthread_t t;
    pthread_create(&t, 0, flip, page);
    long n = 0;
    for (; n < 200000; n++) look(page + 8 * (n & 255), 8);
    stop = 1;
    pthread_join(t, 0);
    printf("RACED %ld\n", n);
  } else {
    pointers();
  }
  puts("DONE");
  return 0;
}
