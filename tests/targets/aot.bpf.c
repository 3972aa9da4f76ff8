// Counts calls by argument, and all of them per CPU: an ordinary libbpf program.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 64);
    __type(key, unsigned);
    __type(value, unsigned long long);
} by_arg SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 2);
    __type(key, unsigned);
    __type(value, unsigned long long);
} calls SEC(".maps");

const volatile unsigned wanted_bits = 1;
unsigned long long seen;

SEC("uprobe")
int count(struct pt_regs *ctx)
{
    unsigned arg = PT_REGS_PARM1(ctx), which = 0, key = arg & wanted_bits;
    unsigned long long one = 1, *value = bpf_map_lookup_elem(&by_arg, &key);
    if (value)
        __sync_fetch_and_add(value, 1);
    else
        bpf_map_update_elem(&by_arg, &key, &one, BPF_NOEXIST);
    value = bpf_map_lookup_elem(&calls, &which);
    if (value)
        *value += 1;
    seen++;
    return 0;
}

SEC("uretprobe")
int returned(struct pt_regs *ctx)
{
    unsigned which = 1;
    unsigned long long *value = bpf_map_lookup_elem(&calls, &which);
    if (value)
        *value += 1;
    return 0;
}

char LICENSE[] SEC("license") = "GPL";
