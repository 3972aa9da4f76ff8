#include "common.h"
/* 32 ranges of a value, each with an action of its own. */
#define R(n) else if (x < (n) * 8 + 8) s += x * ((n) * 7 + 3) ^ (n);
static __always_inline u64 f(u8 *mem) {
  u64 s = 0;
  for (u32 i = 0; i < 48; i++) {
    u64 x = mem[i];
    if (x < 8) s ^= x;
    R(1) R(2) R(3) R(4) R(5) R(6) R(7) R(8) R(9) R(10) R(11) R(12) R(13) R(14) R(15) R(16) R(17) R(18) R(19) R(20)
    R(21) R(22) R(23) R(24) R(25) R(26) R(27) R(28) R(29) R(30)
    else s = s * 5 + x;
  }
  return s;
}
TPROG(f, 48)
