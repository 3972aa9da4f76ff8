#include "common.h"
/* Kernighan's loop over 64 numbers, and the parallel count. */
static __always_inline u64 f(u8 *mem) {
  u64 *v = (u64 *)mem, s = 0;
  for (u32 i = 0; i < 64; i++) {
    u64 x = v[i], n = 0;
    while (x) { x &= x - 1; n++; }
    u64 y = v[i];
    y = y - ((y >> 1) & 0x5555555555555555ULL);
    y = (y & 0x3333333333333333ULL) + ((y >> 2) & 0x3333333333333333ULL);
    y = (y + (y >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
    s += n * 3 + (y * 0x0101010101010101ULL >> 56);
  }
  return s;
}
TPROG(f, 512)
