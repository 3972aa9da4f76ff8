#include "common.h"
#define N 96
/* u64 values[N]; u32 hist[64] */
static __always_inline u32 log2l(u64 v) {
  u32 r = 0;
  if (v > 0xffffffffULL) { v >>= 32; r += 32; }
  if (v > 0xffff) { v >>= 16; r += 16; }
  if (v > 0xff) { v >>= 8; r += 8; }
  if (v > 0xf) { v >>= 4; r += 4; }
  if (v > 0x3) { v >>= 2; r += 2; }
  if (v > 0x1) r += 1;
  return r;
}
static __always_inline u64 f(u8 *mem) {
  u64 *v = (u64 *)mem; u32 *h = (u32 *)(mem + N * 8);
  for (u32 i = 0; i < N; i++) h[log2l(v[i]) & 63]++;
  u64 s = 0;
  for (u32 i = 0; i < 64; i++) s = s * 31 + h[i];
  return s;
}
TPROG(f, N * 8 + 256)
