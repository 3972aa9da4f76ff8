// What helpers answer, one program for each family. Each result is a number and perhaps a text; the tool
// (tools/helpers.c) runs the programs and prints them, so that two kernels, or the kernel and bpftime, can be compared.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "results.h"

char LICENSE[] SEC("license") = "GPL";

static __always_inline struct result *next(void)
{
	return &results[used++ % RESULTS];
}

static __always_inline void number(long value) { next()->value = value; }

static __always_inline void signed_number(const char *text, unsigned int len, unsigned long flags)
{
	struct result *r = next();
	long res = 7;
	r->value = bpf_strtol(text, len, flags, &res);
	__builtin_memcpy(r->text, &res, sizeof(res));
}

static __always_inline void unsigned_number(const char *text, unsigned int len, unsigned long flags)
{
	struct result *r = next();
	unsigned long res = 7;
	r->value = bpf_strtoul(text, len, flags, &res);
	__builtin_memcpy(r->text, &res, sizeof(res));
}

#define SIGNED(text, flags) do { static const char t[] = text; signed_number(t, sizeof(t) - 1, flags); } while (0)
#define UNSIGNED(text, flags) do { static const char t[] = text; unsigned_number(t, sizeof(t) - 1, flags); } while (0)

SEC("raw_tp/numbers") int numbers(void *ctx)
{
	SIGNED("42", 0);
	SIGNED("  -42xyz", 10);
	SIGNED("0x1F", 0);
	SIGNED("0x1f", 16);
	SIGNED("0xg", 0);
	SIGNED("017", 0);
	SIGNED("017", 8);
	SIGNED("089", 0);
	SIGNED("+5", 10);
	SIGNED("-", 10);
	SIGNED(" ", 10);
	SIGNED("- 5", 10);
	SIGNED("9223372036854775807", 10);
	SIGNED("9223372036854775808", 10);
	SIGNED("-9223372036854775808", 10);
	SIGNED("-9223372036854775809", 10);
	SIGNED("99999999999999999999999", 10);
	SIGNED("1", 7);
	SIGNED("1", 256);
	SIGNED("1", 10 | 1ul << 40);
	UNSIGNED("42", 0);
	UNSIGNED("-42", 0);
	UNSIGNED("18446744073709551615", 10);
	UNSIGNED("18446744073709551616", 10);
	UNSIGNED("ff", 16);
	UNSIGNED("FFzz", 16);
	UNSIGNED("\n\t\v 7", 0);
	UNSIGNED("0000000000000000000000000000000000000000000000000000000000000000000000000000001", 10);
	UNSIGNED("12345678901234567890", 8);
	return 0;
}

#define TEXT_OF(fmt, ...) do { \
	struct result *r = next(); \
	static const char f[] = fmt; \
	unsigned long long values[] = { __VA_ARGS__ }; \
	r->value = bpf_snprintf(r->text, sizeof(r->text), f, values, sizeof(values)); \
} while (0)

#define PLAIN(size, fmt) do { \
	struct result *r = next(); \
	static const char f[] = fmt; \
	r->value = bpf_snprintf(r->text, size, f, 0, 0); \
} while (0)

SEC("raw_tp/texts") int texts(void *ctx)
{
	char word[8] = "word", empty[8] = "";
	unsigned char bytes[16] = { 192, 168, 0, 1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255 };
	unsigned long w = (unsigned long)word, b = (unsigned long)bytes;

	TEXT_OF("%d %5d|%-5d|%05d", 1, 42, 42, 42);
	TEXT_OF("%i %u %x %X", -1, -1, 0xabcdef, 0xabcdef);
	TEXT_OF("%ld %lu %lx %lli", -1ul, -1ul, -1ul, 1ul << 63);
	TEXT_OF("%+d % d %+05d|% 05d", 3, 3, 3, 4);
	TEXT_OF("%-+5d|%0-5d|%-05d|", 3, 4, 5);
	TEXT_OF("%c%c|%5c|%-5c|%05c", 'a', 'b', 'c', 'd', 'e');
	TEXT_OF("%s|%10s|%-10s|%s|", w, w, w, (unsigned long)empty);
	TEXT_OF("%pks|%10pks|%s", w, w, 0);
	TEXT_OF("%px|%20px|%-20px|%08px", 0x1234, 0x1234, 0x1234, 0x1234);
	TEXT_OF("%+px %pxabc|%px", 1, 2, 0);
	TEXT_OF("%pi4 %pI4 %20pI4|", b, b, b);
	TEXT_OF("%pi6 %d", b, 5);
	TEXT_OF("%pI6|%d", b, 5);
	TEXT_OF("%pS %pB %ps|%20pS", 0x1234, 1, 0, 5);
	TEXT_OF("%+u|% u|%+x", 1, 2, 3);
	TEXT_OF("100%% %d%%", 5);
	TEXT_OF("%90d|", 5);
	TEXT_OF("%900000d", 5);
	TEXT_OF("%s", 0x10);
	PLAIN(TEXT, "plain\tand \xc3\xa9\n");
	PLAIN(3, "truncated");
	PLAIN(1, "truncated");
	PLAIN(0, "truncated");
	PLAIN(TEXT, "");
	return 0;
}

