// Descriptors of BPF objects. Raw system calls; runs on the kernel or, preloaded, on bpftime, and must print the same.
//   objects pins DIR        what BPF_OBJ_PIN and BPF_OBJ_GET answer below DIR, one result per line
//   objects access          descriptors for reading or writing only, frozen maps, mappings of them
//   objects hold PATH OFFSET [DIR]  counts calls of a function and, given DIR, pins map, program and link there as map, prog
//                           and link; READY ids; commands on stdin: count | on | on again | off | off again | runs | close
//   objects from DIR        the same commands for what is pinned there
//   objects ring-write DIR  pins a ring buffer and writes a record for each line read
//   objects ring-read DIR   prints the records of that one as epoll says that they are there
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define I(c, d, s, o, i) ((struct bpf_insn){.code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i})
enum { PATH_FD = 1 << 14 };

static long bpf(int cmd, union bpf_attr *a, unsigned n) { long r = syscall(SYS_bpf, cmd, a, n); return r < 0 ? -errno : r; }
static void die(const char *what) { fprintf(stderr, "%s: %s\n", what, strerror(errno)); exit(1); }
static int must(long fd, const char *what) { if (fd < 0) { errno = -fd; die(what); } return fd; }
static long ok(long r) { return r > 0 ? 0 : r; }

static long create(int type, int flags) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_type = type, a.key_size = 4, a.value_size = 8, a.max_entries = 4, a.map_flags = flags;
  if (type == BPF_MAP_TYPE_RINGBUF) a.key_size = a.value_size = 0, a.max_entries = 4096;
  return bpf(BPF_MAP_CREATE, &a, sizeof a);
}

static long elem(int cmd, int map, uint32_t key, uint64_t *value) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_fd = map, a.key = (uint64_t)&key, a.value = (uint64_t)value;
  return bpf(cmd, &a, sizeof a);
}
static long lookup(int map, uint32_t key) { uint64_t v = 0; long r = elem(BPF_MAP_LOOKUP_ELEM, map, key, &v); return r ? r : (long)v; }
static long update(int map, uint32_t key, uint64_t v) { return elem(BPF_MAP_UPDATE_ELEM, map, key, &v); }
static long delete(int map, uint32_t key) { return elem(BPF_MAP_DELETE_ELEM, map, key, NULL); }
static long take(int map, uint32_t key) { uint64_t v = 0; return elem(BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key, &v); }
static long next(int map) { uint64_t v = 0; return elem(BPF_MAP_GET_NEXT_KEY, map, 99, &v); }
static long freeze(int map) { union bpf_attr a; memset(&a, 0, sizeof a); a.map_fd = map; return bpf(BPF_MAP_FREEZE, &a, sizeof a); }
static long batch(int cmd, int map) {
  uint32_t keys[4] = {0, 1, 2, 3}, out = 0;
  uint64_t values[4] = {1, 2, 3, 4};
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.batch.map_fd = map, a.batch.keys = (uint64_t)keys, a.batch.values = (uint64_t)values, a.batch.count = 4;
  a.batch.out_batch = (uint64_t)&out;
  return bpf(cmd, &a, sizeof a);
}

// map[0] += 1
static long load(int map, int type) {
  struct bpf_insn p[] = {
      I(0x62, 10, 0, -4, 0), I(0xbf, 2, 10, 0, 0), I(0x07, 2, 0, 0, -4), I(0x18, 1, 1, 0, map), I(0, 0, 0, 0, 0),
      I(0x85, 0, 0, 0, 1), I(0x15, 0, 0, 2, 0), I(0xb7, 1, 0, 0, 1), I(0xdb, 0, 1, 0, 0), I(0xb7, 0, 0, 0, 0),
      I(0x95, 0, 0, 0, 0)};
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.prog_type = type, a.insns = (uint64_t)p, a.insn_cnt = sizeof p / sizeof *p, a.license = (uint64_t)"GPL";
  memcpy(a.prog_name, "counter", 8);
  return bpf(BPF_PROG_LOAD, &a, sizeof a);
}

static int uprobe(const char *path, uint64_t offset) {
  FILE *f = fopen("/sys/bus/event_source/devices/uprobe/type", "r");
  int type = 8;
  if (f) { if (fscanf(f, "%d", &type) != 1) type = 8; fclose(f); }
  struct perf_event_attr a;
  memset(&a, 0, sizeof a);
  a.type = type, a.size = sizeof a, a.config1 = (uint64_t)path, a.config2 = offset;
  int fd = syscall(SYS_perf_event_open, &a, -1, 0, -1, 8);
  if (fd < 0) die("perf_event_open");
  return fd;
}

