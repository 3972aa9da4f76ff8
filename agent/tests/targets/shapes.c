/* Functions whose calling conventions a probe must not disturb. Compiled -O2 -fPIC -shared. */
#define _GNU_SOURCE
#include <execinfo.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>
#include <pthread.h>
#define P __attribute__((noinline, noipa, visibility("default")))

P long sh_plain(long a, long b) { return a * 31 + b; }
P double sh_double(double a, double b, double c, double d, double e, double f, double g, double h, double i) { return a + 2*b + 3*c + 4*d + 5*e + 6*f + 7*g + 8*h + 9*i; }
P long double sh_x87(long double a, long double b) { return a * b + 1.0L; }
P long sh_stack(long a, long b, long c, long d, long e, long f, long g, long h, long i) { return a + 2*b + 3*c + 4*d + 5*e + 6*f + 7*g + 8*h + 9*i; }
P int sh_varargs(int n, ...) { va_list ap; va_start(ap, n); double s = 0; for (int i = 0; i < n; i++) s += va_arg(ap, double); va_end(ap); return (int)s; }
struct big { long v[12]; };
struct pair { long a; double b; };
P struct big sh_struct(long seed) { struct big r; for (int i = 0; i < 12; i++) r.v[i] = seed + i; return r; }
P struct pair sh_pair(long a, double b) { struct pair p = { a + 1, b * 2 }; return p; }
typedef float v8 __attribute__((vector_size(32)));
__attribute__((target("avx"))) P v8 sh_ymm(v8 a, v8 b) { return a + b; }
P long sh_recurse(long n) { if (n == 0) return 0; long r = sh_recurse(n - 1); __asm__ volatile("" : "+r"(r)); return r + 1; }
P long sh_tail_c(long x) { __asm__ volatile("" ::: "memory"); return x + 3; }
P long sh_tail_b(long x) { return sh_tail_c(x + 10); }
P long sh_tail_a(long x) { return sh_tail_b(x + 100); }

/* 1: every value came back as the unprobed functions compute it. */
P int sh_check(int avx)
{
    if (sh_plain(3, 4) != 97) return -1;
    if (sh_double(1, 2, 3, 4, 5, 6, 7, 8, 9) != 285) return -2;
    if (sh_x87(3.5L, 2.0L) != 8.0L) return -3;
    if (sh_stack(1, 2, 3, 4, 5, 6, 7, 8, 9) != 285) return -4;
    if (sh_varargs(3, 1.5, 2.5, 3.0) != 7) return -5;
    struct big b = sh_struct(40);
    for (int i = 0; i < 12; i++) if (b.v[i] != 40 + i) return -6;
    struct pair p = sh_pair(6, 1.25);
    if (p.a != 7 || p.b != 2.5) return -7;
    if (sh_recurse(20) != 20) return -8;
    if (sh_tail_a(1) != 114) return -9;
    (void)avx;
    return 1;
}
__attribute__((target("avx"))) P int sh_check_ymm(void)
{
    v8 a = { 1, 2, 3, 4, 5, 6, 7, 8 }, b = { 10, 20, 30, 40, 50, 60, 70, 80 };
    v8 r = sh_ymm(a, b);
    for (int i = 0; i < 8; i++) if (r[i] != (i + 1) * 11) return -1;
    return 1;
}

static jmp_buf env;
P void sh_jump(int v) { longjmp(env, v); }
P int sh_jumps(int n) { volatile int i = 0; while (i < n) { if (setjmp(env) == 0) { i++; sh_jump(1); } } return i; }

static void *frames[64];
P int sh_trace_leaf(void) { int n = backtrace(frames, 64); __asm__ volatile("" : "+r"(n)); return n; }
P int sh_trace_mid(void) { int n = sh_trace_leaf(); __asm__ volatile("" : "+r"(n)); return n; }
P int sh_trace_top(void) { int n = sh_trace_mid(); __asm__ volatile("" : "+r"(n)); return n; }
P void **sh_frames(void) { return frames; }

