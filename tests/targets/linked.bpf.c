// A program that is linked without bpftime: maps, global data, calls, a switch, loops.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 64);
    __type(key, unsigned);
    __type(value, unsigned long long);
} by_kind SEC(".maps");

const volatile unsigned scale = 3;
unsigned long long seen;
unsigned long long last = 7;

static __attribute__((noinline)) unsigned weight(unsigned kind)
{
    switch (kind) {
    case 0: return 9;
    case 1: return 14;
    case 2: return 3;
    case 3: return 200;
    case 4: return 77;
    case 5: return 1000;
    default: return 1;
    }
}

static void add(unsigned key, unsigned long long by)
{
    unsigned long long *value = bpf_map_lookup_elem(&by_kind, &key);
    if (value)
        *value += by;
    else
        bpf_map_update_elem(&by_kind, &key, &by, BPF_NOEXIST);
}

SEC("uprobe")
int tally(unsigned long long *ctx)
{
    unsigned kind = ctx[0] & 7;
    unsigned long long sum = 0;
    for (int i = 0; i < 20; i++) {
        if (sum > ctx[2])
            break;
        sum += (ctx[1] >> i & 0xff) * scale;
    }
    add(kind, sum + weight(kind));
    seen++;
    last = sum ^ last << 1;
    return sum + weight(kind ^ 1);
}

SEC("uretprobe")
int total(unsigned long long *ctx)
{
    unsigned long long sum = ctx[10];
    for (unsigned kind = 0; kind < 8; kind++) {
        unsigned key = kind;
        unsigned long long *value = bpf_map_lookup_elem(&by_kind, &key);
        if (value)
            sum += *value;
    }
    return sum + seen;
}

char LICENSE[] SEC("license") = "GPL";
