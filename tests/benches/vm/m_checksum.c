#include "common.h"
/* Fletcher's checksum of 16 KiB. */
static __always_inline u64 f(u8 *mem) {
  u64 a = 1, b = 0;
  for (u32 i = 0; i < 16384; i++) { a += mem[i]; b += a; }
  return (b % 65521) << 16 | a % 65521;
}
TPROG(f, 16384)