static volatile long ticks;
P long sh_tick(long x) { return x + 1; }
static void on_alarm(int s) { (void)s; ticks = sh_tick(ticks); }
/* n calls under a timer that interrupts this very thread every 50 us */
P long sh_timed(long n)
{
    struct sigaction sa = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
    struct sigevent ev = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGALRM };
    ev._sigev_un._tid = gettid();
    struct itimerspec it = { { 0, 50000 }, { 0, 50000 } };
    timer_t timer;
    sigaction(SIGALRM, &sa, 0);
    ticks = 0;
    if (timer_create(CLOCK_MONOTONIC, &ev, &timer)) return -1;
    timer_settime(timer, 0, &it, 0);
    for (long i = 0; i < n; i++) if (sh_plain(i, 1) != i * 31 + 1) { ticks = -1000000000; break; }
    timer_delete(timer);
    return ticks;
}

static ucontext_t here, there;
P long sh_yield(long x) { swapcontext(&there, &here); return x + 1; }
static long co_sum;
static void co(void) { for (int i = 0; i < 100; i++) co_sum += sh_yield(i); }
P long sh_main_side(long x) { swapcontext(&here, &there); return x; }
P long sh_coroutines(void)
{
    char *stack = malloc(16384);
    getcontext(&there);
    there.uc_stack.ss_sp = stack; there.uc_stack.ss_size = 16384; there.uc_link = &here;
    co_sum = 0;
    makecontext(&there, co, 0);
    for (int i = 0; i < 101; i++) if (sh_main_side(i) != i) return -1;
    free(stack);
    return co_sum;
}

P void sh_exits(void) { pthread_exit((void *)7); }
static void *exits(void *a) { (void)a; sh_exits(); return 0; }
P void sh_sleeps(void) { for (;;) pause(); }
static void *sleeps(void *a) { (void)a; sh_sleeps(); return 0; }
P int sh_thread_ends(void)
{
    pthread_t t; void *r = 0;
    if (pthread_create(&t, 0, exits, 0)) return -1;
    pthread_join(t, &r);
    if (r != (void *)7) return -2;
    if (pthread_create(&t, 0, sleeps, 0)) return -3;
    usleep(2000);
    pthread_cancel(t);
    pthread_join(t, &r);
    return r == PTHREAD_CANCELED ? 1 : -4;
}

P int sh_forks(int x) { pid_t p = fork(); if (p == 0) return -x; int st = 0; waitpid(p, &st, 0); return WEXITSTATUS(st); }
P int sh_fork_inside(void) { int r = sh_forks(9); if (r < 0) { long s = 0; for (int i = 0; i < 1000; i++) s += sh_plain(i, 0) == i * 31; _exit(s == 1000 ? -r : 99); } return r; }
P int sh_vforked(char *const *argv)
{
    pid_t p = vfork();
    if (p == 0) { if (sh_plain(2, 1) != 63) _exit(98); execv("/bin/true", argv); _exit(97); }
    int st = 0; waitpid(p, &st, 0);
    return WIFEXITED(st) ? WEXITSTATUS(st) : -1;
}

/* many threads, one function each way */
static volatile int stop, wrong;
static void *hammer(void *seed)
{
    long i = (long)seed;
    while (!stop) {
        i++;
        if (sh_plain(i, 7) != i * 31 + 7 || sh_tail_a(i) != i + 113) wrong = 1;
        if (sh_double(i, 0, 0, 0, 0, 0, 0, 0, 1) != i + 9) wrong = 2;
        if ((i & 63) == 0 && sh_recurse(30) != 30) wrong = 3;
        struct pair p = sh_pair(i, 1); if (p.a != i + 1 || p.b != 2) wrong = 4;
    }
    return 0;
}
static pthread_t crowd[256]; static int crowded;
P int sh_crowd_start(int n) { stop = wrong = 0; crowded = n; for (long i = 0; i < n; i++) if (pthread_create(&crowd[i], 0, hammer, (void *)(i * 1000))) return -1; return 0; }
P int sh_crowd_stop(void) { stop = 1; for (int i = 0; i < crowded; i++) pthread_join(crowd[i], 0); return wrong; }
static void *mayfly(void *s) { long i = (long)s; return (void *)(sh_plain(i, 1) == i * 31 + 1 ? 1L : 0L); }
P int sh_mayflies(int n) { for (long i = 0; i < n; i++) { pthread_t t; void *r; if (pthread_create(&t, 0, mayfly, (void *)i)) return -1; pthread_join(t, &r); if (!r) return -2; } return 1; }

