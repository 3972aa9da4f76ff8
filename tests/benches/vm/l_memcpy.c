#include "common.h"
/* 32 KiB, byte by byte, four times. */
#define N 32768
static __always_inline u64 f(u8 *mem) {
  u8 *d = mem + N;
  for (u32 r = 0; r < 4; r++) {
    for (u32 i = 0; i < N; i++) d[i] = mem[i];
    mem[r] = d[r + 1];
  }
  return d[17] + d[N - 1];
}
TPROG(f, 2 * N)