static long link_create(int prog, int event) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.link_create.prog_fd = prog, a.link_create.target_fd = event, a.link_create.attach_type = BPF_PERF_EVENT;
  a.link_create.perf_event.bpf_cookie = 77;
  return bpf(BPF_LINK_CREATE, &a, sizeof a);
}

struct obj { uint64_t path; uint32_t fd, flags; int32_t path_fd; };
static long obj(int cmd, const char *path, int fd, int flags, int path_fd) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  *(struct obj *)&a = (struct obj){(uint64_t)path, fd, flags, path_fd};
  return bpf(cmd, &a, sizeof a);
}
static long pin(const char *path, int fd) { return obj(BPF_OBJ_PIN, path, fd, 0, 0); }
static long get(const char *path, int flags) { return obj(BPF_OBJ_GET, path, 0, flags, 0); }

static uint32_t id_of(int fd, int which) {
  uint32_t words[64] = {0};
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.info.bpf_fd = fd, a.info.info_len = sizeof words, a.info.info = (uint64_t)words;
  must(bpf(BPF_OBJ_GET_INFO_BY_FD, &a, sizeof a), "info");
  return words[which];
}
static long fd_by_id(int cmd, uint32_t id, int flags) {
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.map_id = id, a.open_flags = flags;
  return bpf(cmd, &a, sizeof a);
}

static char where[4096];
static const char *at(const char *name) {
  static char paths[8][4300];
  static int n;
  char *p = paths[n++ % 8];
  snprintf(p, 4300, "%s/%s", where, name);
  return p;
}

#define SAY(what, value) printf("%s %ld ", what, (long)(value))
static void end(void) { printf("\n"); }
static long no(long r) { return r < 0 ? -errno : 0; }

static void rdonly(const char *what, int fd) {
  printf("%s: lookup %ld update %ld delete %ld next %ld take %ld freeze %ld\n", what, ok(lookup(fd, 0)), update(fd, 0, 5),
         delete(fd, 3), next(fd), take(fd, 3), freeze(fd));
}

