/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Layout of the maps that the XDP program shares with its loader.
 *
 * abi.rs compares its own types with this header's at compile time, by way of the program's BTF, and takes the
 * constants from there; neither side can change alone. Integers are in host order unless they are __be.
 */
#ifndef WEIR_ABI_H
#define WEIR_ABI_H

#include <linux/types.h>

enum weir_limit {
	/* Interfaces served by one loader. */
	WEIR_MAX_PORTS = 32,
	/* Queues of an interface, and so workers. */
	WEIR_MAX_QUEUES = 128,
	/* IPv6 extension headers followed in a packet. */
	WEIR_MAX_EXTENSIONS = 8,
	/* Places in a bucket of `fronts`. */
	WEIR_BUCKET = 4,
	/* Words of the NodePort bitmap for one protocol: a bit a port. */
	WEIR_NODE_PORT_WORDS = 1024,
	/* Rules that are tried for a packet; what is beyond is for the engine to tell apart. */
	WEIR_MAX_RULES = 64,
	/* Prefixes that rules are about: two of each rule, one a family. */
	WEIR_MAX_PREFIXES = 2048,
	/* In weir_rule.port: any interface. */
	WEIR_ANY_PORT = 0xffff,
};

/* What became of a frame, and by which rule. Every frame counts once. */
enum weir_counter {
	/* Passed to the kernel: no rule matched. */
	WEIR_NOT_OURS,
	/* Passed to the kernel: a header runs past the end of the frame or contradicts another. */
	WEIR_MALFORMED,
	/* Passed to the kernel although ours: the interface is not in `ports`. */
	WEIR_UNKNOWN_PORT,
	/* Passed to the kernel although ours: the queue's worker has not beaten within the limit. */
	WEIR_STALE_WORKER,
	/* Passed to the kernel although ours: no worker serves the queue, or no socket is registered for it. */
	WEIR_NO_SOCKET,
	/* Handed over: for a VIP, port and protocol. */
	WEIR_VIP,
	/* Handed over: for a NodePort on a node's address. */
	WEIR_NODE_PORT,
	/* Handed over: for a SNAT address and a port of its range. */
	WEIR_SNAT,
	/* Handed over: from the address and port of a `nat` backend. */
	WEIR_NAT_REPLY,
	/* Handed over: by a rule that gives the mark of a service. */
	WEIR_MARKED,
	/* Handed over: an ICMP error about a packet of one of the kinds above. */
	WEIR_ICMP_ERROR,
	/* Handed over: a fragment of such traffic. */
	WEIR_FRAGMENT,
	/* Handed over: ARP, neighbour solicitation or echo request for an owned address. */
	WEIR_OWNED,
	WEIR_COUNTERS,
};

/* Bits of weir_use.flags. */
enum weir_flag {
	/* An address of the node itself, on which NodePorts are reached. */
	WEIR_NODE = 1,
	/* An address that Weir answers ARP, neighbour discovery and echo for. */
	WEIR_ANSWERED = 2,
	/* A SNAT address. */
	WEIR_TRANSLATED = 4,
	/* A backend at the other end of a tunnel. */
	WEIR_TUNNEL = 8,
};

/* Layer-4 protocols, in the order of the NodePort bitmap; 1 << protocol in a set of them. */
enum weir_proto {
	WEIR_TCP,
	WEIR_UDP,
	WEIR_SCTP,
	WEIR_PROTOS,
};

/* An IP address: an IPv4 address in the first four bytes, the others zero. Key of `addresses`. */
struct weir_address {
	__be32 bits[4];
	/* 4 or 6. */
	__u32 version;
};

/* A place that packets are sent to or come from. Key of `vips` and `backends`. */
struct weir_endpoint {
	struct weir_address addr;
	__be16 port;
	/* enum weir_proto. */
	__u16 proto;
};

/* What an address is used for. Value of `addresses`. */
struct weir_use {
	/* First and last port of the SNAT range. */
	__u16 snat_low;
	__u16 snat_high;
	/* enum weir_flag. */
	__u16 flags;
	/* Protocols of the services on it, and of the `nat` backends on it. */
	__u8 vip_protos;
	__u8 backend_protos;
	/* Of these, the protocols of services on every port, and of backends that reply from every port. */
	__u8 vip_every;
	__u8 backend_every;
	/* First and last UDP port of tunnels to it; both 0: none. */
	__u16 tunnel_low;
	__u16 tunnel_high;
};

/*
 * Services over IPv4, half a cache line of them. Element of `fronts`, written through shared memory. A place is
 * address << 32 | port << 16 | enum weir_proto + 1; 0: none. Its bucket is place * weir_settings.front_mix >> 32, as far
 * as front_mask goes.
 */
struct weir_bucket {
	__u64 places[WEIR_BUCKET];
};

/* A block of destinations. Key of `rules`. */
struct weir_prefix {
	/* Bits of what follows that count: 32 and the prefix's own. */
	__u32 length;
	/* 4 or 6. */
	__be32 version;
	/* As in weir_address. */
	__be32 bits[4];
};

/* A rule that gives a mark, or keeps one from packets that a later rule would give it to. */
struct weir_rule {
	/* Sources: those that are `src` where `src_mask` is set. */
	__be32 src[4];
	__be32 src_mask[4];
	__u16 dport_low;
	__u16 dport_high;
	__u16 sport_low;
	__u16 sport_high;
	/* The port number of the interface, or WEIR_ANY_PORT. */
	__u16 port;
	/* Protocols. */
	__u8 protos;
	/* Whether the mark is that of a service. */
	__u8 ours;
};

/* The rules about a block of destinations, by precedence: those about larger ones around it, too. Value of `rules`. */
struct weir_rules {
	__u32 count;
	struct weir_rule list[WEIR_MAX_RULES];
};

/* A worker's sign of life, alone in its cache line. Element of `beats`. */
struct weir_beat {
	/* CLOCK_MONOTONIC; 0: never. */
	__u64 at_ns;
	__u64 unused[7];
};

/* The one element of `settings`, written through shared memory. */
struct weir_settings {
	/* Age of a beat past which its worker gets no more frames. */
	__u64 beat_limit_ns;
	__u64 front_mix;
	/* Buckets of `fronts`, a power of two, less 1. */
	__u32 front_mask;
	/* Index of the interface with each port number; 0: none. */
	__u32 interfaces[WEIR_MAX_PORTS];
};

#endif
