// Stacks as build ids and offsets, of a function of targets/late.c.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define FRAMES 8
struct { __uint(type, BPF_MAP_TYPE_STACK_TRACE); __uint(max_entries, 64); __uint(key_size, 4); __uint(value_size, FRAMES * 32); __uint(map_flags, BPF_F_STACK_BUILD_ID); } stacks SEC(".maps");

struct bpf_stack_build_id frames[FRAMES], skipped[FRAMES];
long results[16];

SEC("uprobe") int stack(void *ctx)
{
	const unsigned long user = BPF_F_USER_STACK, ids = BPF_F_USER_STACK | BPF_F_USER_BUILD_ID;
	long id = bpf_get_stackid(ctx, &stacks, user);

	results[0] = bpf_get_stack(ctx, frames, sizeof(frames), ids) / 32 >= 2;
	results[1] = bpf_get_stack(ctx, skipped, sizeof(skipped), ids | 1) / 32 >= 1;
	results[2] = id;
	results[3] = id == bpf_get_stackid(ctx, &stacks, user);
	results[4] = bpf_get_stackid(ctx, &stacks, ids);
	results[5] = bpf_get_stack(ctx, frames + 4, 33, ids);
	results[6] = bpf_get_stack(ctx, frames + 4, 32, BPF_F_USER_BUILD_ID);
	results[7] = bpf_get_stack(ctx, frames + 4, 0, ids);
	results[8] = bpf_get_stack(ctx, frames + 4, 32, ids | 1 << 12);
	results[9] = bpf_get_stack(ctx, frames + 4, 32, ids | 200);
	return 0;
}
