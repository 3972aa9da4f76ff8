/* Runs the programs of linked.bpf.c without bpftime: what an embedder would write. */
#include <stdio.h>
#include <string.h>
#include "linked.h"

struct bpftime_map {
    unsigned used, keys[64];
    uint64_t values[64];
};

struct bpftime_map bpftime_map_by_kind;

uint64_t bpftime_helper_map_lookup_elem(uint64_t map, uint64_t key, uint64_t r3, uint64_t r4, uint64_t r5,
                                        struct bpftime_run *run)
{
    struct bpftime_map *m = (struct bpftime_map *)map;
    for (unsigned i = 0; i < m->used; i++)
        if (m->keys[i] == *(unsigned *)key)
            return (uint64_t)&m->values[i];
    return 0;
}

uint64_t bpftime_helper_map_update_elem(uint64_t map, uint64_t key, uint64_t value, uint64_t flags, uint64_t r5,
                                        struct bpftime_run *run)
{
    struct bpftime_map *m = (struct bpftime_map *)map;
    if (m->used == bpftime_map_by_kind_max_entries)
        return -7;
    m->keys[m->used] = *(unsigned *)key;
    memcpy(&m->values[m->used++], (void *)value, bpftime_map_by_kind_value_size);
    return 0;
}

int main(void)
{
    uint64_t x = 88172645463325252ull, ctx[21] = { 0 };
    _Static_assert(tally_ctx_bytes <= sizeof ctx && total_ctx_bytes == 88, "context");
    for (int n = 0; n < 400; n++) {
        for (int i = 0; i < 11; i++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            ctx[i] = i == 2 ? x % 9000 : x;
        }
        struct bpftime_run run = { .fuel = n % 7 == 6 ? n % 23 : 1000 };
        uint64_t r0 = n % 5 == 4 ? total_run(ctx, &run) : tally_run(ctx, &run);
        printf("%llx %s\n", (unsigned long long)r0, run.fuel < 0 ? "cut short" : "whole");
    }
    for (unsigned i = 0; i < bpftime_map_by_kind.used; i++)
        printf("%u %llu\n", bpftime_map_by_kind.keys[i], (unsigned long long)bpftime_map_by_kind.values[i]);
    for (unsigned i = 0; i < sizeof linked_bss; i++)
        printf("%02x", linked_bss[i]);
    for (unsigned i = 0; i < sizeof linked_data; i++)
        printf("%02x", linked_data[i]);
    puts("");
    return 0;
}
