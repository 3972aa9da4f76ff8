#include "common.h"
/* u32 keys[256]; struct {u32 key, cnt;} tab[256] : open addressing, <=8 probes */
static __always_inline u64 f(u8 *mem) {
  u32 *keys = (u32 *)mem, *tab = (u32 *)(mem + 1024);
  u64 probes = 0;
  for (u32 i = 0; i < 256; i++) {
    u32 k = keys[i];
    u32 h = (k * 0x9E3779B1u) >> 24;
    for (u32 p = 0; p < 8; p++) {
      u32 idx = (h + p) & 255;
      u32 cur = tab[idx * 2];
      if (cur == k) { tab[idx * 2 + 1]++; probes += p + 1; break; }
      if (cur == 0) { tab[idx * 2] = k; tab[idx * 2 + 1] = 1; probes += (p + 1) << 16; break; }
    }
  }
  u64 s = probes;
  for (u32 i = 0; i < 256; i++) s = s * 33 + (tab[i * 2] ^ ((u64)tab[i * 2 + 1] << 32));
  return s;
}
TPROG(f, 1024 + 2048)
