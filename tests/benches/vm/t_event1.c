#include "common.h"
/* Fills in one event from a context. */
struct event { u64 ts; u32 pid, tid; u64 arg[3]; u32 len; u8 kind; };
static __always_inline u64 f(u8 *mem) {
  u64 *ctx = (u64 *)mem;
  struct event *e = (struct event *)(mem + 128);
  e->ts = ctx[0]; e->pid = ctx[1] >> 32; e->tid = (u32)ctx[1];
  e->arg[0] = ctx[2]; e->arg[1] = ctx[3]; e->arg[2] = ctx[4];
  e->len = ctx[5] & 0xfff; e->kind = e->len > 100 ? 2 : 1;
  return e->len;
}
TPROG(f, 192)
