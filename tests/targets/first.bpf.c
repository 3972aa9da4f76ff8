// When a probe was hit first.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, unsigned);
    __type(value, unsigned long long);
} first SEC(".maps");

SEC("uprobe")
int hit(void *ctx)
{
    unsigned key = 0;
    unsigned long long *ns = bpf_map_lookup_elem(&first, &key);
    if (ns && !*ns)
        *ns = bpf_ktime_get_ns();
    return 0;
}

char LICENSE[] SEC("license") = "GPL";
