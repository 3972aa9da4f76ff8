#include "common.h"
/* Functions that call each other, four deep. */
static __noinline u64 d(u64 x, u64 k) { return (x ^ k) * 0x9E3779B97F4A7C15ULL; }
static __noinline u64 c(u64 x, u64 k) { return d(x + 3, k) ^ (x >> 7); }
static __noinline u64 b(u64 x, u64 k) { return c(x * 5, k + 1) + k; }
static __noinline u64 a(u64 x, u64 k) { return b(x ^ (k << 3), k) - x; }
static __always_inline u64 f(u8 *mem) {
  u64 *v = (u64 *)mem, s = 1;
  for (u32 i = 0; i < 64; i++) s = a(v[i], s);
  return s;
}
TPROG(f, 512)