SEC("raw_tp/prints") int prints(void *ctx)
{
	char word[8] = "word";
	static const char bad[] = "%o", many[] = "%d %d %d %d", none[] = "hello\n";
	unsigned long long values[4] = { 1, 2, 3, (unsigned long)word };
	static const char four[] = "four %d %d %d %s";

	number(bpf_trace_printk(none, sizeof(none)));
	number(bpf_trace_printk(none, 3));
	number(bpf_trace_printk(bad, sizeof(bad), 1));
	number(bpf_trace_printk(many, sizeof(many), 1, 2, 3));
	number(bpf_trace_vprintk(four, sizeof(four), values, sizeof(values)));
	number(bpf_trace_vprintk(four, sizeof(four), values, 24));
	number(bpf_trace_vprintk(four, sizeof(four), values, 31));
	number(bpf_trace_vprintk(none, sizeof(none), 0, 0));
	bpf_printk("one %d", 1);
	bpf_printk("%d %s %lx", -5, word, 1ul << 60);
	bpf_printk("%d %d %d %d %d", 1, 2, 3, 4, 5);
	return 0;
}

SEC("raw_tp/identity") int identity(void *ctx)
{
	struct bpf_pidns_info ids = { 1, 1 };
	unsigned long long own = bpf_get_current_pid_tgid();
	unsigned long task = bpf_get_current_task();

	number(bpf_get_ns_current_pid_tgid(ns_dev, ns_ino, &ids, sizeof(ids)));
	number(ids.pid == (unsigned int)own && ids.tgid == own >> 32);
	number(bpf_get_ns_current_pid_tgid(ns_dev, ns_ino + 1, &ids, sizeof(ids)));
	number(ids.pid);
	ids.pid = 3;
	number(bpf_get_ns_current_pid_tgid(ns_dev, ns_ino, &ids, 4));
	number(ids.pid);
	number(bpf_get_numa_node_id());
	number(bpf_get_current_ancestor_cgroup_id(0));
	number(bpf_get_current_ancestor_cgroup_id(1));
	number(bpf_get_current_ancestor_cgroup_id(40));
	number(bpf_get_current_ancestor_cgroup_id(-1));
	number(task == (unsigned long)bpf_get_current_task_btf());
	number(bpf_get_current_comm(next()->text, TEXT));
	number(bpf_get_current_comm(next()->text, 3));
	return 0;
}

SEC("raw_tp/signals") int signals(void *ctx)
{
	number(bpf_send_signal(0));
	number(bpf_send_signal(65));
	number(bpf_send_signal(-1));
	number(bpf_send_signal_thread(65));
	number(bpf_send_signal(10));
	number(bpf_send_signal_thread(12));
	return 0;
}

SEC("uprobe.s") int BPF_KPROBE(sleeping, const char *text, long n)
{
	char buf[16] = {};

	number(n);
	number(bpf_copy_from_user(buf, 8, text));
	__builtin_memcpy(next()->text, buf, sizeof(buf));
	number(bpf_copy_from_user(buf, 8, (void *)user_hole));
	__builtin_memcpy(next()->text, buf, sizeof(buf));
	number(bpf_copy_from_user_task(buf, 8, text, bpf_get_current_task_btf(), 0));
	__builtin_memcpy(next()->text, buf, sizeof(buf));
	number(bpf_copy_from_user_task(buf, 8, text, bpf_get_current_task_btf(), 1));
	number(bpf_copy_from_user_task(buf, 0, text, bpf_get_current_task_btf(), 0));
	return 0;
}

