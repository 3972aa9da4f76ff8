#include "common.h"
#define ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
static __always_inline u64 f(u8 *mem) {
  u64 *v = (u64 *)mem, h = 0x9E3779B97F4A7C15ULL;
  for (u32 i = 0; i < 8; i++) { h ^= v[i]; h = ROTL(h, 27) * 0x9FB21C651E98DF25ULL; h ^= h >> 31; }
  return h;
}
TPROG(f, 64)
