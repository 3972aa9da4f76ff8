// Fires the USDT probes that language runtimes and databases have, in known numbers, so that tools for them can be
// checked without the runtimes. Built with -DJVM it is libjvm.so, which the program loads when it is given its path.
// Waits for a line, fires, says "done", and stays until its input ends.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/sdt.h>
#include <time.h>

static void nap(void) { nanosleep(&(struct timespec){0, 2000000}, NULL); }

#ifdef JVM
// Two collections, of which each takes two milliseconds.
void collect(void) {
  char *manager = "Copy", *pool = "Eden Space";
  for (long i = 0; i < 2; i++) {
    DTRACE_PROBE1(hotspot, gc__begin, i);
    DTRACE_PROBE8(hotspot, mem__pool__gc__begin, manager, 4L, pool, 10L, i, i, i, i);
    nap();
    DTRACE_PROBE8(hotspot, mem__pool__gc__end, manager, 4L, pool, 10L, i, i, i, i);
    DTRACE_PROBE(hotspot, gc__end);
  }
}
#else

static void ruby(void) {
  char *class = "Shape", *method = "area", *file = "shape.rb";
  for (long i = 0; i < 6; i++) {
    DTRACE_PROBE4(ruby, method__entry, class, method, file, i);
    DTRACE_PROBE4(ruby, cmethod__entry, class, "sqrt", file, i);
    DTRACE_PROBE4(ruby, cmethod__return, class, "sqrt", file, i);
    DTRACE_PROBE4(ruby, method__return, class, method, file, i);
  }
  for (long i = 0; i < 4; i++) DTRACE_PROBE3(ruby, object__create, class, file, i);
  for (long i = 1; i < 4; i++) DTRACE_PROBE3(ruby, string__create, 10 * i, file, i);
  for (long i = 1; i < 3; i++) DTRACE_PROBE3(ruby, hash__create, i, file, i);
  for (long i = 1; i < 3; i++) DTRACE_PROBE3(ruby, array__create, i, file, i);
  for (long i = 0; i < 3; i++) {
    DTRACE_PROBE(ruby, gc__mark__begin);
    DTRACE_PROBE(ruby, gc__mark__end);
    DTRACE_PROBE(ruby, gc__sweep__begin);
    DTRACE_PROBE(ruby, gc__sweep__end);
  }
}

static void query(char *text, int slow) {
  DTRACE_PROBE5(mysql, query__start, text, 1L, "db", "user", "host");
  if (slow) nap();
  DTRACE_PROBE1(mysql, query__done, 0L);
}

static void databases(void) {
  for (int i = 0; i < 3; i++) query("select slow", 1);
  for (int i = 0; i < 4; i++) query("select fast", 0);
}

static void threads(void) {
  char *name = "Worker";
  for (long i = 1; i < 4; i++) {
    DTRACE_PROBE4(libpthread, pthread_start, i, i, i, i);
    DTRACE_PROBE5(hotspot, thread__start, name, 6L, i, i, 0L);
    DTRACE_PROBE5(hotspot, thread__stop, name, 6L, i, i, 0L);
  }
}

static void scripts(void) {
  for (long i = 0; i < 5; i++) {
    DTRACE_PROBE3(node, gc__start, 1L, 0L, i);
    DTRACE_PROBE3(node, gc__done, 1L, 0L, i);
    DTRACE_PROBE5(php, function__entry, "render", "page.php", i, "Page", "::");
    DTRACE_PROBE5(php, function__return, "render", "page.php", i, "Page", "::");
    DTRACE_PROBE3(tcl, proc__entry, "walk", 0L, i);
    DTRACE_PROBE4(perl, sub__entry, "fold", "list.pl", i, "main");
  }
}

static void leak(void) {
  for (int i = 0; i < 10; i++) {
    volatile char *p = malloc(12345);
    *p = 1;
  }
}

int main(int argc, char **argv) {
  char line[16];
  void *jvm = argc > 1 ? dlopen(argv[1], RTLD_NOW) : NULL;
  void (*collect)(void) = jvm ? (void (*)(void))dlsym(jvm, "collect") : NULL;
  puts("READY");
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) return 1;
  ruby();
  databases();
  threads();
  scripts();
  leak();
  if (collect) collect();
  puts("done");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {}
  return 0;
}
#endif
