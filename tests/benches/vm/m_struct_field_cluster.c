#include "common.h"
struct rec { u64 id; u32 a, b; u16 c, d; u8 e, g, h, i; u64 t; };
static __always_inline u64 f(u8 *mem) {
  struct rec *r = (struct rec *)mem; u64 s = 0;
  for (u32 n = 0; n < 16; n++, r++) {
    s += r->id ^ r->a; s ^= (u64)r->b << 7; s += r->c * 3 + r->d; s ^= r->e + r->g * 5 + r->h * 7 + r->i;
    r->t = s; r->b += r->c; r->d++;
  }
  return s;
}
TPROG(f, 512)
