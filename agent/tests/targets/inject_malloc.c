/* argv[1] threads (1: the main thread only) do nothing but allocate, check and free; until SIGTERM. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile int stop, bad;

static void on_term(int sig) { (void)sig; stop = 1; }

static void *work(void *arg)
{
	enum { N = 64 };
	unsigned char *p[N] = { 0 };
	size_t len[N] = { 0 };
	unsigned seed = 12345 + (unsigned)(unsigned long)arg;
	while (!stop) {
		int i = rand_r(&seed) % N;
		if (p[i] && (p[i][0] != (unsigned char)i || p[i][len[i] - 1] != (unsigned char)i))
			bad = 1;
		if (rand_r(&seed) % 3) {
			free(p[i]);
			p[i] = NULL;
		}
		len[i] = 2 + rand_r(&seed) % (rand_r(&seed) % 8 ? 500 : 300000);
		p[i] = realloc(p[i], len[i]);
		p[i][0] = p[i][len[i] - 1] = (unsigned char)i;
	}
	for (int i = 0; i < N; i++)
		free(p[i]);
	return NULL;
}

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 1;
	pthread_t t[64];
	signal(SIGTERM, on_term);
	setvbuf(stdout, NULL, _IONBF, 0);
	for (int i = 1; i < n; i++)
		pthread_create(&t[i], NULL, work, (void *)(long)i);
	printf("ready\n");
	work(NULL);
	for (int i = 1; i < n; i++)
		pthread_join(t[i], NULL);
	printf(bad ? "heap content changed\n" : "ok\n");
	return bad;
}
