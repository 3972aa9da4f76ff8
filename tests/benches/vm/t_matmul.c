#include "common.h"
/* u32 a[8][8], b[8][8], c[8][8] */
static __always_inline u64 f(u8 *mem) {
  u32 *a = (u32 *)mem, *b = a + 64, *c = b + 64;
  for (u32 i = 0; i < 8; i++)
    for (u32 j = 0; j < 8; j++) {
      u32 s = 0;
      for (u32 k = 0; k < 8; k++) s += a[i * 8 + k] * b[k * 8 + j];
      c[i * 8 + j] = s;
    }
  return c[5] + c[63];
}
TPROG(f, 768)
