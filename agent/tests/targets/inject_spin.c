/* argv[1] threads compute the same sums over and over in general, SSE and x87 registers and in a leaf function's
 * red zone, with errno and flags watched; until stdin ends. "ok" when no round differed. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static volatile int stop, bad;

static __attribute__((noinline)) unsigned long leaf(unsigned long seed)
{
	volatile unsigned long red[12]; /* a leaf keeps these below rsp */
	for (int i = 0; i < 12; i++)
		red[i] = seed * (i + 3);
	unsigned long sum = 0;
	for (int round = 0; round < 300; round++)
		for (int i = 0; i < 12; i++) {
			red[i] = red[i] * 6364136223846793005ul + 1442695040888963407ul;
			sum ^= red[i];
		}
	return sum;
}

static __attribute__((noinline)) double floats(double seed)
{
	double a = seed, b = seed + 1, c = seed + 2;
	long double x = seed;
	for (int i = 0; i < 2000; i++) {
		a = a * 1.0000001 + b;
		b = b * 0.9999999 - c * 1e-9;
		c = c + a * 1e-12;
		x = x * 1.00000001L + 1e-7L;
	}
	return a + b + c + (double)x;
}

static void *work(void *arg)
{
	unsigned long want = leaf(7);
	double fwant = floats(7);
	errno = 77;
	do {
		if (leaf(7) != want || floats(7) != fwant || errno != 77)
			bad = 1;
	} while (!stop);
	return arg;
}

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 1;
	pthread_t t;
	setvbuf(stdout, NULL, _IONBF, 0);
	for (int i = 1; i < n; i++)
		pthread_create(&t, NULL, work, NULL);
	printf("ready\n");
	if (n == 1) {
		/* No thread blocks anywhere: only a running one can be borrowed. */
		alarm(60);
		unsigned long want = leaf(7);
		double fwant = floats(7);
		errno = 77;
		extern int poll(void *, unsigned long, int);
		struct { int fd; short events, revents; } p = { 0, 1, 0 };
		for (;;) {
			for (int i = 0; i < 2000; i++)
				if (leaf(7) != want || floats(7) != fwant || errno != 77)
					bad = 1;
			if (poll(&p, 1, 0) == 1)
				break;
		}
	} else {
		char c;
		while (read(0, &c, 1) > 0)
			;
		stop = 1;
	}
	printf(bad ? "registers, errno or memory changed\n" : "ok\n");
	return bad;
}
