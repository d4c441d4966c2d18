// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Is this frame Weir's? What is goes to the AF_XDP socket of the queue that it arrived on, everything else to the
 * kernel, untouched. The program keeps no state and changes no frame; the engine judges what it is given again, so
 * a doubt here costs at most a detour.
 *
 * Its maps are in maps.bpf.h, the reading of headers is in headers.bpf.h; below are rules, hand-over, entry.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "headers.bpf.h"
#include "maps.bpf.h"
#include "weir_abi.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Named so that the enums reach BTF and with it the Rust side; read by nobody. */
const enum weir_limit abi_limit = WEIR_MAX_PORTS;
const enum weir_counter abi_counter = WEIR_NOT_OURS;
const enum weir_flag abi_flag = WEIR_NODE;
const enum weir_proto abi_proto = WEIR_TCP;

/* ---- rules ---- */

static __always_inline struct weir_settings *the_settings(void)
{
	__u32 only = 0;

	return bpf_map_lookup_elem(&settings, &only);
}

/* Whether `fronts` has the service. */
static __always_inline int is_front(const struct weir_address *addr, __u32 port, __u32 proto)
{
	__u64 place = (__u64)bpf_ntohl(addr->bits[0]) << 32 | port << 16 | (proto + 1);
	struct weir_settings *set = the_settings();

	if (!set || addr->version != 4)
		return 0;
	__u32 index = (__u32)(place * *(volatile __u64 *)&set->front_mix >> 32) & *(volatile __u32 *)&set->front_mask;
	struct weir_bucket *bucket = bpf_map_lookup_elem(&fronts, &index);
	if (!bucket)
		return 0;
	for (int i = 0; i < WEIR_BUCKET; i++) {
		if (*(volatile __u64 *)&bucket->places[i] == place)
			return 1;
	}
	return 0;
}

static __always_inline int in_set(void *set, const struct weir_address *addr, __be16 port, __u32 proto)
{
	struct weir_endpoint endpoint = { .addr = *addr, .port = port, .proto = proto };

	return bpf_map_lookup_elem(set, &endpoint) != NULL;
}

static __always_inline int is_node_port(__u32 port, __u32 proto)
{
	__u32 word = proto * WEIR_NODE_PORT_WORDS + port / 64;
	__u64 *bits = bpf_map_lookup_elem(&node_ports, &word);

	return bits && (*bits >> (port % 64) & 1);
}

/* By which rule packets to this address and port are Weir's. */
static __always_inline enum weir_counter front_of(const struct weir_address *addr, __be16 port, __u32 proto)
{
	__u32 number = bpf_ntohs(port);

	if (is_front(addr, number, proto))
		return WEIR_VIP;
	struct weir_use *use = bpf_map_lookup_elem(&addresses, addr);
	if (!use)
		return WEIR_NOT_OURS;
	if (use->vip_every >> proto & 1)
		return WEIR_VIP;
	if ((use->vip_protos >> proto & 1) && in_set(&vips, addr, port, proto))
		return WEIR_VIP;
	if ((use->flags & WEIR_NODE) && is_node_port(number, proto))
		return WEIR_NODE_PORT;
	if ((use->flags & WEIR_TRANSLATED) && number >= use->snat_low && number <= use->snat_high)
		return WEIR_SNAT;
	return WEIR_NOT_OURS;
}

/* Whether a `nat` backend has this address and port. */
static __always_inline int is_backend(const struct weir_address *addr, __be16 port, __u32 proto)
{
	struct weir_use *use = bpf_map_lookup_elem(&addresses, addr);

	if (!use || !(use->backend_protos >> proto & 1))
		return 0;
	return (use->backend_every >> proto & 1) || in_set(&backends, addr, port, proto);
}

/* Whether an address lies in `bits` as far as `mask` says. */
static __always_inline int lies_in(const __be32 *addr, const __be32 *bits, const __be32 *mask)
{
	__be32 beside = 0;

	for (int i = 0; i < 4; i++)
		beside |= (addr[i] ^ bits[i]) & mask[i];
	return !beside;
}