SEC("uprobe") int BPF_KPROBE(awake, const char *text, long n)
{
	struct pt_regs *regs = (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
	struct result *r;

	// The kernel's are those at the breakpoint, the context is the same.
	number(PT_REGS_PARM2(ctx) == n);
	number(regs != 0);
	r = next();
	r->value = bpf_probe_read_user_str(r->text, TEXT, text);
	r = next();
	r->value = bpf_probe_read_user(r->text, 8, (void *)user_hole);
	bpf_printk("at %s", (unsigned long)text);
	number(bpf_send_signal(10));
	number(bpf_send_signal_thread(12));
	return 0;
}

struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } ring SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, int); __type(value, char[64]); } memory SEC(".maps");

SEC("raw_tp/dynptrs") int dynptrs(void *ctx)
{
	struct bpf_dynptr mem, record;
	char buf[16] = "0123456789abcde";
	int zero = 0;
	char *value = bpf_map_lookup_elem(&memory, &zero), *slice;

	if (!value)
		return 0;
	number(bpf_dynptr_from_mem(value, 48, 1, &mem));
	number(bpf_dynptr_read(buf, 4, &mem, 0, 0));
	number(bpf_dynptr_from_mem(value, 48, 0, &mem));
	number(bpf_dynptr_write(&mem, 4, buf, 16, 0));
	number(bpf_dynptr_write(&mem, 33, buf, 16, 0));
	number(bpf_dynptr_write(&mem, 48, buf, 0, 0));
	number(bpf_dynptr_write(&mem, 49, buf, 0, 0));
	number(bpf_dynptr_write(&mem, 4, buf, 8, 1));
	number(bpf_dynptr_read(next()->text, 20, &mem, 2, 0));
	number(bpf_dynptr_read(buf, 16, &mem, 40, 0));
	number(bpf_dynptr_read(buf, 16, &mem, 2, 1));
	slice = bpf_dynptr_data(&mem, 6, 8);
	number(slice != 0);
	if (slice) {
		slice[7] = 'X';
		__builtin_memcpy(next()->text, slice, 8);
	}
	number(bpf_dynptr_data(&mem, 41, 8) != 0);
	number(bpf_dynptr_data(&mem, 48, 0) != 0);

	number(bpf_ringbuf_reserve_dynptr(&ring, 16, 1, &record));
	number(bpf_dynptr_write(&record, 0, buf, 4, 0));
	bpf_ringbuf_submit_dynptr(&record, 0);
	number(bpf_ringbuf_reserve_dynptr(&ring, 5000, 0, &record));
	bpf_ringbuf_discard_dynptr(&record, 0);
	number(bpf_ringbuf_reserve_dynptr(&ring, 1 << 25, 0, &record));
	bpf_ringbuf_discard_dynptr(&record, 0);
	number(bpf_ringbuf_reserve_dynptr(&ring, 16, 0, &record));
	number(bpf_dynptr_write(&record, 0, buf, 16, 0));
	number(bpf_dynptr_write(&record, 1, buf, 16, 0));
	number(bpf_dynptr_read(next()->text, 4, &record, 4, 0));
	bpf_ringbuf_submit_dynptr(&record, 0);
	number(bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA));
	return 0;
}

static long nothing(unsigned int n, void *ctx) { return 0; }

// More calls back than bpftime lets a run make, with a record in hand.
SEC("raw_tp/exhausting") int exhausting(void *ctx)
{
	long *record = bpf_ringbuf_reserve(&ring, 8, 0);

	if (!record)
		return 0;
	for (int i = 0; i < 4; i++)
		bpf_loop(1 << 23, nothing, 0, 0);
	*record = 1;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

SEC("raw_tp/after") int after(void *ctx)
{
	long two = 2;

	number(bpf_ringbuf_output(&ring, &two, sizeof(two), 0));
	return 0;
}
