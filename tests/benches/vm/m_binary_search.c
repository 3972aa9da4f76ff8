#include "common.h"
/* u32 sorted[64] (made here), u32 keys[32] */
static __always_inline u64 f(u8 *mem) {
  u32 *a = (u32 *)mem, *k = (u32 *)(mem + 256); u64 s = 0;
  for (u32 i = 0; i < 64; i++) a[i] = i * 4 + 1;
  for (u32 j = 0; j < 32; j++) {
    u32 key = k[j] & 255, lo = 0, hi = 64;
    while (lo < hi) { u32 mid = (lo + hi) >> 1; if (a[mid] < key) lo = mid + 1; else hi = mid; }
    s = s * 17 + lo;
  }
  return s;
}
TPROG(f, 384)
