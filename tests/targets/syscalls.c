// System calls by every way there is. Usage: syscalls MODE. The process is named after the mode; what lies between
// calls 501 and 502 is for counting. Says "ok" when everything came out as without a tracer.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(x) do { if (!(x)) { printf("failed: %s (line %d, errno %d)\n", #x, __LINE__, errno); exit(1); } } while (0)

static inline long inline_call(long nr, long a, long b, long c) {
  long r;
  __asm__ volatile("syscall" : "=a"(r) : "a"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return r;
}

// As Go has it: no unwind information, its own convention, the number from the stack.
extern long go_call(long nr);
extern long loop_call(long nr, long times);
__asm__(".text\n.p2align 5, 0xcc\n.type go_call,@function\ngo_call: push %rdi\nmov (%rsp),%rax\nsyscall\n"
        "add $8,%rsp\nret\n.size go_call,.-go_call\n.p2align 5, 0xcc\n"
        // The instruction is jumped to, and nothing before it says the number.
        ".type loop_call,@function\nloop_call: .cfi_startproc\nmov %rsi,%r8\nmov %rdi,%r9\nmov %r9,%rax\njmp 1f\n"
        "2: mov %r9,%rax\n1: syscall\ndec %r8\njnz 2b\nret\n.cfi_endproc\n.size loop_call,.-loop_call\n");

typedef long (*code)(void);
static unsigned char *page;

// getppid, generated; the page is never writable and executable at once.
static code generate(int nr) {
  unsigned char text[] = {0xb8, nr, nr >> 8, 0, 0, 0x0f, 0x05, 0xc3};
  if (!page) page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(page != MAP_FAILED);
  CHECK(!mprotect(page, 4096, PROT_READ | PROT_WRITE));
  memcpy(page, text, sizeof text);
  CHECK(!mprotect(page, 4096, PROT_READ | PROT_EXEC));
  return (code)page;
}

static void calls(code f, int n) {
  for (int i = 0; i < n; i++) CHECK(f() == getppid());
}

static void inlined(void) {
  for (int i = 0; i < 1000; i++) CHECK(inline_call(SYS_getppid, 0, 0, 0) == getppid());
  for (int i = 0; i < 100; i++) CHECK(inline_call(SYS_read, -1, 0, 0) == -EBADF);
  CHECK(inline_call(500, 0, 0, 0) == -ENOSYS);
  CHECK(syscall(500) == -1 && errno == ENOSYS);
  // The processor clock is the kernel's business, the wall clock is not.
  struct timespec t;
  for (int i = 0; i < 10; i++) CHECK(!clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t));
  for (int i = 0; i < 10; i++) CHECK(!clock_gettime(CLOCK_MONOTONIC, &t));
}

static void generated(void) {
  calls(generate(SYS_getppid), 500);
  code f = generate(SYS_getpid);
  for (int i = 0; i < 100; i++) CHECK(f() == getpid());
}

static void stubs(void) {
  for (int i = 0; i < 300; i++) CHECK(go_call(SYS_getppid) == getppid());
  CHECK(loop_call(SYS_getppid, 200) == getppid());
}

static volatile sig_atomic_t hits;
static int ends[2];
static sigjmp_buf back;

static void on_alarm(int s) {
  (void)s;
  hits++;
  CHECK(write(ends[1], "x", 1) == 1);
}
static void on_leave(int s) {
  (void)s;
  hits++;
  siglongjmp(back, 1);
}
static void on_jit(int s) {
  (void)s;
  hits++;
  CHECK(((code)page)() == getppid());
}

static void handler(int sig, void (*f)(int), int flags) {
  struct sigaction a = {.sa_handler = f, .sa_flags = flags}, b;
  sigfillset(&a.sa_mask);
  CHECK(!sigaction(sig, &a, 0));
  CHECK(!sigaction(sig, 0, &b));
  CHECK(b.sa_handler == f && sigismember(&b.sa_mask, SIGSYS));
}
static void soon(void) {
  struct itimerval t = {.it_value = {0, 20000}};
  CHECK(!setitimer(ITIMER_REAL, &t, 0));
}

