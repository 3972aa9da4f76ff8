// Calls hit() through a function of a library (-DLIBRARY) that it loads before the first call: late LIBRARY. Calls it once
// for each line of input.
#ifdef LIBRARY
long through(long (*function)(const char *, long), const char *text) {
  long result = function(text, 77);
  __asm__ volatile("" ::: "memory");
  return result + 1;
}
#else
#include <dlfcn.h>
#include <stdio.h>

__attribute__((noinline, noclone)) long hit(const char *text, long n) { __asm__ volatile("" ::: "memory"); return text[0] + n; }
__attribute__((noinline, noclone)) long middle(const char *text, long n) {
  long result = hit(text, n);
  __asm__ volatile("" ::: "memory");
  return result + 1;
}

int main(int argc, char **argv) {
  setvbuf(stdout, 0, _IOLBF, 0);
  puts("RUNNING");
  long (*through)(long (*)(const char *, long), const char *) = 0;
  while (argc == 2 && getchar() == '\n') {
    void *library = through ? 0 : dlopen(argv[1], RTLD_NOW);
    if (library) through = dlsym(library, "through");
    if (!through) return puts(dlerror()), 1;
    printf("result %ld\n", through(middle, "text"));
  }
  return 0;
}
#endif
