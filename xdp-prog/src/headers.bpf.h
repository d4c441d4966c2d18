/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The headers of a packet, and their reading: where in the frame they are, and whether they are whole. */
#ifndef WEIR_HEADERS_H
#define WEIR_HEADERS_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "weir_abi.h"

struct vlan_tag {
	__be16 tci;
	__be16 proto;
};

/* ARP for IPv4 over Ethernet, RFC 826. */
struct arp_ipv4 {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__u8 sender[4];
	__u8 target_mac[ETH_ALEN];
	__u8 target[4];
} __attribute__((packed));

#define ARP_ETHERNET 1
#define ARP_REQUEST 1

/* The first bytes of an IPv6 extension header, RFC 8200. `word` is what the fragment header has there. */
struct extension {
	__u8 next;
	__u8 length;
	__be16 word;
};

/* The last two fixed bytes of a routing header, which lie where `extension.word` does. */
#define SEGMENTS_LEFT bpf_htons(0x00ff)

/* The length of the fragment header, and the unit of the others. */
#define EXTENSION_UNIT 8

#define IPV4_FRAGMENT_OFFSET bpf_htons(0x1fff)
#define IPV4_MORE_FRAGMENTS bpf_htons(0x2000)
#define IPV6_FRAGMENT_OFFSET bpf_htons(0xfff8)
#define IPV6_MORE_FRAGMENTS bpf_htons(0x0001)

/* ICMP (RFC 792) and ICMPv6 (RFC 4443): what all messages begin with. */
struct icmp {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 word;
};

/* <linux/icmp.h> wants libc's headers for the build machine's own word size. */
enum icmp_type {
	ICMP_DEST_UNREACH = 3,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETERPROB = 12,
};

enum icmpv6_type {
	ICMPV6_DEST_UNREACH = 1,
	ICMPV6_PKT_TOOBIG = 2,
	ICMPV6_TIME_EXCEED = 3,
	ICMPV6_PARAMPROB = 4,
	ICMPV6_ECHO_REQUEST = 128,
	ICMPV6_NEIGHBOUR_SOLICITATION = 135,
};

/* Which part of a packet a frame carries. */
enum part {
	WHOLE,
	FIRST_FRAGMENT,
	LATER_FRAGMENT,
};

/* How far the reading of a header got. */
enum reading {
	READ,
	/* Readable, but of a kind that no rule is about. */
	FOREIGN,
	/* Cut short or contradictory. */
	BROKEN,
};

/* No header begins past this byte of a frame. */
#define MAX_OFFSET 4095

/* An IP header, and where in the frame its payload begins. */
struct ip {
	struct weir_address src;
	struct weir_address dst;
	__u32 payload;
	/* Payload bytes by the header's own account, extension headers excluded. */
	__u32 length;
	/* IPPROTO_*. */
	__u8 proto;
	/* enum part. */
	__u8 part;
};

/* `size` bytes of the frame from `at` on; NULL where it has not so many. */
static __always_inline void *bytes_at(struct xdp_md *ctx, __u32 at, __u32 size)
{
	void *end = (void *)(long)ctx->data_end;
	void *bytes = (void *)(long)ctx->data;

	if (at > MAX_OFFSET)
		return NULL;
	bytes += at;
	return bytes + size > end ? NULL : bytes;
}

static __always_inline enum reading read_ipv4(struct xdp_md *ctx, __u32 at, struct ip *ip)
{
	struct iphdr *header = bytes_at(ctx, at, sizeof(*header));

	if (!header)
		return BROKEN;
	__u32 header_length = header->ihl * 4;
	__u32 total_length = bpf_ntohs(header->tot_len);
	if (header->version != 4 || header_length < sizeof(*header) || total_length < header_length)
		return BROKEN;

	ip->src.version = ip->dst.version = 4;
	ip->src.bits[0] = header->saddr;
	ip->dst.bits[0] = header->daddr;
	ip->proto = header->protocol;
	if (header->frag_off & IPV4_FRAGMENT_OFFSET)
		ip->part = LATER_FRAGMENT;
	else if (header->frag_off & IPV4_MORE_FRAGMENTS)
		ip->part = FIRST_FRAGMENT;
	ip->payload = at + header_length;
	ip->length = total_length - header_length;
	return READ;
}

static __always_inline int is_extension(__u8 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING || proto == IPPROTO_FRAGMENT ||
	       proto == IPPROTO_AH || proto == IPPROTO_DSTOPTS;
}

static __always_inline __u32 extension_length(__u8 proto, const struct extension *extension)
{
	switch (proto) {
	case IPPROTO_FRAGMENT:
		return EXTENSION_UNIT;
	case IPPROTO_AH:
		return (extension->length + 2) * 4; /* RFC 4302, section 2.2 */
	default:
		return (extension->length + 1) * EXTENSION_UNIT;
	}
}

static __always_inline enum reading read_ipv6(struct xdp_md *ctx, __u32 at, struct ip *ip)
{
	struct ipv6hdr *header = bytes_at(ctx, at, sizeof(*header));

	if (!header || header->version != 6)
		return BROKEN;
	ip->src.version = ip->dst.version = 6;
	__builtin_memcpy(ip->src.bits, &header->saddr, sizeof(ip->src.bits));
	__builtin_memcpy(ip->dst.bits, &header->daddr, sizeof(ip->dst.bits));
	ip->payload = at + sizeof(*header);
	ip->length = bpf_ntohs(header->payload_len);
	ip->proto = header->nexthdr;

	for (int i = 0; i <= WEIR_MAX_EXTENSIONS; i++) {
		__u8 proto = ip->proto;

		if (!is_extension(proto) || ip->part == LATER_FRAGMENT)
			return READ;
		struct extension *extension = bytes_at(ctx, ip->payload, sizeof(*extension));
		if (!extension)
			return BROKEN;
		__u32 length = extension_length(proto, extension);
		if (length > ip->length)
			return BROKEN;
		/* On its way to an address that the header does not show yet. */
		if (proto == IPPROTO_ROUTING && (extension->word & SEGMENTS_LEFT))
			return FOREIGN;
		if (proto == IPPROTO_FRAGMENT) {
			if (extension->word & IPV6_FRAGMENT_OFFSET)
				ip->part = LATER_FRAGMENT;
			else if (extension->word & IPV6_MORE_FRAGMENTS)
				ip->part = FIRST_FRAGMENT;
		}
		ip->proto = extension->next;
		ip->payload += length;
		ip->length -= length;
	}
	return FOREIGN;
}

/*
 * Reads the IP header that begins at byte `at`. A global function, so that the verifier walks it once and not for
 * every way that leads here.
 */
__noinline enum reading read_ip(struct xdp_md *ctx, __u32 at, __u32 version, struct ip *ip)
{
	if (!ip)
		return BROKEN;
	__builtin_memset(ip, 0, sizeof(*ip));
	return version == 4 ? read_ipv4(ctx, at, ip) : read_ipv6(ctx, at, ip);
}

/* What of TCP, UDP and SCTP the rules need: all three begin with it. */
struct transport_ports {
	__be16 src;
	__be16 dst;
};

/* The protocol as the maps have it, WEIR_PROTOS for any other. */
static __always_inline __u32 transport_of(__u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return WEIR_TCP;
	case IPPROTO_UDP:
		return WEIR_UDP;
	case IPPROTO_SCTP:
		return WEIR_SCTP;
	default:
		return WEIR_PROTOS;
	}
}

#endif
