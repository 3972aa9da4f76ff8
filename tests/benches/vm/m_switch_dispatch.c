#include "common.h"
/* A small virtual machine: 16 operations, 24 steps. */
static __always_inline u64 f(u8 *mem) {
  u64 x = 1, y = 2;
  for (u32 pc = 0; pc < 24; pc++) {
    switch (mem[pc] & 15) {
    case 0: x += y; break; case 1: x ^= y; break; case 2: y = x * 3; break; case 3: x = y - x; break;
    case 4: y += 17; break; case 5: x |= y << 2; break; case 6: y ^= x >> 5; break; case 7: x = x * 5 + 1; break;
    case 8: y = y * 9; break; case 9: x -= 3; break; case 10: y &= ~x; break; case 11: x += pc; break;
    case 12: y = x; break; case 13: x = ~x; break; case 14: y -= x; break; default: x ^= 0x55; break;
    }
  }
  return x * 31 + y;
}
TPROG(f, 24)