static void pins(const char *self) {
  int array = must(create(BPF_MAP_TYPE_ARRAY, 0), "map"), hash = must(create(BPF_MAP_TYPE_HASH, 0), "map");
  int ring = must(create(BPF_MAP_TYPE_RINGBUF, 0), "ring");
  int prog = must(load(array, BPF_PROG_TYPE_KPROBE), "prog"), event = uprobe(self, 0x1000);
  int link = must(link_create(prog, event), "link");
  struct statfs fs;
  SAY("statfs", statfs(where, &fs)), SAY("bpffs", fs.f_type == 0xcafe4a11), end();
  SAY("pin map", pin(at("m"), array)), SAY("again", pin(at("m"), array)), SAY("twice", pin(at("m2"), array));
  SAY("prog", pin(at("p"), prog)), SAY("link", pin(at("l"), link)), SAY("ring", pin(at("r"), ring)), end();
  SAY("pin event", pin(at("e"), event)), SAY("file", pin(at("e"), 0)), SAY("closed", pin(at("e"), 999)), end();
  SAY("pin no dir", pin(at("no/m"), array)), SAY("below a pin", pin(at("m/x"), array)), SAY("elsewhere", pin("/tmp/objects-no-bpffs", array));
  SAY("nowhere", pin("/tmp/objects-none/x", array)), SAY("dot", pin(at("a.b"), array)), SAY("NULL", pin(NULL, array)), SAY("empty", pin("", array));
  SAY("the directory", pin(where, array)), SAY("with a slash", pin(at("s/"), array)), end();
  SAY("pin flags", obj(BPF_OBJ_PIN, at("f"), array, BPF_F_RDONLY, 0)), SAY("path_fd", obj(BPF_OBJ_PIN, at("f"), array, 0, 3)), end();
  int dir = open(where, O_RDONLY | O_DIRECTORY);
  SAY("open dir", dir >= 0), SAY("pin there", obj(BPF_OBJ_PIN, "rel", array, PATH_FD, dir)), SAY("get", ok(obj(BPF_OBJ_GET, "rel", 0, PATH_FD, dir)));
  SAY("by path", ok(get(at("rel"), 0))), SAY("no directory", obj(BPF_OBJ_PIN, "rel2", array, PATH_FD, 0)), SAY("closed", obj(BPF_OBJ_GET, "rel", 0, PATH_FD, 998)), end();
  long m = get(at("m"), 0), p = get(at("p"), 0), l = get(at("l"), 0), r = get(at("r"), 0);
  SAY("get", ok(m)), SAY("", ok(p)), SAY("", ok(l)), SAY("", ok(r)), SAY("absent", get(at("none"), 0)), SAY("below a pin", get(at("m/x"), 0));
  SAY("dir", get(where, 0)), SAY("elsewhere", get(self, 0)), SAY("", get("/tmp", 0)), SAY("dot", get(at("a.b"), 0)), end();
  SAY("ids", id_of(m, 1) == id_of(array, 1)), SAY("", id_of(p, 1) == id_of(prog, 1)), SAY("", id_of(l, 1) == id_of(link, 1)), SAY("", id_of(r, 1) == id_of(ring, 1)), end();
  SAY("get bad flag", get(at("m"), 1)), SAY("both", get(at("m"), BPF_F_RDONLY | BPF_F_WRONLY)), SAY("fd", obj(BPF_OBJ_GET, at("m"), 3, 0, 0));
  SAY("prog rdonly", ok(get(at("p"), BPF_F_RDONLY))), SAY("link rdonly", ok(get(at("l"), BPF_F_RDONLY))), SAY("wronly", ok(get(at("l"), BPF_F_WRONLY))), end();
  SAY("update", update(array, 0, 42)), SAY("shared", lookup(m, 0)), end();
  rdonly("rdonly", must(get(at("m"), BPF_F_RDONLY), "get"));
  rdonly("wronly", must(get(at("m2"), BPF_F_WRONLY), "get"));
  struct stat st;
  SAY("stat", stat(at("m"), &st)), SAY("regular", S_ISREG(st.st_mode)), SAY("mode", st.st_mode & 0777), SAY("mine", st.st_uid == getuid()), SAY("size", st.st_size), end();
  SAY("mkdir", no(mkdir(at("d"), 0700))), SAY("again", no(mkdir(at("d"), 0700))), SAY("pin below", pin(at("d/h"), hash)), SAY("rmdir", no(rmdir(at("d")))), end();
  SAY("open a pin", no(open(at("m"), O_RDONLY))), SAY("make a file", no(open(at("plain"), O_CREAT | O_RDWR, 0600))), end();
  SAY("rename", no(rename(at("m2"), at("m3")))), SAY("old", get(at("m2"), 0)), SAY("new", ok(get(at("m3"), 0)));
  SAY("access", no(access(at("m3"), F_OK))), SAY("", no(access(at("m2"), F_OK)));
  SAY("hard link", no(linkat(AT_FDCWD, at("m3"), AT_FDCWD, at("m4"), 0))), SAY("get", ok(get(at("m4"), 0))), end();
  close(hash);
  SAY("unlink", no(unlink(at("m")))), SAY("gone", get(at("m"), 0)), SAY("still", lookup(m, 0)), SAY("m3", no(unlink(at("m3")))), SAY("m4 stays", ok(get(at("m4"), 0)));
  const char *rest[] = {"m4", "p", "l", "r", "rel"};
  for (int i = 0; i < 5; i++) SAY(rest[i], no(unlink(at(rest[i]))));
  end();
  SAY("hash by pin", ok(get(at("d/h"), 0))), SAY("unlink", no(unlink(at("d/h")))), SAY("rmdir", no(rmdir(at("d")))), SAY("absent", no(unlink(at("d/h")))), end();
}

static void tries(const char *what, int fd) {
  printf("%s: lookup %ld update %ld delete %ld next %ld take %ld", what, ok(lookup(fd, 0)), update(fd, 0, 5), delete(fd, 3),
         next(fd), take(fd, 3));
  printf(" batch %ld %ld %ld %ld\n", batch(BPF_MAP_LOOKUP_BATCH, fd), batch(BPF_MAP_UPDATE_BATCH, fd),
         batch(BPF_MAP_DELETE_BATCH, fd), batch(BPF_MAP_LOOKUP_AND_DELETE_BATCH, fd));
}
static int maps_as(int fd, int prot) {
  void *p = mmap(NULL, 4096, prot, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) return -errno;
  munmap(p, 4096);
  return 0;
}

