#include "common.h"
/* helper 1: void *lookup(map, key*) ; 128 values -> log2 slot -> hash map element += 1 (value read back) */
#ifdef PEERS_KERN
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 512); __type(key, u32); __type(value, u64); } amap SEC(".maps");
#define LOOKUP(k) bpf_map_lookup_elem(&amap, k)
#elif defined(__bpf__)
static void *(*lookup)(void *m, const void *k) = (void *)1;
#define LOOKUP(k) lookup((void *)1, k)
#else
extern void *peers_map_lookup(void *m, const void *k);
#define LOOKUP(k) peers_map_lookup((void *)1, k)
#endif
static __always_inline u64 f(u8 *mem) {
  u64 *v = (u64 *)mem, s = 0;
  for (u32 i = 0; i < 128; i++) {
    u32 key = (u32)v[i] & 0xff; u32 r = key;
    u64 *p = LOOKUP(&key);
    if (p) { *p += 1; s += r; }
  }
  return s;
}
TPROG(f, 1024)
