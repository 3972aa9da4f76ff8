// A program with a map that is pinned by its name, and one that is not.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>

typedef __u64 u64;

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 16);
  __type(key, u64);
  __type(value, u64);
  __uint(pinning, LIBBPF_PIN_BY_NAME);
} shared SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, u64);
} plain SEC(".maps");

SEC("uprobe")
int count(struct pt_regs *ctx) {
  u64 key = 1, one = 1, *n = bpf_map_lookup_elem(&shared, &key);
  __u32 zero = 0;
  if (n) __sync_fetch_and_add(n, 1);
  else bpf_map_update_elem(&shared, &key, &one, BPF_ANY);
  n = bpf_map_lookup_elem(&plain, &zero);
  if (n) __sync_fetch_and_add(n, 1);
  return 0;
}

char LICENSE[] SEC("license") = "GPL";