/* The port number of the interface that the frame came in by, WEIR_MAX_PORTS if it has none. There are few. */
static __always_inline __u32 port_of(struct xdp_md *ctx, const struct weir_settings *set)
{
	__u32 ifindex = ctx->ingress_ifindex;

	for (__u32 port = 0; port < WEIR_MAX_PORTS; port++) {
		if (*(volatile __u32 *)&set->interfaces[port] == ifindex)
			return port;
	}
	return WEIR_MAX_PORTS;
}

/* What a packet is asked about by. */
enum asked {
	/* The ports, and the interface that it came in by. */
	BY_PORTS,
	/* Neither: it is a later fragment. */
	BY_ADDRESSES,
	/* The ports, but an ICMP error quotes it, turned round, and comes in anywhere. */
	BY_QUOTE,
};

/*
 * Whether a rule gives the packet the mark of a service. `ports` are source << 16 | destination. A global function for
 * the reason that read_ip is one.
 */
__noinline int is_marked(struct xdp_md *ctx, struct ip *ip, __u32 ports_of, __u32 proto, enum asked asked)
{
	if (!ip)
		return 0;
	struct weir_prefix key = {
		.length = 32 + (ip->dst.version == 4 ? 32 : 128),
		.version = bpf_htonl(ip->dst.version),
	};
	__builtin_memcpy(key.bits, ip->dst.bits, sizeof(key.bits));
	struct weir_rules *found = bpf_map_lookup_elem(&rules, &key);
	if (!found)
		return 0;

	struct weir_settings *set = the_settings();
	/* A number that no interface has fits the rules about any alone. */
	__u32 number = set ? port_of(ctx, set) : WEIR_MAX_PORTS;
	__u32 sport = ports_of >> 16, dport = ports_of & 0xffff;
	for (__u32 i = 0; i < WEIR_MAX_RULES; i++) {
		struct weir_rule *rule = &found->list[i];

		if (i >= found->count)
			break;
		if (!(rule->protos >> (proto & 7) & 1) || !lies_in(ip->src.bits, rule->src, rule->src_mask))
			continue;
		if (asked == BY_ADDRESSES) {
			if (rule->ours)
				return 1;
			continue;
		}
		if (asked == BY_PORTS && rule->port != WEIR_ANY_PORT && rule->port != number)
			continue;
		if (dport >= rule->dport_low && dport <= rule->dport_high && sport >= rule->sport_low &&
		    sport <= rule->sport_high)
			return rule->ours;
	}
	return 0;
}

static __always_inline enum weir_counter judge_transport(struct xdp_md *ctx, struct ip *ip, __u32 proto)
{
	struct transport_ports *l4 = bytes_at(ctx, ip->payload, sizeof(*l4));

	if (!l4 || ip->length < sizeof(*l4))
		return WEIR_MALFORMED;
	__u32 both = (__u32)bpf_ntohs(l4->src) << 16 | bpf_ntohs(l4->dst);
	enum weir_counter rule = front_of(&ip->dst, l4->dst, proto);
	if (rule == WEIR_NOT_OURS && is_backend(&ip->src, l4->src, proto))
		rule = WEIR_NAT_REPLY;
	if (rule == WEIR_NOT_OURS && is_marked(ctx, ip, both, proto, BY_PORTS))
		rule = WEIR_MARKED;
	return rule != WEIR_NOT_OURS && ip->part == FIRST_FRAGMENT ? WEIR_FRAGMENT : rule;
}