static void access_modes(void) {
  enum { MMAPABLE = 1 << 10 };
  static const int flags[] = {0, BPF_F_RDONLY, BPF_F_WRONLY, BPF_F_RDONLY | BPF_F_WRONLY};
  static const struct { int type; const char *name; } types[] = {{BPF_MAP_TYPE_ARRAY, "array"}, {BPF_MAP_TYPE_HASH, "hash"},
      {BPF_MAP_TYPE_PERCPU_HASH, "percpu_hash"}, {BPF_MAP_TYPE_LRU_HASH, "lru"}};
  char what[64];
  for (int t = 0; t < 4; t++)
    for (int f = 0; f < 4; f++) {
      long fd = create(types[t].type, flags[f] & 3 << 3);
      if (t == 2 || fd < 0) { printf("%s %x %ld\n", types[t].name, flags[f], ok(fd)); continue; }
      snprintf(what, sizeof what, "%s %x mode %d", types[t].name, flags[f], fcntl(fd, F_GETFL) & O_ACCMODE);
      tries(what, fd);
      long by_id = fd_by_id(BPF_MAP_GET_FD_BY_ID, id_of(fd, 1), 0);
      tries("  by id", by_id);
      printf("  freeze %ld again %ld by id %ld\n", freeze(fd), freeze(fd), freeze(by_id));
      tries("  frozen", by_id);
      close(fd), close(by_id);
    }
  int map = must(create(BPF_MAP_TYPE_ARRAY, MMAPABLE), "map");
  uint32_t id = id_of(map, 1);
  printf("by id: bad %ld both %ld none %ld\n", fd_by_id(BPF_MAP_GET_FD_BY_ID, id, 1),
         fd_by_id(BPF_MAP_GET_FD_BY_ID, id, BPF_F_RDONLY | BPF_F_WRONLY), fd_by_id(BPF_MAP_GET_FD_BY_ID, 1 << 30, 0));
  for (int f = 0; f < 3; f++) {
    int fd = must(fd_by_id(BPF_MAP_GET_FD_BY_ID, id, flags[f]), "by id");
    snprintf(what, sizeof what, "by id %x", flags[f]);
    tries(what, fd);
    printf("  mmap r %d w %d rw %d\n", maps_as(fd, PROT_READ), maps_as(fd, PROT_WRITE), maps_as(fd, PROT_READ | PROT_WRITE));
    close(fd);
  }
  void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, map, 0);
  printf("freeze while mapped %ld", freeze(map));
  munmap(p, 4096);
  printf(" after %ld\n", freeze(map));
  printf("frozen: mmap r %d w %d private %d\n", maps_as(map, PROT_READ), maps_as(map, PROT_READ | PROT_WRITE),
         mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, map, 0) == MAP_FAILED ? -errno : 0);
  p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, map, 0);
  printf("frozen: mprotect to write %d\n", mprotect(p, 4096, PROT_READ | PROT_WRITE) ? -errno : 0);
  int ro = must(create(BPF_MAP_TYPE_ARRAY, MMAPABLE | BPF_F_RDONLY), "map");
  int pr = must(create(BPF_MAP_TYPE_ARRAY, MMAPABLE | 1 << 7), "map"), pw = must(create(BPF_MAP_TYPE_ARRAY, MMAPABLE | 1 << 8), "map");
  printf("rdonly: mmap r %d w %d\n", maps_as(ro, PROT_READ), maps_as(ro, PROT_READ | PROT_WRITE));
  printf("rdonly_prog: mmap w %d wronly_prog %d\n", maps_as(pr, PROT_READ | PROT_WRITE), maps_as(pw, PROT_READ | PROT_WRITE));
  tries("rdonly_prog", pr);
  long fd = fd_by_id(BPF_PROG_GET_FD_BY_ID, 1 << 30, 0), wrong = fd_by_id(BPF_PROG_GET_FD_BY_ID, 1, BPF_F_RDONLY);
  printf("prog by id: none %ld flags %ld\n", fd, wrong);
  fd = fd_by_id(BPF_LINK_GET_FD_BY_ID, 1 << 30, 0), wrong = fd_by_id(BPF_LINK_GET_FD_BY_ID, 1, BPF_F_RDONLY);
  printf("link by id: none %ld flags %ld\n", fd, wrong);
}

static long stats(void) { union bpf_attr a; memset(&a, 0, sizeof a); return bpf(BPF_ENABLE_STATS, &a, sizeof a); }

struct runs { uint64_t ns, count, missed; };
static struct runs runs_of(int prog) {
  struct { unsigned char head[192]; struct runs runs; uint32_t rest[4]; } info;
  memset(&info, 0, sizeof info);
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.info.bpf_fd = prog, a.info.info_len = sizeof info, a.info.info = (uint64_t)&info;
  must(bpf(BPF_OBJ_GET_INFO_BY_FD, &a, sizeof a), "info");
  return info.runs;
}

