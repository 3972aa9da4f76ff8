#include "common.h"
/* u64 sorted[128] (made here), 8 keys */
static __noinline u32 find(const u64 *a, u64 key) {
  u32 lo = 0, hi = 128;
  while (lo < hi) { u32 mid = lo + (hi - lo) / 2; if (a[mid] == key) return mid; if (a[mid] < key) lo = mid + 1; else hi = mid; }
  return lo | 0x1000;
}
static __always_inline u64 f(u8 *mem) {
  u64 *a = (u64 *)mem, *k = a + 128, s = 0;
  for (u32 i = 0; i < 128; i++) a[i] = i * 3;
  for (u32 i = 0; i < 8; i++) s = s * 257 + find(a, k[i] % 384);
  return s;
}
TPROG(f, 1088)
