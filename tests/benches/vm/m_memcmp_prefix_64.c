#include "common.h"
/* Four names against a prefix of 64 bytes. */
static __always_inline u64 f(u8 *mem) {
  u64 s = 0;
  for (u32 n = 1; n < 5; n++) {
    const u8 *a = mem, *b = mem + n * 64;
    u32 same = 1;
    for (u32 i = 0; i < 64; i++) if ((a[i] ^ b[i]) & 0x80) { same = 0; s += i; break; }
    s = s * 2 + same;
  }
  return s;
}
TPROG(f, 320)
