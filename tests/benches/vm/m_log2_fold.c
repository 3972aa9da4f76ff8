#include "common.h"
/* Logarithms folded into one number. */
static __always_inline u64 f(u8 *mem) {
  u32 *v = (u32 *)mem; u64 s = 0;
  for (u32 i = 0; i < 128; i++) {
    u32 x = v[i], r, sh;
    r = (x > 0xffff) << 4; x >>= r;
    sh = (x > 0xff) << 3; x >>= sh; r |= sh;
    sh = (x > 0xf) << 2; x >>= sh; r |= sh;
    sh = (x > 0x3) << 1; x >>= sh; r |= sh;
    r |= x >> 1;
    s = s * 7 + r;
  }
  return s;
}
TPROG(f, 512)
