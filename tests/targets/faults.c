// Does what the kernel counts. Answers each line, when it is done, with what getrusage says of it:
//   pages N      touches N fresh pages
//   threads N    four threads touch N fresh pages each, from their first instruction on
//   write N      writes N times to `watched`
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

volatile long watched;

static void *touch(void *n) {
  long size = (long)n * 4096;
  char *m = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  madvise(m, size, MADV_NOHUGEPAGE);
  for (long i = 0; i < size; i += 4096) m[i] = 1;
  munmap(m, size);
  return 0;
}

static long faults(void) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  return u.ru_minflt + u.ru_majflt;
}

int main(void) {
  char line[64];
  printf("READY %p\n", (void *)&watched);
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    long before = faults(), n = atol(strchr(line, ' '));
    if (!strncmp(line, "pages", 5)) touch((void *)n);
    if (!strncmp(line, "write", 5))
      for (long i = 0; i < n; i++) watched = i;
    if (!strncmp(line, "threads", 7)) {
      pthread_t t[4];
      for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, touch, (void *)n);
      for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
    }
    printf("DONE %ld\n", faults() - before);
    fflush(stdout);
  }
}
