/* One source, two targets: BPF bytecode (clang -target bpf -mcpu=v3) and a native shared object.
 * r1 = memory, r2 = its length; the result is r0. Whoever gives too little memory gets ~0. */
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;
typedef signed char s8; typedef int s32; typedef long long s64;
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#define __noinline __attribute__((noinline))
#ifdef __bpf__
#define ENTRY __attribute__((section("entry")))
#else
#define ENTRY
#endif
#define TPROG(FN, N) \
  ENTRY u64 bpf_main(void *mem, u64 len) { if (len < (N)) return ~0ULL; return FN((u8 *)mem); }