// A call that a signal interrupts is repeated, or not, or left.
static void restarted(void) {
  char c;
  CHECK(!pipe(ends));
  handler(SIGALRM, on_alarm, SA_RESTART);
  soon();
  CHECK(read(ends[0], &c, 1) == 1 && c == 'x');
  soon();
  CHECK(inline_call(SYS_read, ends[0], (long)&c, 1) == 1 && c == 'x');
  handler(SIGALRM, on_alarm, 0);
  soon();
  CHECK(read(ends[0], &c, 1) == -1 && errno == EINTR);
  CHECK(read(ends[0], &c, 1) == 1);
  soon();
  struct timespec t = {5, 0};
  CHECK(nanosleep(&t, &t) == -1 && errno == EINTR && t.tv_sec == 4);
  CHECK(read(ends[0], &c, 1) == 1);
  handler(SIGALRM, on_leave, 0);
  soon();
  if (!sigsetjmp(back, 1)) {
    CHECK(read(ends[0], &c, 1) == 12345);
  }
  CHECK(hits == 5);
}

// Handlers that block everything, on a stack of their own, in the middle of generated code.
static void masked(void) {
  stack_t st = {.ss_sp = malloc(65536), .ss_size = 65536};
  CHECK(!sigaltstack(&st, 0));
  code f = generate(SYS_getppid);
  calls(f, 10);
  handler(SIGUSR1, on_jit, SA_ONSTACK);
  for (int i = 0; i < 20; i++) CHECK(!raise(SIGUSR1));
  sigset_t all, old, now;
  sigfillset(&all);
  CHECK(!sigprocmask(SIG_SETMASK, &all, &old));
  CHECK(!sigprocmask(SIG_SETMASK, 0, &now) && sigismember(&now, SIGSYS));
  // Unseen while it blocks SIGSYS, but it must work.
  for (int i = 0; i < 7; i++) f();
  CHECK(!sigprocmask(SIG_SETMASK, &old, 0));
  calls(f, 10);
  CHECK(hits == 20);
}

static void on_sys(int s, siginfo_t *i, void *u) {
  (void)s, (void)u;
  hits += i->si_code <= 0;
}

// The program's own SIGSYS.
static void sigsys(void) {
  struct sigaction a = {.sa_sigaction = on_sys, .sa_flags = SA_SIGINFO}, b;
  CHECK(!sigaction(SIGSYS, &a, &b) && b.sa_handler == SIG_DFL);
  calls(generate(SYS_getppid), 50);
  CHECK(!sigaction(SIGSYS, 0, &b) && b.sa_sigaction == on_sys);
  CHECK(!kill(getpid(), SIGSYS) && hits == 1);
  calls((code)page, 50);
  CHECK(!syscall(SYS_rt_sigaction, SIGSYS, 0, &b, 8));
}

static void *worker(void *f) {
  for (int i = 0; i < 1000; i++) CHECK(((code)f)() == inline_call(SYS_getppid, 0, 0, 0));
  return 0;
}
static void threads(void) {
  pthread_t t[4];
  code f = generate(SYS_getppid);
  for (int i = 0; i < 4; i++) CHECK(!pthread_create(t + i, 0, worker, f));
  for (int i = 0; i < 4; i++) CHECK(!pthread_join(t[i], 0));
}

static void *reader(void *p) {
  char c;
  CHECK(read(ends[0], &c, 1) == 77);
  return p;
}
static void cancelled(void) {
  pthread_t t;
  void *r;
  CHECK(!pipe(ends));
  CHECK(!pthread_create(&t, 0, reader, 0));
  usleep(20000);
  CHECK(!pthread_cancel(t) && !pthread_join(t, &r) && r == PTHREAD_CANCELED);
}

