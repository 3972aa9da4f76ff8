#include "common.h"
#define ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define SIPROUND do { v0 += v1; v1 = ROTL(v1,13); v1 ^= v0; v0 = ROTL(v0,32); v2 += v3; v3 = ROTL(v3,16); v3 ^= v2; \
  v0 += v3; v3 = ROTL(v3,21); v3 ^= v0; v2 += v1; v1 = ROTL(v1,17); v1 ^= v2; v2 = ROTL(v2,32); } while (0)
/* u64 key[2]; u64 data[64] */
static __always_inline u64 f(u8 *mem) {
  u64 *k = (u64 *)mem, *d = k + 2;
  u64 v0 = k[0] ^ 0x736f6d6570736575ULL, v1 = k[1] ^ 0x646f72616e646f6dULL;
  u64 v2 = k[0] ^ 0x6c7967656e657261ULL, v3 = k[1] ^ 0x7465646279746573ULL;
  for (u32 i = 0; i < 64; i++) { u64 m = d[i]; v3 ^= m; SIPROUND; SIPROUND; v0 ^= m; }
  u64 b = 512ULL << 56; v3 ^= b; SIPROUND; SIPROUND; v0 ^= b;
  v2 ^= 0xff; SIPROUND; SIPROUND; SIPROUND; SIPROUND;
  return v0 ^ v1 ^ v2 ^ v3;
}
TPROG(f, 528)
