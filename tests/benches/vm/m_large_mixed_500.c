#include "common.h"
/* A long straight line of everything. */
#define S(k) x ^= v[(k) & 31]; x = (x << ((k) % 13 + 1)) | (x >> (64 - ((k) % 13 + 1))); y += x * ((k) * 2 + 1); \
  if (y & (1ULL << ((k) & 63))) z ^= y >> 3; else z += x; v[((k) + 7) & 31] = z + (k);
static __always_inline u64 f(u8 *mem) {
  u64 *v = (u64 *)mem, x = 1, y = 2, z = 3;
  S(0) S(1) S(2) S(3) S(4) S(5) S(6) S(7) S(8) S(9) S(10) S(11) S(12) S(13) S(14) S(15) S(16) S(17) S(18) S(19)
  S(20) S(21) S(22) S(23) S(24) S(25) S(26) S(27) S(28) S(29) S(30) S(31) S(32) S(33) S(34) S(35)
  return x ^ y ^ z;
}
TPROG(f, 256)
