#include "common.h"
/* A function of medium size called 16 times. */
static __noinline u64 mix(u64 a, u64 b, u64 c) {
  a -= b; a -= c; a ^= c >> 13; b -= c; b -= a; b ^= a << 8; c -= a; c -= b; c ^= b >> 13;
  a -= b; a -= c; a ^= c >> 12; b -= c; b -= a; b ^= a << 16; c -= a; c -= b; c ^= b >> 5;
  return a ^ b ^ c;
}
static __always_inline u64 f(u8 *mem) {
  u64 *v = (u64 *)mem, s = 0;
  for (u32 i = 0; i < 16; i++) s += mix(v[i], s, i);
  return s;
}
TPROG(f, 128)
