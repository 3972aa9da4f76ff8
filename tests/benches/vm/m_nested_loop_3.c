#include "common.h"
/* Three loops of constant length inside of each other. */
static __always_inline u64 f(u8 *mem) {
  u64 s = mem[0];
  for (u32 i = 0; i < 8; i++)
    for (u32 j = 0; j < 8; j++)
      for (u32 k = 0; k < 8; k++) s += (s >> 3) ^ (mem[(i * 8 + j) & 63] + k);
  return s;
}
TPROG(f, 64)
