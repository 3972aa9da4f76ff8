#include "common.h"
/* More live values than BPF has registers. */
static __always_inline u64 f(u8 *mem) {
  u64 *v = (u64 *)mem;
  u64 a = v[0], b = v[1], c = v[2], d = v[3], e = v[4], g = v[5], h = v[6], i = v[7];
  u64 j = v[8], k = v[9], l = v[10], m = v[11], n = v[12], o = v[13], p = v[14], q = v[15];
  for (u32 r = 0; r < 24; r++) {
    a += b ^ q; b = b * 3 + c; c ^= d + a; d += e * 5; e ^= g >> 3; g += h ^ b; h = h * 7 + i; i ^= j + c;
    j += k ^ d; k = k * 9 + l; l ^= m + e; m += n ^ g; n = n * 11 + o; o ^= p + h; p += q ^ i; q = q * 13 + a;
  }
  return a ^ b ^ c ^ d ^ e ^ g ^ h ^ i ^ j ^ k ^ l ^ m ^ n ^ o ^ p ^ q;
}
TPROG(f, 128)
