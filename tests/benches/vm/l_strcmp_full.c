#include "common.h"
/* Sixteen comparisons of equal strings of 2 KiB. */
#define N 2048
static __noinline u64 same(const u8 *a, const u8 *b) {
  u32 i = 0;
  while (i < N && a[i] == b[i]) i++;
  return i;
}
static __always_inline u64 f(u8 *mem) {
  u64 s = 0;
  for (u32 i = 0; i < N; i++) mem[N + i] = mem[i];
  for (u32 r = 0; r < 16; r++) {
    mem[r] = mem[N + r] = s;
    s += same(mem, mem + N) ^ r;
  }
  return s;
}
TPROG(f, 2 * N)
