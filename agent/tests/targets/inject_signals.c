/* Counts queued realtime signals under a 1 ms timer; SIGTRAP is ignored, SIGUSR2 stays blocked throughout.
 * On SIGTERM prints how many realtime signals came. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

static volatile sig_atomic_t stop, ticks;
static volatile long rt, sum;

static void on_rt(int sig, siginfo_t *info, void *ctx)
{
	(void)sig, (void)ctx;
	rt++;
	sum += info->si_value.sival_int;
}
static void on_alarm(int sig) { (void)sig; ticks++; }
static void on_term(int sig) { (void)sig; stop = 1; }

int main(void)
{
	struct sigaction sa = { .sa_sigaction = on_rt, .sa_flags = SA_SIGINFO | SA_RESTART };
	sigaction(SIGRTMIN, &sa, NULL);
	signal(SIGALRM, on_alarm);
	signal(SIGTERM, on_term);
	signal(SIGTRAP, SIG_IGN);
	sigset_t set, now;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	struct itimerval it = { { 0, 1000 }, { 0, 1000 } };
	setitimer(ITIMER_REAL, &it, NULL);
	setvbuf(stdout, NULL, _IONBF, 0);
	printf("ready\n");
	while (!stop)
		pause();
	signal(SIGALRM, SIG_IGN);
	struct sigaction trap;
	sigaction(SIGTRAP, NULL, &trap);
	sigprocmask(SIG_SETMASK, NULL, &now);
	int mask_ok = sigismember(&now, SIGUSR2) && !sigismember(&now, SIGRTMIN) && !sigismember(&now, SIGALRM);
	printf("rt %ld sum %ld ticking %d trap_ignored %d mask %d\n", rt, sum, ticks > 0,
	       trap.sa_handler == SIG_IGN, mask_ok);
	return 0;
}
