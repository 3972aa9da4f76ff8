// Makes events in known numbers. Waits for a line, makes them, says "done", and stays until its input ends, so that tools
// can resolve what they have seen of it.
#define _GNU_SOURCE
#include <fcntl.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/shm.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

__attribute__((noinline, noclone, used)) int work(int n) {
  __asm__ volatile("" ::: "memory");
  return n + 1;
}

__attribute__((noinline, noclone, used)) void doze(void) {
  syscall(SYS_nanosleep, &(struct timespec){0, 1000000}, NULL);
}

static void *thread(void *arg) { return arg; }

static void make(void) {
  for (int i = 0; i < 7; i++) work(i);
  for (int i = 0; i < 3; i++) kill(getpid(), 0);
  for (int i = 0; i < 500; i++) getppid();
  for (int i = 0; i < 5; i++) open("/nonexistent/events", O_RDONLY);
  for (int i = 0; i < 2; i++) {
    mount("evsrc", "/nonexistent/m", "evtype", MS_RDONLY, "evdata");
    umount2("/nonexistent/m", MNT_DETACH);
    int id = shmget(IPC_PRIVATE, 4096, 0600);
    void *p = shmat(id, NULL, 0);
    shmdt(p);
    shmctl(id, IPC_RMID, NULL);
    struct statfs fs;
    statfs("/dev", &fs);
    doze();
    syscall(SYS_setuid, getuid());
    struct addrinfo *found;
    if (getaddrinfo("localhost", NULL, NULL, &found) == 0) freeaddrinfo(found);
    pid_t child = fork();
    if (child == 0) {
      execl("/bin/true", "true", "events-child", (char *)NULL);
      _exit(127);
    }
    waitpid(child, NULL, 0);
  }
  for (int i = 0; i < 3; i++) {
    pthread_t t;
    pthread_create(&t, NULL, thread, NULL);
    pthread_join(t, NULL);
  }
  sync();
}

int main(void) {
  char line[16];
  puts("READY");
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) return 1;
  make();
  puts("done");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {}
  return 0;
}
