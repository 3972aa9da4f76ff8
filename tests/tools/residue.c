// What calls leave on the stack below their caller: one line for each, with the number of words there that may be taken for
// an open descriptor. The first bytes are left out: the C library's own frames are there, too.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SIZE = 64 << 10, OWN = 768, PATTERN = 0xa5, FDS = 4096 };
static uint8_t *bottom;

__attribute__((noinline)) static void fill(void) {
  volatile uint8_t stack[SIZE];
  for (int i = 0; i < SIZE; i++) stack[i] = PATTERN;
  bottom = (uint8_t *)stack;
}

__attribute__((noinline)) static void look(const char *call) {
  int found = 0;
  for (int i = 0; i < SIZE - OWN; i += 4) {
    int32_t word = *(volatile int32_t *)(bottom + i);
    found += word > 0 && word < FDS;
  }
  fprintf(stderr, "%s %d\n", call, found);
}

#define TRY(name, call) fill(), (void)(call), look(name)

int main(void) {
  union bpf_attr a;
  struct perf_event_attr event = {.type = PERF_TYPE_SOFTWARE, .config = PERF_COUNT_SW_CPU_CLOCK, .size = sizeof event,
      .sample_period = 1000000000};
  struct bpf_insn insns[] = {{.code = 0xb7}, {.code = 0x95}};
  struct stat st;
  uint32_t key = 1;
  uint64_t value = 2;
  int map = -1, fd = -1, prog = -1;
  for (int round = 0; round < 2; round++) {
    TRY("open", open("/nowhere/perf-1.map", O_RDONLY));
    TRY("openat", openat(AT_FDCWD, "/proc/self/root/nowhere/perf-1.map", O_RDONLY));
    TRY("relative", openat(AT_FDCWD, "nowhere/perf-1.map", O_RDONLY));
    TRY("fopen", fopen("/nowhere", "r"));
    TRY("opendir", opendir("/nowhere"));
    TRY("stat", stat("/nowhere", &st));
    TRY("access", access("/nowhere", R_OK));
    TRY("tracefs", fd = open("/sys/kernel/tracing/events/syscalls/sys_enter_open/id", O_RDONLY));
    TRY("close", close(fd));
    memset(&a, 0, sizeof a);
    a.map_type = BPF_MAP_TYPE_HASH, a.key_size = 4, a.value_size = 8, a.max_entries = 10;
    TRY("map", map = syscall(SYS_bpf, BPF_MAP_CREATE, &a, sizeof a));
    memset(&a, 0, sizeof a);
    a.map_fd = map, a.key = (uintptr_t)&key, a.value = (uintptr_t)&value;
    TRY("update", syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &a, sizeof a));
    TRY("lookup", syscall(SYS_bpf, BPF_MAP_LOOKUP_ELEM, &a, sizeof a));
    memset(&a, 0, sizeof a);
    a.prog_type = BPF_PROG_TYPE_PERF_EVENT, a.insns = (uintptr_t)insns, a.insn_cnt = 2, a.license = (uintptr_t)"GPL";
    TRY("prog", prog = syscall(SYS_bpf, BPF_PROG_LOAD, &a, sizeof a));
    TRY("event", fd = syscall(SYS_perf_event_open, &event, -1, 0, -1, 0));
    TRY("program", ioctl(fd, PERF_EVENT_IOC_SET_BPF, prog));
    TRY("enable", ioctl(fd, PERF_EVENT_IOC_ENABLE, 0));
    TRY("detach", close(fd));
    TRY("free", close(map));
    if (map < 0 || prog < 0 || fd < 0) return 1;
  }
}
