// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Frames back (XDP_TX), or out by the interface OUT (XDP_REDIRECT). */
#include <linux/bpf.h>

#define SECTION(name) __attribute__((section(name), used))

char LICENSE[] SECTION("license") = "Dual BSD/GPL";

#ifdef OUT
static long (*const redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
#endif

SECTION("xdp")
int pass_on(struct xdp_md *frame)
{
#ifdef OUT
	return redirect(OUT, 0);
#else
	return XDP_TX;
#endif
}
