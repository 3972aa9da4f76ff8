#include "common.h"
/* Jenkins' hash of 256 bytes. */
#define ROT(x, k) (((x) << (k)) | ((x) >> (32 - (k))))
static __always_inline u64 f(u8 *mem) {
  u32 *k = (u32 *)mem, a = 0xdeadbeef, b = a, c = a;
  for (u32 i = 0; i < 63; i += 3) {
    a += k[i]; b += k[i + 1]; c += k[i + 2];
    a -= c; a ^= ROT(c, 4); c += b; b -= a; b ^= ROT(a, 6); a += c; c -= b; c ^= ROT(b, 8); b += a;
    a -= c; a ^= ROT(c, 16); c += b; b -= a; b ^= ROT(a, 19); a += c; c -= b; c ^= ROT(b, 4); b += a;
  }
  c ^= b; c -= ROT(b, 14); a ^= c; a -= ROT(c, 11); b ^= a; b -= ROT(a, 25);
  return c;
}
TPROG(f, 256)
