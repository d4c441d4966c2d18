#!/bin/bash
# Runs a command as root in a virtual machine with a Debian kernel, on this machine's own files: they are seen read-only
# through an overlay in the guest's memory, so nothing that the command writes stays. Ends with the command's status.
#
#     perf/vm/run.sh [--kernel VERSION] [--nics [--rss] | --card NAME] [--instructions] [--keep DIRECTORY] [--kvm]
#                    [--memory MIB] [--timeout SECONDS] [--] COMMAND...
#
# The guest has no network but what the command makes. With --nics it has four virtio-net cards of two queues each, the
# first connected with the second and the third with the fourth, by bridges in a network namespace that ends with the
# guest; the command finds them by their MAC addresses (testbed/src/topology.rs), as WEIR_TEST_NICS tells it to, which has
# their name. --card has others instead: igb (Intel 82576), vmxnet3 or e1000e (Intel 82574, one queue). The guest is
# emulated and starts in some 5 seconds; with --rss (WEIR_TEST_RSS=1) the emulator spreads frames over the queues of
# virtio-net by the key and indirection table that the guest sets, else by flow; --kvm has the processor run it, which not
# every machine that has /dev/kvm can.
#
# With --instructions the guest has one processor, cards of one queue, and a clock that goes by one nanosecond with each
# instruction that the processor executes (while it idles, as the real one does): processor time in the guest is then a
# count of instructions, and what else this machine does has no part in it. What is written to the directory of --keep stays.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
card=virtio-net version=6.18 memory=4096 limit=1800 kvm= nics= instructions= keep= rss= processors=2
while [ $# -gt 0 ]; do
    case $1 in
        --kernel) version=$2; shift 2 ;;
        --kvm) kvm=1; shift ;;
        --nics) nics=4; shift ;;
        --rss) rss=1; shift ;;
        --card) card=$2 nics=4; shift 2 ;;
        --instructions) instructions=1 processors=1; shift ;;
        --keep) keep=$(realpath "$2"); shift 2 ;;
        --memory) memory=$2; shift 2 ;;
        --timeout) limit=$2; shift 2 ;;
        --) shift; break ;;
        *) break ;;
    esac
done
[ $# -gt 0 ] || { echo "run.sh: which command?" >&2; exit 2; }
for program in qemu-system-x86_64 busybox cpio; do
    command -v "$program" >/dev/null || { echo "run.sh: $program is not installed (make deps)" >&2; exit 2; }
done

case $card in
    virtio-net) driver=virtio_net ;;
    igb | vmxnet3 | e1000e) driver=$card ;;
    *) echo "run.sh: no card $card: virtio-net, igb, vmxnet3 or e1000e" >&2; exit 2 ;;
esac
[ "$card" = virtio-net ] || [ -z "$rss$instructions" ] ||
    { echo "run.sh: --rss and --instructions are for virtio-net" >&2; exit 2; }
# QEMU 7.2 has no igb; and where it spreads frames itself (--rss), connections stall for longer than tests wait.
emulator=(qemu-system-x86_64)
[ "$card" = virtio-net ] && [ -z "$rss" ] || mapfile -t emulator < <("$here/emulator.sh")
[ "${#emulator[@]}" -gt 0 ] || exit 1

