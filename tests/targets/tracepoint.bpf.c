// Counts a system call by its tracepoint: an ordinary libbpf program.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 4);
    __type(key, unsigned);
    __type(value, unsigned long long);
} calls SEC(".maps");

SEC("tracepoint/syscalls/sys_enter_getppid")
int entered(void *ctx)
{
    unsigned key = 7;
    unsigned long long one = 1, *value = bpf_map_lookup_elem(&calls, &key);
    if (value)
        __sync_fetch_and_add(value, 1);
    else
        bpf_map_update_elem(&calls, &key, &one, BPF_ANY);
    return 0;
}

char LICENSE[] SEC("license") = "GPL";