// Children by every call, raw ones from generated code too.
static void children(void) {
  int st;
  char *argv[] = {"/bin/true", 0};
  extern char **environ;
  pid_t p = fork();
  if (!p) {
    for (int i = 0; i < 10; i++) inline_call(SYS_getppid, 0, 0, 0);
    _exit(3);
  }
  CHECK(waitpid(p, &st, 0) == p && WEXITSTATUS(st) == 3);
  p = vfork();
  if (!p) {
    execv("/nonexistent/program", argv);
    execv(argv[0], argv);
    _exit(4);
  }
  CHECK(waitpid(p, &st, 0) == p && st == 0);
  CHECK(!posix_spawn(&p, argv[0], 0, 0, argv, environ));
  CHECK(waitpid(p, &st, 0) == p && st == 0);
  CHECK(system("exit 7") == 7 << 8);
  code f = generate(SYS_fork);
  p = f();
  if (!p) {
    for (int i = 0; i < 10; i++) inline_call(SYS_getppid, 0, 0, 0);
    inline_call(SYS_exit_group, 5, 0, 0);
  }
  CHECK(waitpid(p, &st, 0) == p && WEXITSTATUS(st) == 5);
}

// A thread without the C library: its thread pointer is its parent's.
static volatile int done;
static char stack[65536] __attribute__((aligned(64)));
static void raw_threads(void) {
  struct clone_args a = {
    .flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_PARENT_SETTID |
             CLONE_CHILD_CLEARTID,
    .parent_tid = (unsigned long)&done, .child_tid = (unsigned long)&done,
    .stack = (unsigned long)stack, .stack_size = sizeof stack};
  for (int i = 0; i < 20; i++) {
    long r;
    // Everything of the child happens in assembly: no stack protector, no errno. Its stack is free when it is gone.
    __asm__ volatile("syscall\ntest %%eax,%%eax\njnz 1f\nmov $100,%%ebx\n"
                     "2: mov $110,%%eax\nsyscall\ndec %%ebx\njnz 2b\n"
                     "mov $60,%%eax\nxor %%edi,%%edi\nsyscall\n1:"
                     : "=a"(r) : "a"(SYS_clone3), "D"(&a), "S"(sizeof a) : "rcx", "r11", "rbx", "memory");
    CHECK(r > 0);
    while (done) __asm__ volatile("pause");
    for (int j = 0; j < 50; j++) inline_call(SYS_getppid, 0, 0, 0);
  }
}

// No call that an ordinary program of this kind does not make.
static void filtered(void) {
  struct sock_filter f[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 3, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_tgkill, 2, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 1, 0),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)};
  struct sock_fprog p = {sizeof f / sizeof *f, f};
  CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p));
  for (int i = 0; i < 100; i++) CHECK(inline_call(SYS_getppid, 0, 0, 0) == getppid());
  code g = generate(SYS_getppid);
  for (int i = 0; i < 100; i++) g();
}

static void closed(void) {
  for (int i = 3; i < 1024; i++) close(i);
  syscall(SYS_close_range, 3, ~0u, 0);
  calls(generate(SYS_getppid), 100);
}

int main(int argc, char **argv) {
  static const struct { const char *name; void (*f)(void); } modes[] = {
    {"inlined", inlined}, {"generated", generated}, {"stubs", stubs}, {"restarted", restarted}, {"masked", masked},
    {"sigsys", sigsys}, {"threads", threads}, {"cancelled", cancelled}, {"children", children},
    {"raw_threads", raw_threads}, {"filtered", filtered}, {"closed", closed}};
  setvbuf(stdout, 0, _IONBF, 0);
  for (unsigned i = 0; argc > 1 && i < sizeof modes / sizeof *modes; i++)
    if (!strcmp(argv[1], modes[i].name)) {
      prctl(PR_SET_NAME, argv[1]);
      // For attaching in the middle.
      if (argc > 2) CHECK(getchar() != EOF);
      syscall(501);
      modes[i].f();
      syscall(502);
      printf("ok\n");
      return 0;
    }
  return 2;
}
