#include "common.h"
/* Two strings that differ after 8 KiB. */
#define N 8192
static __always_inline u64 f(u8 *mem) {
  const u8 *a = mem, *b = mem + N;
  u32 same = 0;
  for (u32 i = 0; i < N; i++) { mem[N + i] = mem[i] | 1; mem[i] |= 1; }
  mem[N - 3] ^= 6;
  for (u32 i = 0; i < N; i++) { if (a[i] != b[i]) break; if (!a[i]) break; same++; }
  return same;
}
TPROG(f, 2 * N)
