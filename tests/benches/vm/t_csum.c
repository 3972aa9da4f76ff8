#include "common.h"
/* The Internet checksum of 1500 bytes. */
static __always_inline u64 f(u8 *mem) {
  u16 *p = (u16 *)mem; u32 s = 0;
  for (u32 i = 0; i < 750; i++) s += p[i];
  s = (s & 0xffff) + (s >> 16);
  s = (s & 0xffff) + (s >> 16);
  return (u16)~s;
}
TPROG(f, 1504)