static void commands(int map, int prog, int link, int event) {
  int on = -1, on2 = -1;
  printf("READY %u %u %u\n", id_of(map, 1), id_of(prog, 1), id_of(link, 1));
  fflush(stdout);
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    struct runs r = runs_of(prog);
    if (!strcmp(line, "count\n")) printf("count %ld\n", lookup(map, 0));
    else if (!strcmp(line, "on\n")) printf("on %ld\n", ok(on = stats()));
    else if (!strcmp(line, "on again\n")) printf("on %ld\n", ok(on2 = stats()));
    else if (!strcmp(line, "off\n")) printf("off %d\n", close(on));
    else if (!strcmp(line, "off again\n")) printf("off %d\n", close(on2));
    else if (!strcmp(line, "runs\n")) printf("runs %lu missed %lu time %s\n", r.count, r.missed, r.ns ? "yes" : "no");
    else if (!strcmp(line, "close\n")) printf("closed %d %d\n", close(link), close(event));
    else printf("what?\n");
    fflush(stdout);
  }
}

static void hold(const char *path, uint64_t offset, const char *dir) {
  int map = must(create(BPF_MAP_TYPE_ARRAY, 0), "map"), prog = must(load(map, BPF_PROG_TYPE_KPROBE), "prog");
  int event = uprobe(path, offset), link = must(link_create(prog, event), "link");
  if (ioctl(event, PERF_EVENT_IOC_ENABLE, 0)) die("enable");
  if (dir) {
    snprintf(where, sizeof where, "%s", dir);
    must(pin(at("map"), map), "pin map"), must(pin(at("prog"), prog), "pin prog"), must(pin(at("link"), link), "pin link");
  }
  commands(map, prog, link, event);
}

static void from(void) {
  // One after the other: which is asked for first shows in what an error says.
  int map = must(get(at("map"), 0), "map"), prog = must(get(at("prog"), 0), "prog"), link = must(get(at("link"), 0), "link");
  commands(map, prog, link, -1);
}

// bpf_ringbuf_output(ring, "12345678", 8, 0), by a run of the tool's own
static void ring_write(void) {
  int ring = must(create(BPF_MAP_TYPE_RINGBUF, 0), "ring");
  struct bpf_insn p[] = {I(0x7a, 10, 0, -8, 4711), I(0xbf, 2, 10, 0, 0), I(0x07, 2, 0, 0, -8), I(0x18, 1, 1, 0, ring), I(0, 0, 0, 0, 0),
      I(0xb7, 3, 0, 0, 8), I(0xb7, 4, 0, 0, 0), I(0x85, 0, 0, 0, 130), I(0xb7, 0, 0, 0, 0), I(0x95, 0, 0, 0, 0)};
  union bpf_attr a;
  memset(&a, 0, sizeof a);
  a.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT, a.insns = (uint64_t)p, a.insn_cnt = sizeof p / sizeof *p, a.license = (uint64_t)"GPL";
  int prog = must(bpf(BPF_PROG_LOAD, &a, sizeof a), "prog");
  must(pin(at("ring"), ring), "pin");
  printf("READY\n"), fflush(stdout);
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    memset(&a, 0, sizeof a);
    a.test.prog_fd = prog;
    printf("wrote %ld\n", bpf(BPF_PROG_TEST_RUN, &a, sizeof a)), fflush(stdout);
  }
}

static void ring_read(void) {
  int ring = must(get(at("ring"), 0), "ring"), ep = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN};
  if (epoll_ctl(ep, EPOLL_CTL_ADD, ring, &e)) die("epoll_ctl");
  volatile uint64_t *consumer = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0);
  volatile char *data = mmap(NULL, 4096 + 8192, PROT_READ, MAP_SHARED, ring, 4096);
  if (consumer == MAP_FAILED || data == MAP_FAILED) die("mmap");
  printf("READY\n"), fflush(stdout);
  volatile uint64_t *producer = (volatile uint64_t *)data;
  while (epoll_wait(ep, &e, 1, -1) == 1) {
    // Data is said to be there from reserving on, and a wakeup may come late, when it is read already.
    for (; *consumer != *producer; *consumer += 16) {
      volatile char *record = data + 4096 + *consumer % 4096;
      while (*(volatile uint32_t *)record & BPF_RINGBUF_BUSY_BIT);
      printf("record %lu\n", *(volatile uint64_t *)(record + 8)), fflush(stdout);
    }
  }
}

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "";
  if (argc > 2) snprintf(where, sizeof where, "%s", argv[2]);
  if (!strcmp(what, "pins")) pins("/proc/self/exe");
  else if (!strcmp(what, "access")) access_modes();
  else if (!strcmp(what, "hold") && argc > 3) hold(argv[2], strtoull(argv[3], 0, 0), argc > 4 ? argv[4] : NULL);
  else if (!strcmp(what, "from")) from();
  else if (!strcmp(what, "ring-write")) ring_write();
  else if (!strcmp(what, "ring-read")) ring_read();
  else return 2;
  return 0;
}
