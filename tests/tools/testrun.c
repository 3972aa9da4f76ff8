// BPF_PROG_TEST_RUN of programs of the types that tracing uses, with every attribute in turn: errno, result, and what was
// written. Raw system calls; runs on the kernel or, preloaded, on bpftime, and must print the same.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define I(c, d, s, o, i) {.code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i}

static long bpf(int cmd, union bpf_attr *a) { long r = syscall(SYS_bpf, cmd, a, sizeof *a); return r < 0 ? -errno : r; }

static int load(int type, const struct bpf_insn *code, int n) {
  static char log[1 << 14];
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.prog_type = type, a.insns = (uint64_t)code, a.insn_cnt = n, a.license = (uint64_t)"GPL";
  a.log_buf = (uint64_t)log, a.log_size = sizeof log, a.log_level = 1;
  if (type == BPF_PROG_TYPE_SYSCALL) a.prog_flags = BPF_F_SLEEPABLE;
  return bpf(BPF_PROG_LOAD, &a);
}

static void run(const char *what, int fd, union bpf_attr a, uint64_t *ctx) {
  a.test.prog_fd = fd, a.test.retval = 99;
  long r = bpf(BPF_PROG_TEST_RUN, &a);
  printf("  %s %ld retval %u", what, r, a.test.retval);
  if (ctx) printf(" ctx %lx %lx", ctx[0], ctx[1]), ctx[0] = 5, ctx[1] = 6;
  putchar('\n');
}

int main(void) {
  static const struct { const char *name; int type; } types[] = {
      {"kprobe", 2}, {"tracepoint", 5}, {"perf_event", 7}, {"raw_tracepoint", 17}, {"syscall", 31}};
  static const struct bpf_insn plain[] = {I(0xb7, 0, 0, 0, -7), I(0x95, 0, 0, 0, 0)};
  static const struct bpf_insn reads[] = {I(0x79, 0, 1, 8, 0), I(0x95, 0, 0, 0, 0)};
  static const struct bpf_insn writes[] = {I(0x7a, 1, 0, 8, 77), I(0x79, 0, 1, 0, 0), I(0x95, 0, 0, 0, 0)};
  static const struct bpf_insn *const programs[] = {plain, reads, writes};
  static const int lengths[] = {2, 2, 3};
  static char big[1 << 17];
  for (int t = 0; t < 5; t++)
    for (int p = 0; p < 3; p++) {
      int fd = load(types[t].type, programs[p], lengths[p]);
      printf("%s %d: %d\n", types[t].name, p, fd < 0 ? fd : 0);
      if (fd < 0) continue;
      uint64_t ctx[2] = {5, 6};
      union bpf_attr none, a;
      memset(&none, 0, sizeof none);
      run("nothing", fd, none, ctx);
#define WITH(name, ...) a = none, __VA_ARGS__, run(name, fd, a, ctx)
      WITH("context", a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = 16);
      WITH("short context", a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = 8);
      WITH("context nowhere", a.test.ctx_in = 8, a.test.ctx_size_in = 16);
      WITH("96 bytes", a.test.ctx_in = (uint64_t)big, a.test.ctx_size_in = 96);
      WITH("104 bytes", a.test.ctx_in = (uint64_t)big, a.test.ctx_size_in = 104);
      WITH("64 KiB - 1", a.test.ctx_in = (uint64_t)big, a.test.ctx_size_in = 65535);
      WITH("64 KiB", a.test.ctx_in = (uint64_t)big, a.test.ctx_size_in = 65536);
      WITH("size alone", a.test.ctx_size_in = 16);
      WITH("address alone", a.test.ctx_in = (uint64_t)ctx);
      WITH("context out", a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = 16, a.test.ctx_out = (uint64_t)ctx, a.test.ctx_size_out = 16);
      WITH("size out", a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = 16, a.test.ctx_size_out = 16);
      WITH("data in", a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = 16, a.test.data_in = (uint64_t)big, a.test.data_size_in = 64);
      WITH("data out", a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = 16, a.test.data_out = (uint64_t)big, a.test.data_size_out = 64);
      WITH("data size", a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = 16, a.test.data_size_in = 64);
      WITH("repeat", a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = 16, a.test.repeat = 2);
      WITH("duration", a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = 16, a.test.duration = 2);
      WITH("batch", a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = 16, a.test.batch_size = 2);
      WITH("on cpu 0", a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = 16, a.test.flags = 1);
      WITH("on cpu 10000", a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = 16, a.test.flags = 1, a.test.cpu = 10000);
      WITH("cpu alone", a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = 16, a.test.cpu = 1);
      WITH("flag 2", a.test.ctx_in = (uint64_t)ctx, a.test.ctx_size_in = 16, a.test.flags = 2);
      close(fd);
    }
  union bpf_attr none;
  memset(&none, 0, sizeof none);
  run("no program", -1, none, 0);
  return 0;
}