/* A fragment without ports. To an address of the node it is the kernel's, which has traffic of its own there. */
static __always_inline enum weir_counter judge_later_fragment(struct xdp_md *ctx, struct ip *ip)
{
	__u32 proto = transport_of(ip->proto);
	struct weir_use *dst = bpf_map_lookup_elem(&addresses, &ip->dst);
	struct weir_use *src = bpf_map_lookup_elem(&addresses, &ip->src);

	if (dst && (dst->flags & WEIR_NODE))
		return WEIR_NOT_OURS;
	if (ip->proto == IPPROTO_ICMP || ip->proto == IPPROTO_ICMPV6)
		return dst && (dst->flags & WEIR_ANSWERED) ? WEIR_FRAGMENT : WEIR_NOT_OURS;
	if (proto == WEIR_PROTOS)
		return WEIR_NOT_OURS;
	if (dst && ((dst->flags & WEIR_TRANSLATED) || (dst->vip_protos >> proto & 1)))
		return WEIR_FRAGMENT;
	if (src && (src->backend_protos >> proto & 1))
		return WEIR_FRAGMENT;
	return is_marked(ctx, ip, 0, proto, BY_ADDRESSES) ? WEIR_FRAGMENT : WEIR_NOT_OURS;
}

static __always_inline enum weir_counter judge_owned(const struct weir_address *addr)
{
	struct weir_use *use = bpf_map_lookup_elem(&addresses, addr);

	return use && (use->flags & WEIR_ANSWERED) ? WEIR_OWNED : WEIR_NOT_OURS;
}

/* Whether the packet goes to a backend through a tunnel: IP in IP, GRE, or UDP to a tunnel's port. */
static __always_inline int is_tunnelled(struct xdp_md *ctx, const struct ip *ip)
{
	struct weir_use *use = bpf_map_lookup_elem(&addresses, &ip->dst);

	if (!use || !(use->flags & WEIR_TUNNEL))
		return 0;
	switch (ip->proto) {
	case IPPROTO_IPIP:
	case IPPROTO_IPV6:
	case IPPROTO_GRE:
		return 1;
	case IPPROTO_UDP: {
		struct transport_ports *l4 = bytes_at(ctx, ip->payload, sizeof(*l4));
		__u16 port = l4 ? bpf_ntohs(l4->dst) : 0;

		return port && port >= use->tunnel_low && port <= use->tunnel_high;
	}
	default:
		return 0;
	}
}

/* The other way. */
static __always_inline void turn_round(struct ip *ip)
{
	struct weir_address src = ip->src;

	ip->src = ip->dst;
	ip->dst = src;
}

/*
 * An ICMP error by the packet that it quotes. Routers before the client quote what Weir sent there, from a VIP or
 * NodePort; those before a backend quote what Weir sent to it: `fullnat` from a SNAT address, `nat` to the backend,
 * a tunnel's outer packet to it.
 */
static __always_inline enum weir_counter judge_error(struct xdp_md *ctx, __u32 quote, __u32 version)
{
	struct ip quoted = {};
	enum reading reading = read_ip(ctx, quote, version, &quoted);

	if (reading != READ)
		return reading == BROKEN ? WEIR_MALFORMED : WEIR_NOT_OURS;
	if (quoted.part == LATER_FRAGMENT)
		return WEIR_NOT_OURS;
	if (is_tunnelled(ctx, &quoted))
		return WEIR_ICMP_ERROR;
	__u32 proto = transport_of(quoted.proto);
	if (proto == WEIR_PROTOS)
		return WEIR_NOT_OURS;
	struct transport_ports *l4 = bytes_at(ctx, quoted.payload, sizeof(*l4));
	if (!l4)
		return WEIR_MALFORMED;
	if (front_of(&quoted.src, l4->src, proto) != WEIR_NOT_OURS || is_backend(&quoted.dst, l4->dst, proto))
		return WEIR_ICMP_ERROR;
	__u32 turned = (__u32)bpf_ntohs(l4->dst) << 16 | bpf_ntohs(l4->src);
	turn_round(&quoted);
	return is_marked(ctx, &quoted, turned, proto, BY_QUOTE) ? WEIR_ICMP_ERROR : WEIR_NOT_OURS;
}

