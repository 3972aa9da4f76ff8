#include "common.h"
/* Ethernet, IPv4, TCP or UDP headers of 8 packets of 64 bytes. */
struct eth { u8 dst[6], src[6]; u16 proto; } __attribute__((packed));
struct ip { u8 vihl, tos; u16 len, id, off; u8 ttl, proto; u16 csum; u32 src, dst; } __attribute__((packed));
struct l4 { u16 src, dst; u32 seq; } __attribute__((packed));
static __always_inline u64 f(u8 *mem) {
  u64 s = 0;
  for (u32 i = 0; i < 8; i++) {
    struct eth *e = (struct eth *)(mem + i * 64);
    struct ip *ip = (struct ip *)(e + 1);
    s = s * 31 + e->proto + e->dst[5];
    if (ip->ttl == 0) { s++; continue; }
    u32 ihl = (ip->vihl & 3) * 4 + 20;
    s ^= ((u64)ip->src << 16) + ip->dst;
    struct l4 *l = (struct l4 *)((u8 *)ip + (ihl & 31));
    if (ip->proto & 1) s += __builtin_bswap16(l->dst) + __builtin_bswap32(l->seq);
    else s += __builtin_bswap16(l->src) ^ ip->len;
  }
  return s;
}
TPROG(f, 640)
