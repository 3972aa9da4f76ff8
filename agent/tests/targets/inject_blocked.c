/* Blocks in one system call (argv[1]), and says whether it ended as it would have ended undisturbed.
 * Prints "ready", then "ok" or what went wrong. Calls go through syscall() so that libc adds no retry. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static int failed(const char *what, long r, int e, double took)
{
	printf("%s: result %ld errno %d (%s) after %.3f s\n", what, r, e, strerror(e), took);
	return 1;
}

#define SECONDS 1.5
static struct timespec wait_for = { 1, 500 * 1000 * 1000 };

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	long r = -2, want = 0;
	int want_errno = 0, timed = 1;
	char byte = 0;
	static int word;
	sigset_t set, none;
	sigemptyset(&none);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	setvbuf(stdout, NULL, _IONBF, 0);
	int sp[2];
	socketpair(AF_UNIX, SOCK_STREAM, 0, sp);
	struct timeval tv = { 1, 500000 };
	setsockopt(sp[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
	int ep = epoll_create1(0);
	struct epoll_event ev = { .events = EPOLLIN };
	epoll_ctl(ep, EPOLL_CTL_ADD, 0, &ev);
	struct pollfd pfd = { .fd = sp[0], .events = POLLIN };
	pid_t child = 0;
	if (!strcmp(what, "wait4") && (child = fork()) == 0) {
		nanosleep(&wait_for, NULL);
		_exit(0);
	}
	printf("ready\n");
	double t0 = now();
	errno = 0;
	if (!strcmp(what, "read")) {
		timed = 0, want = 1;
		r = syscall(SYS_read, 0, &byte, 1);
	} else if (!strcmp(what, "epoll_wait")) {
		timed = 0, want = 1;
		r = syscall(SYS_epoll_wait, ep, &ev, 1, -1);
	} else if (!strcmp(what, "epoll_timeout")) {
		timed = 2; /* begins anew */
		epoll_ctl(ep, EPOLL_CTL_DEL, 0, NULL);
		r = syscall(SYS_epoll_wait, ep, &ev, 1, 1500);
	} else if (!strcmp(what, "nanosleep")) {
		r = syscall(SYS_nanosleep, &wait_for, NULL);
	} else if (!strcmp(what, "clock_nanosleep")) {
		r = syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &wait_for, NULL);
	} else if (!strcmp(what, "poll")) {
		r = syscall(SYS_poll, &pfd, 1, 1500);
	} else if (!strcmp(what, "ppoll")) {
		/* SIGUSR1 is blocked outside and open inside: the mask must survive */
		sigprocmask(SIG_BLOCK, &set, NULL);
		r = ppoll(&pfd, 1, &wait_for, &none);
		sigset_t after;
		sigprocmask(SIG_SETMASK, NULL, &after);
		if (!sigismember(&after, SIGUSR1))
			return failed("mask after ppoll", 0, 0, 0);
	} else if (!strcmp(what, "select")) {
		r = select(0, NULL, NULL, NULL, &tv);
	} else if (!strcmp(what, "futex")) {
		want = -1, want_errno = ETIMEDOUT;
		r = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &wait_for, NULL, 0);
	} else if (!strcmp(what, "sigtimedwait")) {
		timed = 2, want = -1, want_errno = EAGAIN;
		sigprocmask(SIG_BLOCK, &set, NULL);
		r = syscall(SYS_rt_sigtimedwait, &set, NULL, &wait_for, 8);
	} else if (!strcmp(what, "semtimedop")) {
		timed = 2, want = -1, want_errno = EAGAIN;
		struct sembuf op = { 0, -1, 0 };
		int sem = semget(IPC_PRIVATE, 1, 0600);
		r = semtimedop(sem, &op, 1, &wait_for);
		int e = errno;
		semctl(sem, 0, IPC_RMID);
		errno = e;
	} else if (!strcmp(what, "recv")) {
		timed = 2, want = -1, want_errno = EAGAIN;
		r = syscall(SYS_recvfrom, sp[0], &byte, 1, 0, NULL, NULL);
	} else if (!strcmp(what, "wait4")) {
		want = child;
		r = syscall(SYS_wait4, child, NULL, 0, NULL);
	}
	int e = errno;
	double took = now() - t0;
	if (r != want || e != want_errno)
		return failed(what, r, e, took);
	if (!timed && !strcmp(what, "read") && byte != 'x')
		return failed("read byte", byte, 0, took);
	if (timed == 1 && (took < SECONDS - 0.02 || took > SECONDS + 0.4))
		return failed("time", r, e, took);
	if (timed == 2 && took < SECONDS - 0.02)
		return failed("time", r, e, took);
	printf("ok\n");
	return 0;
}
