// A library that is loaded, closed and loaded again.
__attribute__((noinline, noclone, used)) long in_library(long a) { __asm__ volatile("" ::: "memory"); return a + 2; }