static __always_inline enum weir_counter judge_icmp(struct xdp_md *ctx, const struct ip *ip)
{
	struct icmp *icmp = bytes_at(ctx, ip->payload, sizeof(*icmp));

	if (!icmp || ip->length < sizeof(*icmp))
		return WEIR_MALFORMED;
	switch (icmp->type) {
	case ICMP_ECHO: {
		enum weir_counter rule = judge_owned(&ip->dst);
		return rule == WEIR_OWNED && ip->part == FIRST_FRAGMENT ? WEIR_FRAGMENT : rule;
	}
	case ICMP_DEST_UNREACH:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		return judge_error(ctx, ip->payload + sizeof(*icmp), 4);
	default:
		return WEIR_NOT_OURS;
	}
}

static __always_inline enum weir_counter judge_solicitation(struct xdp_md *ctx, __u32 at)
{
	struct weir_address target = { .version = 6 };
	void *bytes = bytes_at(ctx, at, sizeof(target.bits));

	if (!bytes)
		return WEIR_MALFORMED;
	__builtin_memcpy(target.bits, bytes, sizeof(target.bits));
	return judge_owned(&target);
}

static __always_inline enum weir_counter judge_icmpv6(struct xdp_md *ctx, const struct ip *ip)
{
	struct icmp *icmp = bytes_at(ctx, ip->payload, sizeof(*icmp));

	if (!icmp || ip->length < sizeof(*icmp))
		return WEIR_MALFORMED;
	switch (icmp->type) {
	case ICMPV6_ECHO_REQUEST: {
		enum weir_counter rule = judge_owned(&ip->dst);
		return rule == WEIR_OWNED && ip->part == FIRST_FRAGMENT ? WEIR_FRAGMENT : rule;
	}
	case ICMPV6_NEIGHBOUR_SOLICITATION:
		return judge_solicitation(ctx, ip->payload + sizeof(*icmp));
	case ICMPV6_DEST_UNREACH:
	case ICMPV6_PKT_TOOBIG:
	case ICMPV6_TIME_EXCEED:
	case ICMPV6_PARAMPROB:
		return judge_error(ctx, ip->payload + sizeof(*icmp), 6);
	default:
		return WEIR_NOT_OURS;
	}
}

static __always_inline enum weir_counter judge_ip(struct xdp_md *ctx, __u32 at, __u32 version)
{
	struct ip ip = {};
	/* What most frames are is read without a call. */
	enum reading reading = version == 4 ? read_ipv4(ctx, at, &ip) : read_ip(ctx, at, version, &ip);

	if (reading != READ)
		return reading == BROKEN ? WEIR_MALFORMED : WEIR_NOT_OURS;
	if (ip.part == LATER_FRAGMENT)
		return judge_later_fragment(ctx, &ip);
	__u32 proto = transport_of(ip.proto);
	if (proto != WEIR_PROTOS)
		return judge_transport(ctx, &ip, proto);
	if (version == 4 && ip.proto == IPPROTO_ICMP)
		return judge_icmp(ctx, &ip);
	if (version == 6 && ip.proto == IPPROTO_ICMPV6)
		return judge_icmpv6(ctx, &ip);
	return WEIR_NOT_OURS;
}

static __always_inline enum weir_counter judge_arp(struct xdp_md *ctx, __u32 at)
{
	struct arp_ipv4 *arp = bytes_at(ctx, at, sizeof(*arp));
	struct weir_address target = { .version = 4 };

	if (!arp)
		return WEIR_MALFORMED;
	if (arp->hardware != bpf_htons(ARP_ETHERNET) || arp->protocol != bpf_htons(ETH_P_IP) ||
	    arp->hardware_length != ETH_ALEN || arp->protocol_length != sizeof(arp->target) ||
	    arp->operation != bpf_htons(ARP_REQUEST))
		return WEIR_NOT_OURS;
	__builtin_memcpy(target.bits, arp->target, sizeof(arp->target));
	return judge_owned(&target);
}

