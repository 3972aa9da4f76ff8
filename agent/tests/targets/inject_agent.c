/* A stand-in for libbpftime-agent.so: notes each start in RUNTIME_DIR/started, and is as rude to the borrowed
 * thread as a C function may be. MODE selects what else happens. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PLAIN, REFUSE, HANG, CRASH, SLOW, NAP };

static void *thread(void *arg) { return arg; }

static int note(const char *dir)
{
	char path[4096], line[64];
	snprintf(path, sizeof path, "%s/started", dir);
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	if (fd < 0)
		return -errno;
	int n = snprintf(line, sizeof line, "%d\n", (int)getpid());
	if (write(fd, line, n) != n)
		return -EIO;
	close(fd);
	return 0;
}

#ifndef NO_ENTRY
int bpftime_agent_start(const char *dir)
{
	int r = note(dir);
	for (int i = 0; i < 100; i++)
		free(malloc(100 + i * 1000));
	pthread_t t;
	if (pthread_create(&t, NULL, thread, NULL) == 0)
		pthread_join(t, NULL);
	/* every vector register, x87 and errno end up different */
	__asm__ volatile("fldpi; fldpi; pcmpeqd %%xmm0,%%xmm0; pcmpeqd %%xmm7,%%xmm7; pcmpeqd %%xmm15,%%xmm15;"
			 "fstp %%st(0); fstp %%st(0)" ::: "xmm0", "xmm7", "xmm15", "memory");
	errno = 99;
	struct timespec slow = { 0, 400 * 1000 * 1000 }, nap = { 0, 1000 * 1000 };
	switch (MODE) {
	case REFUSE: return -EACCES;
	case HANG: for (;;) pause();
	case CRASH: *(volatile int *)8 = 1; break;
	case SLOW: nanosleep(&slow, NULL); break;
	case NAP: nanosleep(&nap, NULL); break;
	}
	return r;
}
#endif
