#include "common.h"
/* A value looked up in a dense switch, 1024 times. */
static __always_inline u64 f(u8 *mem) {
  u64 s = 0;
  for (u32 i = 0; i < 1024; i++) {
    u32 r;
    switch (mem[i] & 31) {
    case 0: r = 7; break; case 1: r = 13; break; case 2: r = 2; break; case 3: r = 91; break;
    case 4: r = 5; break; case 5: r = 19; break; case 6: r = 77; break; case 7: r = 31; break;
    case 8: r = 43; break; case 9: r = 1; break; case 10: r = 66; break; case 11: r = 24; break;
    case 12: r = 90; break; case 13: r = 3; break; case 14: r = 52; break; case 15: r = 8; break;
    case 16: r = 11; break; case 17: r = 44; break; case 18: r = 29; break; case 19: r = 83; break;
    default: r = 100;
    }
    s = s * 3 + r;
  }
  return s;
}
TPROG(f, 1024)
