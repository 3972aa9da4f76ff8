// Every helper once, in a uprobe on hit(text, n) of targets/every.c: program h_NAME for helper NAME. What it answered is in
// results[NUMBER]. Answers are such that the kernel gives the same ones.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

struct result {
	long ran, value, more;
};
struct result results[256];

// What the tool knows.
unsigned long ns_dev, ns_ino;

#define MAP(name, kind, entries, value_type) \
	struct { __uint(type, kind); __uint(max_entries, entries); __type(key, int); __type(value, value_type); } name SEC(".maps")
#define RING(name, kind) struct { __uint(type, kind); __uint(max_entries, 4096); } name SEC(".maps")
#define FDS(name, kind) struct { __uint(type, kind); __uint(max_entries, 64); __uint(key_size, 4); __uint(value_size, 4); } name SEC(".maps")
#define QUEUE(name, kind) struct { __uint(type, kind); __uint(max_entries, 8); __type(value, long); } name SEC(".maps")

MAP(array, BPF_MAP_TYPE_ARRAY, 4, char[64]);
MAP(hash, BPF_MAP_TYPE_HASH, 64, long);
MAP(percpu, BPF_MAP_TYPE_PERCPU_ARRAY, 1, long);
RING(ring, BPF_MAP_TYPE_RINGBUF);
RING(user, BPF_MAP_TYPE_USER_RINGBUF);
FDS(events, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
FDS(programs, BPF_MAP_TYPE_PROG_ARRAY);
FDS(cgroups, BPF_MAP_TYPE_CGROUP_ARRAY);
QUEUE(queue, BPF_MAP_TYPE_QUEUE);
QUEUE(stack, BPF_MAP_TYPE_STACK);
QUEUE(peeked, BPF_MAP_TYPE_QUEUE);
struct { __uint(type, BPF_MAP_TYPE_STACK_TRACE); __uint(max_entries, 64); __uint(key_size, 4); __uint(value_size, 8 * 16); } stacks SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_TASK_STORAGE); __uint(map_flags, BPF_F_NO_PREALLOC); __type(key, int); __type(value, long); } storage SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_TASK_STORAGE); __uint(map_flags, BPF_F_NO_PREALLOC); __type(key, int); __type(value, long); } forgotten SEC(".maps");