kernel=$("$here/kernel.sh" "$version")
release=$(cat "$kernel/release")
[ -z "$keep" ] || [ -d "$keep" ] || { echo "run.sh: --keep: no directory $keep" >&2; exit 2; }
[ -z "$kvm" ] || [ -z "$instructions" ] || { echo "run.sh: --instructions counts emulated ones, not those of --kvm" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The first root: just enough to mount the second.
root=$work/initramfs
mkdir -p "$root"/{bin,sbin,dev,proc,sys,new,modules}
cp "$(command -v busybox)" "$root/bin/busybox"
wanted=(virtio_pci 9pnet_virtio 9p overlay)
number=10
for module in "${wanted[@]}"; do
    while read -r action file _; do
        [ "$action" = insmod ] || continue
        name=$(basename "$file")
        ls "$root"/modules/*-"${name%.xz}" >/dev/null 2>&1 && continue
        case $file in
            *.xz) xz -dc "$file" >"$root/modules/$number-${name%.xz}" ;;
            *) cp "$file" "$root/modules/$number-$name" ;;
        esac
        number=$((number + 1))
    done < <(/sbin/modprobe --dirname "$kernel" --set-version "$release" --show-depends "$module" 2>/dev/null)
done
{
    # By bash, whose words `%q` writes.
    echo '#!/bin/bash'
    printf 'cd %q\n' "$PWD"
    [ -z "$nics" ] || echo "modprobe $driver && export WEIR_TEST_NICS=$card ${rss:+WEIR_TEST_RSS=1}"
    if [ -n "$rss" ]; then
        # QEMU 7.2 delivered nothing until the indirection table of a link that is up was set anew. The newer one that --rss takes
        # was not tried without.
        echo "for nic in \$(grep -l '^02:77:65:69:72:' /sys/class/net/*/address | cut -d / -f 5); do"
        echo "    ip link set \$nic up && ethtool -X \$nic weight 1 1"
        echo 'done'
    fi
    printf '%q ' "$@"
    echo
} >"$work/command"
echo "$keep" >"$work/keep"
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in /modules/*; do insmod "$module"; done
share() { mount -t 9p -o "trans=virtio,version=9p2000.L,msize=262144,$3" "$1" "$2"; }
mkdir -p /host /layer /job /kernel
for tag in host job kernel; do share $tag /$tag cache=loose,ro; done
mount -t tmpfs -o size=50% layer /layer
mkdir -p /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /new
for place in proc sys dev; do mount --move "/$place" "/new/$place"; done
mkdir -p /new/lib/modules /new/run /new/dev/pts /new/dev/shm
release=$(uname -r)
mkdir -p "/new/lib/modules/$release"
mount --bind "/kernel/lib/modules/$release" "/new/lib/modules/$release"
mount -t tmpfs run /new/run
mount -t tmpfs shm /new/dev/shm
mount -t devpts devpts /new/dev/pts
mount -t bpf bpf /new/sys/fs/bpf
mount -t cgroup2 cgroup /new/sys/fs/cgroup
cp /job/command /new/run/command
keep=$(cat /job/keep)
[ -z "$keep" ] || share keep "/new$keep" cache=none
ip link set lo up
chroot /new /usr/bin/env -i HOME=/root TERM=dumb WEIR_VM="$release" \
    PATH=/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /bin/bash /run/command
echo "weir-vm: the command ended with $?"
sync
poweroff -f
INIT
# The kernel loads modules from its own root, which stays the first one.
printf '#!/bin/busybox sh\nexec /bin/busybox chroot /new /sbin/modprobe "$@"\n' >"$root/sbin/modprobe"
chmod +x "$root/init" "$root/sbin/modprobe"
(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initramfs.gz"

share() { echo "-virtfs local,path=$1,mount_tag=$2,security_model=none,readonly=$3,multidevs=remap"; }
# The queues of virtio-net are those of its tap, which the kernel fills by flow and not by sender: one for each processor. Other
# cards have queues of their own, and are on buses of their own.
mq=on multi_queue=multi_queue queues=$processors machine=()
[ "$processors" -gt 1 ] || mq=off multi_queue=
[ "$card" = virtio-net ] || queues=1 multi_queue='' machine=(-machine q35)
network=() wires=
for ((nic = 0; nic < ${nics:-0}; nic++)); do
    network+=(-netdev "tap,id=wire$nic,ifname=tap$nic,script=no,downscript=no,queues=$queues,vhost=off")
    device="netdev=wire$nic,mac=02:77:65:69:72:0$nic,romfile="
    if [ "$card" = virtio-net ]; then
        device="virtio-net-pci,$device,mq=$mq${rss:+,rss=on,hash=on},vectors=10,disable-legacy=on,iommu_platform=on"
    else
        network+=(-device "pcie-root-port,id=port$nic,chassis=$nic")
        device="$card,$device,bus=port$nic"
    fi
    network+=(-device "$device")
    bridge=bridge$((nic / 2))
    [ $((nic % 2)) = 1 ] || wires+="ip link add $bridge type bridge mcast_snooping 0 && ip link set $bridge up && "
    wires+="ip tuntap add tap$nic mode tap $multi_queue vnet_hdr && "
    # Room for all that a generator has under way.
    wires+="ip link set tap$nic txqueuelen 4096 master $bridge up && "
done
# shellcheck disable=SC2046
acceleration=(-accel tcg,thread=multi -cpu max)
[ -z "$kvm" ] || acceleration=(-accel kvm -cpu max)
[ -z "$instructions" ] || acceleration=(-accel tcg,thread=single -icount shift=0
    -cpu "max,model-id=QEMU TCG: an instruction a nanosecond")
[ -z "$keep" ] || keep=$(share "$keep" keep off)
around=()
[ -z "$nics" ] || around=(unshare --net sh -c "$wires"'exec "$@"' sh)
"${around[@]}" timeout --kill-after=10 "$limit" "${emulator[@]}" "${machine[@]}" "${acceleration[@]}" -smp "$processors" -m "$memory" \
    -nodefaults -no-user-config -nographic -serial stdio -no-reboot \
    -kernel "$kernel/vmlinuz" -initrd "$work/initramfs.gz" \
    -append "console=ttyS0 quiet panic=-1 loglevel=3 mitigations=off" \
    "${network[@]}" $(share / host on) $(share "$work" job on) $(share "$kernel" kernel on) $keep </dev/null | tee "$work/log"
status=$(tr -d '\r' <"$work/log" | sed -n 's/^.*weir-vm: the command ended with \([0-9]*\)$/\1/p' | tail -n 1)
[ -n "$status" ] || { echo "run.sh: the guest ended without a status" >&2; exit 1; }
exit "$status"
