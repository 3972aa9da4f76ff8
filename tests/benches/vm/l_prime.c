#include "common.h"
/* Primes below 2500 by trial division. */
static __always_inline u64 f(u8 *mem) {
  u64 n = 0;
  for (u32 i = 2; i < 2500; i++) {
    u32 prime = 1;
    for (u32 d = 2; d * d <= i; d++)
      if (i % d == 0) { prime = 0; break; }
    n += prime;
  }
  return n + mem[0];
}
TPROG(f, 8)
