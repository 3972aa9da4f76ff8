// bpf_for_each_map_elem on every kind of map, with callbacks that change the map. Run by tools/helpers.c; each result is a
// number, so that two kernels, or the kernel and bpftime, can be compared.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "results.h"

char LICENSE[] SEC("license") = "GPL";

#define ELEMENTS 24

static __always_inline void number(long value) { results[used++ % RESULTS].value = value; }

struct seen {
	void *map;
	long calls, keys, values, inner;
	int stop;
};

static long look(void *map, int *key, long *value, struct seen *seen)
{
	seen->calls++;
	seen->keys += *key;
	seen->values += *value;
	return seen->stop;
}

#define KIND(name, kind) \
	struct { __uint(type, kind); __uint(max_entries, 64); __type(key, int); __type(value, long); } name SEC(".maps"); \
	static long remove_##name(void *map, int *key, long *value, struct seen *seen) \
	{ \
		int own = *key; \
		seen->calls++; \
		seen->keys += own; \
		seen->inner += bpf_map_delete_elem(&name, &own); \
		return 0; \
	} \
	static long replace_##name(void *map, int *key, long *value, struct seen *seen) \
	{ \
		int own = *key; \
		long next = *value + 1; \
		seen->calls++; \
		seen->inner += bpf_map_update_elem(&name, &own, &next, BPF_EXIST); \
		return 0; \
	} \
	static long remove_other_##name(void *map, int *key, long *value, struct seen *seen) \
	{ \
		int other = (unsigned int)(*key + ELEMENTS / 2) % ELEMENTS; \
		seen->inner += bpf_map_delete_elem(&name, &other) == 0; \
		return 0; \
	} \
	static long nest_##name(void *map, int *key, long *value, struct seen *seen) \
	{ \
		struct seen inner = {}; \
		seen->calls++; \
		seen->inner += bpf_for_each_map_elem(&name, look, &inner, 0); \
		seen->values += inner.keys; \
		return 0; \
	} \
	static long put_##name(unsigned int i, void *ctx) \
	{ \
		long value = i * 10; \
		bpf_map_update_elem(&name, &i, &value, BPF_ANY); \
		return 0; \
	} \
	static __always_inline void fill_##name(void) { bpf_loop(ELEMENTS, put_##name, 0, 0); } \
	SEC("raw_tp/" #name) int look_##name(void *ctx) \
	{ \
		struct seen seen = {}, early = { .stop = 1 }, replaced = {}; \
		fill_##name(); \
		number(bpf_for_each_map_elem(&name, look, &seen, 0)); \
		number(seen.calls), number(seen.keys), number(seen.values); \
		number(bpf_for_each_map_elem(&name, look, &seen, 1)); \
		number(bpf_for_each_map_elem(&name, look, &early, 0)); \
		number(early.calls); \
		number(bpf_for_each_map_elem(&name, replace_##name, &replaced, 0)); \
		number(replaced.calls), number(replaced.inner); \
		return 0; \
	} \
	SEC("raw_tp/" #name) int nested_##name(void *ctx) \
	{ \
		struct seen nested = {}; \
		number(bpf_for_each_map_elem(&name, nest_##name, &nested, 0)); \
		number(nested.calls), number(nested.inner), number(nested.values); \
		return 0; \
	} \
	SEC("raw_tp/" #name) int removed_##name(void *ctx) \
	{ \
		struct seen removed = {}, others = {}, after = {}; \
		number(bpf_for_each_map_elem(&name, remove_##name, &removed, 0)); \
		number(removed.calls), number(removed.keys), number(removed.inner); \
		number(bpf_for_each_map_elem(&name, look, &after, 0)); \
		number(after.keys), number(after.values); \
		fill_##name(); \
		bpf_for_each_map_elem(&name, remove_other_##name, &others, 0); \
		/* Which of two goes is up to the order. */ \
		after = (struct seen){}; \
		bpf_for_each_map_elem(&name, look, &after, 0); \
		number(after.calls + others.inner); \
		return 0; \
	}

KIND(hash, BPF_MAP_TYPE_HASH)
KIND(array, BPF_MAP_TYPE_ARRAY)
KIND(percpu_hash, BPF_MAP_TYPE_PERCPU_HASH)
KIND(percpu_array, BPF_MAP_TYPE_PERCPU_ARRAY)
KIND(lru, BPF_MAP_TYPE_LRU_HASH)
KIND(lru_percpu, BPF_MAP_TYPE_LRU_PERCPU_HASH)
