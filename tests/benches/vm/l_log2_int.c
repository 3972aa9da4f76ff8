#include "common.h"
/* Integer logarithm by halving, of 128 numbers. */
static __always_inline u64 f(u8 *mem) {
  u32 *v = (u32 *)mem; u64 s = 0;
  for (u32 i = 0; i < 128; i++) {
    u32 x = v[i], l = 0;
    while (x >>= 1) l++;
    s += l;
  }
  return s;
}
TPROG(f, 512)
