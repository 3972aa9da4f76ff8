#include "common.h"
/* u32 a, b */
static __always_inline u64 f(u8 *mem) { u32 *v = (u32 *)mem; return v[0] + v[1]; }
TPROG(f, 8)
