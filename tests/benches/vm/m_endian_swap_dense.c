#include "common.h"
/* Numbers in network order, put together from bytes. */
static __always_inline u64 f(u8 *mem) {
  u64 s = 0;
  for (u32 i = 0; i < 64; i++) {
    const u8 *p = mem + i * 8;
    u32 a = (u32)p[0] << 24 | (u32)p[1] << 16 | (u32)p[2] << 8 | p[3];
    u16 b = (u16)p[4] << 8 | p[5];
    u32 c = __builtin_bswap32(*(u32 *)p);
    s += a ^ ((u64)b << 17) ^ (u64)c << 3 ^ __builtin_bswap64(*(u64 *)p);
  }
  return s;
}
TPROG(f, 512)