/* By which rule the frame is Weir's; WEIR_NOT_OURS or WEIR_MALFORMED if by none. */
static __always_inline enum weir_counter judge(struct xdp_md *ctx)
{
	struct ethhdr *eth = bytes_at(ctx, 0, sizeof(*eth));
	__u32 at = sizeof(*eth);

	if (!eth)
		return WEIR_MALFORMED;
	__be16 proto = eth->h_proto;
	for (int i = 0; i < 2 && (proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD)); i++) {
		struct vlan_tag *tag = bytes_at(ctx, at, sizeof(*tag));

		if (!tag)
			return WEIR_MALFORMED;
		proto = tag->proto;
		at += sizeof(*tag);
	}
	switch (proto) {
	case bpf_htons(ETH_P_IP):
		return judge_ip(ctx, at, 4);
	case bpf_htons(ETH_P_IPV6):
		return judge_ip(ctx, at, 6);
	case bpf_htons(ETH_P_ARP):
		return judge_arp(ctx, at);
	default:
		return WEIR_NOT_OURS;
	}
}

/* ---- hand-over ---- */

/* How a worker does, by its beat. */
enum life {
	ALIVE,
	/* Its last beat is too old. */
	STALE,
	/* It never beat, or stopped: there is none. */
	NONE,
};

/* The coarse clock is behind by this at most: two ticks of the slowest kernel's timer, HZ=100. */
#define COARSE_NS 20000000

/*
 * A beat newer than the clock read here is alive: another core wrote it meanwhile. The exact clock is read only where
 * the coarse one, which is a load from memory, does not settle it.
 */
static __always_inline enum life life_of(__u32 worker, const struct weir_settings *set)
{
	struct weir_beat *beat = bpf_map_lookup_elem(&beats, &worker);

	if (!beat)
		return NONE;
	__u64 at_ns = *(volatile __u64 *)&beat->at_ns;
	__s64 limit_ns = *(volatile __u64 *)&set->beat_limit_ns;
	if (at_ns == 0)
		return NONE;
	if ((__s64)(bpf_ktime_get_coarse_ns() + COARSE_NS - at_ns) <= limit_ns)
		return ALIVE;
	return (__s64)(bpf_ktime_get_ns() - at_ns) <= limit_ns ? ALIVE : STALE;
}

/* Gives the frame to the socket of its queue. Sets `counter` anew when that cannot be. */
static __always_inline int hand_over(struct xdp_md *ctx, enum weir_counter *counter)
{
	__u32 queue = ctx->rx_queue_index;
	struct weir_settings *set = the_settings();
	__u32 port = set ? port_of(ctx, set) : WEIR_MAX_PORTS;

	if (!set || port == WEIR_MAX_PORTS) {
		*counter = WEIR_UNKNOWN_PORT;
		return XDP_PASS;
	}
	enum life life = queue < WEIR_MAX_QUEUES ? life_of(queue, set) : NONE;
	if (life != ALIVE) {
		*counter = life == STALE ? WEIR_STALE_WORKER : WEIR_NO_SOCKET;
		return XDP_PASS;
	}
	int action = bpf_redirect_map(&xsks, port * WEIR_MAX_QUEUES + queue, XDP_PASS);
	if (action != XDP_REDIRECT)
		*counter = WEIR_NO_SOCKET;
	return action;
}

SEC("xdp")
int weir_xdp(struct xdp_md *ctx)
{
	enum weir_counter counter = judge(ctx);
	int action = XDP_PASS;

	if (counter != WEIR_NOT_OURS && counter != WEIR_MALFORMED)
		action = hand_over(ctx, &counter);

	__u32 index = counter;
	__u64 *count = bpf_map_lookup_elem(&counters, &index);
	if (count)
		(*count)++;
	return action;
}
