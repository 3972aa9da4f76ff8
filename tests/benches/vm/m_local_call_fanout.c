#include "common.h"
/* Many small functions called from one. */
static __noinline u64 g0(u64 x) { return x * 3 + 1; }
static __noinline u64 g1(u64 x) { return (x << 5) ^ x; }
static __noinline u64 g2(u64 x) { return x - (x >> 3); }
static __noinline u64 g3(u64 x) { return x ^ 0x5bd1e995; }
static __noinline u64 g4(u64 x) { return (x >> 33) + x; }
static __noinline u64 g5(u64 x) { return x | (x << 1); }
static __noinline u64 g6(u64 x) { return x & ~(x >> 2); }
static __noinline u64 g7(u64 x) { return x + 0x1234567; }
static __always_inline u64 f(u8 *mem) {
  u64 *v = (u64 *)mem, s = 0;
  for (u32 i = 0; i < 12; i++) {
    u64 x = v[i];
    s += g0(x) ^ g1(x) ^ g2(x) ^ g3(x) ^ g4(x) ^ g5(x) ^ g6(x) ^ g7(x);
  }
  return s;
}
TPROG(f, 96)
