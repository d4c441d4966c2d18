/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps. The loader sets max_entries of the hashes, whose entries take memory as they come. */
#ifndef WEIR_MAPS_H
#define WEIR_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "weir_abi.h"

/* Services by VIP, port and protocol: a set. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct weir_endpoint);
	__type(value, __u8);
} vips SEC(".maps");

/* Services over IPv4 a second time: what most frames are for is told by one cache line. Where a bucket is full, in `vips` alone. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct weir_bucket);
} fronts SEC(".maps");

/* Backends in `nat` mode by address, port and protocol: a set. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct weir_endpoint);
	__type(value, __u8);
} backends SEC(".maps");

/* Every address that some rule knows. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct weir_address);
	__type(value, struct weir_use);
} addresses SEC(".maps");

/* Rules that give marks, by destination: the longest prefix has all that matter. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, WEIR_MAX_PREFIXES);
	__type(key, struct weir_prefix);
	__type(value, struct weir_rules);
} rules SEC(".maps");

/* NodePorts: WEIR_NODE_PORT_WORDS a protocol. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WEIR_PROTOS * WEIR_NODE_PORT_WORDS);
	__type(key, __u32);
	__type(value, __u64);
} node_ports SEC(".maps");

/* Sockets, by port number * WEIR_MAX_QUEUES + queue. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, WEIR_MAX_PORTS * WEIR_MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

/* Beats by worker, which is the queue; written by the workers through shared memory. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, WEIR_MAX_QUEUES);
	__type(key, __u32);
	__type(value, struct weir_beat);
} beats SEC(".maps");

/* Written by the loader through shared memory. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct weir_settings);
} settings SEC(".maps");

/* Frames by enum weir_counter. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WEIR_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

#endif
