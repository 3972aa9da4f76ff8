/* What the virtual machine's helper 1 does, for the native programs: see vm/src/bin/bpftime-vm-bench.rs. */
typedef unsigned int u32; typedef unsigned long long u64;
#define SLOTS 512
static struct { u64 key, value; } hash[SLOTS];
static u64 array[256];

void *peers_map_lookup(void *map, const void *key) {
  u32 k = *(const u32 *)key;
  if (map == (void *)2) return k < 256 ? &array[k] : 0;
  u32 at = (k * 0x9e3779b1u) >> 23;
  for (u32 n = 0; n < SLOTS; n++, at++) {
    at &= SLOTS - 1;
    if (!hash[at].key) { hash[at].key = k + 1ULL; hash[at].value = 0; }
    if (hash[at].key == k + 1ULL) return &hash[at].value;
  }
  return 0;
}
