#include "common.h"
#define N 256
static __always_inline u64 f(u8 *mem) {
  u64 *v = (u64 *)mem, s = 0;
  for (u32 i = 0; i < N; i++) s += v[i];
  return s;
}
TPROG(f, N * 8)
