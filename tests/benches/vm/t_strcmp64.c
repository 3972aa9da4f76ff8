#include "common.h"
/* 16 pairs of 64-byte strings */
static __always_inline u64 f(u8 *mem) {
  u64 acc = 0;
  for (u32 i = 0; i < 16; i++) {
    const u8 *a = mem + i * 128, *b = a + 64;
    s32 d = 0; u32 j;
    for (j = 0; j < 64; j++) {
      u8 x = a[j], y = b[j];
      d = (s32)x - (s32)y;
      if (d || !x) break;
    }
    acc = acc * 131 + (u32)(d + 256) + j;
  }
  return acc;
}
TPROG(f, 2048)