#define IN(section, name, id) \
	static __always_inline void do_##name(struct pt_regs *ctx, const char *text, long n, struct result *r); \
	SEC(section) int BPF_KPROBE(h_##name, const char *text, long n) \
	{ \
		struct result *r = &results[id]; \
		__sync_fetch_and_add(&r->ran, 1); \
		do_##name(ctx, text, n, r); \
		return 0; \
	} \
	static __always_inline void do_##name(struct pt_regs *ctx, const char *text, long n, struct result *r)
#define HELPER(name) IN("uprobe", name, BPF_FUNC_##name)
#define SLEEPER(name) IN("uprobe.s", name, BPF_FUNC_##name)

HELPER(map_lookup_elem)
{
	int index = 1, none = 4;
	char *value = bpf_map_lookup_elem(&array, &index);

	r->value = value != 0;
	r->more = bpf_map_lookup_elem(&array, &none) != 0;
}
HELPER(map_update_elem)
{
	int key = 2;
	long value = n, *found;

	r->value = bpf_map_update_elem(&hash, &key, &value, BPF_NOEXIST);
	found = bpf_map_lookup_elem(&hash, &key);
	r->more = found ? *found : -1;
}
HELPER(map_delete_elem)
{
	int key = 3;

	r->value = bpf_map_delete_elem(&hash, &key);
}
HELPER(probe_read)
{
	char word[4] = {};

	r->value = bpf_probe_read(word, 4, text);
	r->more = word[0];
}
HELPER(ktime_get_ns) { r->value = bpf_ktime_get_ns() > 1000000; }
HELPER(trace_printk) { bpf_printk("every %d", n); r->value = 1; }
HELPER(get_prandom_u32) { r->value = (bpf_get_prandom_u32() ^ bpf_get_prandom_u32() ^ bpf_get_prandom_u32()) != 0; }
HELPER(get_smp_processor_id) { r->value = bpf_get_smp_processor_id() < 4096; }
HELPER(tail_call)
{
	r->value = -1;
	bpf_tail_call(ctx, &programs, 5);
	r->more = 1;
	bpf_tail_call(ctx, &programs, 0);
	r->value = -2;
}
SEC("uprobe") int tail_target(void *ctx)
{
	results[BPF_FUNC_tail_call].value = 12;
	return 0;
}
HELPER(get_current_pid_tgid) { r->value = bpf_get_current_pid_tgid() >> 32 == (unsigned int)bpf_get_current_pid_tgid(); }
HELPER(get_current_uid_gid) { r->value = bpf_get_current_uid_gid(); }
HELPER(get_current_comm)
{
	char comm[16];

	r->value = bpf_get_current_comm(comm, sizeof(comm));
	r->more = comm[0] << 8 | comm[4];
}
HELPER(perf_event_output)
{
	r->value = bpf_perf_event_output(ctx, &events, BPF_F_CURRENT_CPU, &n, sizeof(n));
	r->more = bpf_perf_event_output(ctx, &events, 63, &n, sizeof(n));
}
HELPER(get_stackid)
{
	long id = bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK);

	r->value = id >= 0;
	r->more = id == bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK);
}
HELPER(get_current_task) { r->value = bpf_get_current_task() != 0; }
HELPER(probe_write_user)
{
	char word[5] = "WROTE";

	r->value = bpf_probe_write_user((void *)text + 8, word, 5);
	r->more = bpf_probe_write_user((void *)8, word, 5);
}
HELPER(current_task_under_cgroup)
{
	r->value = bpf_current_task_under_cgroup(&cgroups, 0);
	r->more = bpf_current_task_under_cgroup(&cgroups, 64);
}
HELPER(get_numa_node_id) { r->value = bpf_get_numa_node_id(); }
HELPER(probe_read_str)
{
	char word[8];

	r->value = bpf_probe_read_str(word, sizeof(word), text);
	r->more = word[0];
}
HELPER(override_return) { r->value = bpf_override_return(ctx, 4321); }
HELPER(get_stack)
{
	unsigned long ips[8] = {};

	r->value = bpf_get_stack(ctx, ips, sizeof(ips), BPF_F_USER_STACK) >= 16;
	r->more = ips[0] == PT_REGS_IP(ctx);
}
HELPER(get_current_cgroup_id) { r->value = bpf_get_current_cgroup_id() != 0; }
HELPER(map_push_elem)
{
	r->value = bpf_map_push_elem(&queue, &n, BPF_ANY);
	r->more = bpf_map_push_elem(&queue, &n, 1);
}
HELPER(map_pop_elem)
{
	long value = 5;

	r->value = bpf_map_pop_elem(&stack, &value);
	r->more = value;
}
HELPER(map_peek_elem)
{
	long value = 6;

	bpf_map_push_elem(&peeked, &n, BPF_ANY);
	r->value = bpf_map_peek_elem(&peeked, &value);
	r->more = value;
}
HELPER(strtol)
{
	char digits[4] = "-42";

	r->value = bpf_strtol(digits, 3, 10, &r->more);
}
HELPER(strtoul)
{
	char digits[4] = "ff ";

	r->value = bpf_strtoul(digits, 3, 16, (unsigned long *)&r->more);
}
HELPER(send_signal) { r->value = bpf_send_signal(10); }
HELPER(send_signal_thread) { r->value = bpf_send_signal_thread(12); }
HELPER(probe_read_user)
{
	long word;

	r->value = bpf_probe_read_user(&word, 8, text);
	r->more = word;
}
HELPER(probe_read_kernel)
{
	long word = 3;

	r->value = bpf_probe_read_kernel(&r->more, 8, &word);
}
HELPER(probe_read_user_str)
{
	char word[64];

	r->value = bpf_probe_read_user_str(word, sizeof(word), text);
	r->more = word[7];
}
HELPER(probe_read_kernel_str)
{
	char word[8] = "kernel", copy[8];

	r->value = bpf_probe_read_kernel_str(copy, sizeof(copy), word);
	r->more = copy[5];
}
HELPER(jiffies64) { r->value = bpf_jiffies64() != 0; }
HELPER(get_ns_current_pid_tgid)
{
	struct bpf_pidns_info ids = {};

	r->value = bpf_get_ns_current_pid_tgid(ns_dev, ns_ino, &ids, sizeof(ids));
	r->more = ids.pid == (unsigned int)bpf_get_current_pid_tgid();
}
HELPER(get_current_ancestor_cgroup_id)
{
	r->value = bpf_get_current_ancestor_cgroup_id(0);
	r->more = bpf_get_current_ancestor_cgroup_id(99);
}
HELPER(ktime_get_boot_ns) { r->value = bpf_ktime_get_boot_ns() >= bpf_ktime_get_ns() - 1000000000; }
HELPER(ringbuf_output) { r->value = bpf_ringbuf_output(&ring, &n, sizeof(n), 0); }
HELPER(ringbuf_reserve)
{
	long *record = bpf_ringbuf_reserve(&ring, 16, 0);

	r->value = record != 0;
	if (record)
		bpf_ringbuf_discard(record, 0);
}
HELPER(ringbuf_submit)
{
	long *record = bpf_ringbuf_reserve(&ring, 8, 0);

	if (record) {
		*record = 1;
		bpf_ringbuf_submit(record, 0);
		r->value = 1;
	}
}
HELPER(ringbuf_discard)
{
	long *record = bpf_ringbuf_reserve(&ring, 8, 0);

	if (record) {
		bpf_ringbuf_discard(record, 0);
		r->value = 1;
	}
}
HELPER(ringbuf_query)
{
	r->value = bpf_ringbuf_query(&ring, BPF_RB_RING_SIZE);
	r->more = bpf_ringbuf_query(&ring, 9);
}
HELPER(get_task_stack)
{
	unsigned long ips[8] = {};

	r->value = bpf_get_task_stack(bpf_get_current_task_btf(), ips, sizeof(ips), BPF_F_USER_STACK) >= 8;
	r->more = ips[0] == PT_REGS_IP(ctx);
}
SLEEPER(copy_from_user)
{
	long word;

	r->value = bpf_copy_from_user(&word, 8, text);
	r->more = word;
}
HELPER(task_storage_get)
{
	long first = 5, *value = bpf_task_storage_get(&storage, bpf_get_current_task_btf(), &first, BPF_LOCAL_STORAGE_GET_F_CREATE);

	r->value = value ? *value : -1;
	r->more = bpf_task_storage_get(&storage, bpf_get_current_task_btf(), 0, 0) == value;
}
HELPER(task_storage_delete)
{
	r->value = bpf_task_storage_delete(&forgotten, bpf_get_current_task_btf());
	bpf_task_storage_get(&forgotten, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	r->more = bpf_task_storage_delete(&forgotten, bpf_get_current_task_btf());
}
HELPER(get_current_task_btf) { r->value = (unsigned long)bpf_get_current_task_btf() == bpf_get_current_task(); }
HELPER(ktime_get_coarse_ns) { r->value = bpf_ktime_get_coarse_ns() != 0; }

static long sum(void *map, int *key, char *value, long *total)
{
	*total += *key + 1;
	return *key == 2;
}
HELPER(for_each_map_elem)
{
	long total = 0;

	r->value = bpf_for_each_map_elem(&array, sum, &total, 0);
	r->more = total;
}
HELPER(snprintf)
{
	char out[16] = {};

	r->value = BPF_SNPRINTF(out, sizeof(out), "%d:%x", (int)n, 255);
	r->more = out[3];
}
HELPER(get_func_ip) { r->value = bpf_get_func_ip(ctx) == PT_REGS_IP(ctx); }
HELPER(get_attach_cookie) { r->value = bpf_get_attach_cookie(ctx); }
HELPER(task_pt_regs)
{
	struct pt_regs *regs = (void *)bpf_task_pt_regs(bpf_get_current_task_btf());

	r->value = PT_REGS_PARM2(regs);
}
HELPER(trace_vprintk)
{
	static const char format[] = "every %d %d %d %d";
	unsigned long long values[] = { 1, 2, 3, n };

	r->value = bpf_trace_vprintk(format, sizeof(format), values, sizeof(values)) > 0;
}
static long count(unsigned int i, long *total)
{
	*total += i;
	return i == 20;
}
HELPER(loop)
{
	long total = 0;

	r->value = bpf_loop(10, count, &total, 0) * 100 + bpf_loop(100, count, &total, 0);
	r->more = total;
}
HELPER(strncmp)
{
	char word[4] = "abd";

	r->value = bpf_strncmp(word, 2, "abc") * 10 + (bpf_strncmp(word, 3, "abc") > 0);
}
SLEEPER(copy_from_user_task)
{
	long word;

	r->value = bpf_copy_from_user_task(&word, 8, text, bpf_get_current_task_btf(), 0);
	r->more = word;
}
HELPER(map_lookup_percpu_elem)
{
	int zero = 0;

	r->value = bpf_map_lookup_percpu_elem(&percpu, &zero, bpf_get_smp_processor_id()) != 0;
	r->more = bpf_map_lookup_percpu_elem(&percpu, &zero, 100000) != 0;
}

#define OF_MEMORY(dynptr) \
	struct bpf_dynptr dynptr; \
	int third = 3; \
	char *memory = bpf_map_lookup_elem(&array, &third); \
	if (!memory) \
		return
HELPER(dynptr_from_mem)
{
	OF_MEMORY(mem);
	r->value = bpf_dynptr_from_mem(memory, 64, 0, &mem);
	r->more = bpf_dynptr_from_mem(memory, 64, 1, &mem);
}
HELPER(dynptr_read)
{
	char word[8];

	OF_MEMORY(mem);
	bpf_dynptr_from_mem(memory, 64, 0, &mem);
	r->value = bpf_dynptr_read(word, 8, &mem, 56, 0);
	r->more = bpf_dynptr_read(word, 8, &mem, 57, 0);
}
HELPER(dynptr_write)
{
	OF_MEMORY(mem);
	bpf_dynptr_from_mem(memory, 64, 0, &mem);
	r->value = bpf_dynptr_write(&mem, 32, &n, 8, 0);
	r->more = memory[32];
}
HELPER(dynptr_data)
{
	char *slice;

	OF_MEMORY(mem);
	bpf_dynptr_from_mem(memory, 64, 0, &mem);
	slice = bpf_dynptr_data(&mem, 40, 8);
	r->value = slice != 0;
	if (slice)
		slice[0] = 9;
	r->more = memory[40];
}
HELPER(ringbuf_reserve_dynptr)
{
	struct bpf_dynptr record;

	r->value = bpf_ringbuf_reserve_dynptr(&ring, 16, 0, &record);
	bpf_ringbuf_discard_dynptr(&record, 0);
	r->more = bpf_ringbuf_reserve_dynptr(&ring, 16, 1, &record);
	bpf_ringbuf_discard_dynptr(&record, 0);
}
HELPER(ringbuf_submit_dynptr)
{
	struct bpf_dynptr record;

	r->value = bpf_ringbuf_reserve_dynptr(&ring, 8, 0, &record);
	r->more = bpf_dynptr_write(&record, 0, &n, 8, 0);
	bpf_ringbuf_submit_dynptr(&record, 0);
}
HELPER(ringbuf_discard_dynptr)
{
	struct bpf_dynptr record;

	r->value = bpf_ringbuf_reserve_dynptr(&ring, 8, 0, &record);
	bpf_ringbuf_discard_dynptr(&record, 0);
}
HELPER(ktime_get_tai_ns) { r->value = bpf_ktime_get_tai_ns() != 0; }

static long add(struct bpf_dynptr *sample, long *total)
{
	long value = 0;

	if (bpf_dynptr_read(&value, 8, sample, 0, 0) == 0)
		*total += value;
	return value == 30;
}
// The tool sends 10, 20, one that it takes back, 30, 40: the callback wants no more after 30.
HELPER(user_ringbuf_drain)
{
	long total = 0;

	r->value = bpf_user_ringbuf_drain(&user, add, &total, 0) * 10;
	r->more = total;
	r->value += bpf_user_ringbuf_drain(&user, add, &total, 2 | 4);
}