/* the application's own signals */
static volatile int traps, faults; static int trap_mask_ok;
static void app_trap(int s, siginfo_t *i, void *u)
{
    (void)s; (void)i; (void)u; traps++;
    sigset_t now; pthread_sigmask(SIG_BLOCK, 0, &now);
    trap_mask_ok = sigismember(&now, SIGUSR1) && sigismember(&now, SIGTRAP) && !sigismember(&now, SIGUSR2);
}
static sigjmp_buf fault_env;
static void app_fault(int s) { (void)s; faults++; siglongjmp(fault_env, 1); }
static void app_skip(int s, siginfo_t *i, void *u) { (void)s; (void)i; faults++; ((ucontext_t *)u)->uc_mcontext.gregs[REG_RDI] = (long)&traps; }
P int sh_load(int *p) { return *p; }
typedef int (*sigaction_fn)(int, const struct sigaction *, struct sigaction *);
P int sh_own_trap(sigaction_fn sigact)
{
    struct sigaction sa = { .sa_sigaction = app_trap, .sa_flags = SA_SIGINFO }, back;
    sigaddset(&sa.sa_mask, SIGUSR1);
    sigact(SIGTRAP, &sa, 0);
    if (sigact(SIGTRAP, 0, &back) || back.sa_sigaction != app_trap || !sigismember(&back.sa_mask, SIGUSR1)) return -1;
    traps = 0;
    for (int i = 0; i < 10; i++) __asm__ volatile("int3");
    raise(SIGTRAP);
    return trap_mask_ok ? traps : -2;
}
P int sh_own_fault(sigaction_fn sigact)
{
    struct sigaction sa = { .sa_handler = app_fault };
    sigact(SIGSEGV, &sa, 0);
    faults = 0;
    for (int i = 0; i < 10; i++) if (sigsetjmp(fault_env, 1) == 0) sh_load((int *)8);
    sa.sa_sigaction = app_skip; sa.sa_flags = SA_SIGINFO;
    sigact(SIGSEGV, &sa, 0);
    for (int i = 0; i < 10; i++) if (sh_load((int *)16) != traps) return -1;
    return faults;
}
P int sh_dies(int how, sigaction_fn sigact)
{
    pid_t p = fork();
    if (p == 0) {
        struct sigaction dfl = { .sa_handler = SIG_DFL }, ign = { .sa_handler = SIG_IGN };
        if (how == 0) { sigact(SIGSEGV, &dfl, 0); sh_load((int *)8); }
        if (how == 1) { sigact(SIGTRAP, &dfl, 0); __asm__ volatile("int3"); }
        if (how == 2) { sigact(SIGTRAP, &ign, 0); raise(SIGTRAP); _exit(5); }
        if (how == 3) { sigact(SIGTRAP, &ign, 0); __asm__ volatile("int3"); }
        if (how == 4) { struct sigaction once = { .sa_handler = app_fault, .sa_flags = SA_RESETHAND | SA_NODEFER }; sigact(SIGSEGV, &once, 0);
                        if (sigsetjmp(fault_env, 1) == 0) sh_load((int *)8); sh_load((int *)8); }
        if (how == 5) { sigact(SIGSEGV, &dfl, 0); raise(SIGSEGV); }
        _exit(77);
    }
    int st = 0; waitpid(p, &st, 0);
    return WIFSIGNALED(st) ? WTERMSIG(st) : 100 + WEXITSTATUS(st);
}
static volatile int parked;
static void *deaf(void *a) { sigset_t all; sigfillset(&all); pthread_sigmask(SIG_SETMASK, &all, 0); parked = 1; long s = 0; while (!stop) s += sh_plain(1, 1) + sh_recurse(1); return (void *)s; }
P int sh_deaf_start(void) { stop = parked = 0; crowded = 1; if (pthread_create(&crowd[0], 0, deaf, 0)) return -1; while (!parked) usleep(100); return 1; }
