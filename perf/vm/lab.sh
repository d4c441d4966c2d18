#!/bin/bash
# The lab on the four cards of a guest, in the guest (perf/vm/run.sh --nics): generator and sink have the outer ones, the
# device the two in between. The arguments are those of `weir-lab run`.
set -euo pipefail

card() {
    local address
    for address in /sys/class/net/*/address; do
        if [ "$(<"$address")" = "02:77:65:69:72:0$1" ]; then
            basename "$(dirname "$address")"
            return
        fi
    done
    echo "lab.sh: there is no network card 02:77:65:69:72:0$1; perf/vm/run.sh --nics has it" >&2
    exit 1
}

cards=()
for number in 0 1 2 3; do
    name=$(card "$number")
    # Nothing but the lab sends.
    ip link set "$name" addrgenmode none up
    cards+=("$name")
done
# What generator and sink cost is measured with nothing between them, and has to be the same with a device. So the sink's card
# is asked for frames by the clock, not whenever one comes; and both use copy mode, for with zero-copy the driver of virtio-net
# polls for as long as frames wait to be sent.
echo 10 >"/sys/class/net/${cards[3]}/napi_defer_hard_irqs"
echo 2000000 >"/sys/class/net/${cards[3]}/gro_flush_timeout"
exec target/release/weir-lab run --generator-interface "${cards[0]}" --device-in "${cards[1]}" \
    --device-out "${cards[2]}" --sink-interface "${cards[3]}" --copy "$@"
