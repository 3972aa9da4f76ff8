#include "common.h"
static __always_inline u64 f(u8 *mem) { return 0; }
TPROG(f, 8)
