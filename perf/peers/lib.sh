# What the scripts of peers have in common; README.md has the contract.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

need() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || { echo "$program is not installed"; exit 1; }
    done
}

# Sets a kernel parameter, named by its path below /proc/sys, and notes what it was.
set_parameter() {
    local file=/proc/sys/$1
    [ -e "$file" ] || { echo "this kernel has no parameter $1"; exit 1; }
    printf '%s %s\n' "$1" "$(<"$file")" >>"$LAB_STATE/parameters"
    echo "$2" >"$file"
}

# Sets them back, the last first. One that cannot be set any more keeps none of the others from it.
restore_parameters() {
    [ -e "$LAB_STATE/parameters" ] || return 0
    local name value
    tac "$LAB_STATE/parameters" | while read -r name value; do echo "$value" >"/proc/sys/$name" || true; done
    rm "$LAB_STATE/parameters"
}

# Forwarding as a router does.
forward() {
    set_parameter net/ipv4/ip_forward 1
    set_parameter net/ipv4/conf/all/rp_filter 0
    set_parameter "net/ipv4/conf/$LAB_IN/rp_filter" 0
    set_parameter "net/ipv4/conf/$LAB_OUT/rp_filter" 0
}

# The kernel's connection tracking, with checks of TCP windows off: the sequence numbers of generated segments are marks,
# which fit no window. What has ended or was never answered is forgotten soon, so that the table's limit is not what is measured.
track() {
    set_parameter net/netfilter/nf_conntrack_tcp_be_liberal 1
    set_parameter net/netfilter/nf_conntrack_tcp_timeout_syn_sent 10
    set_parameter net/netfilter/nf_conntrack_tcp_timeout_time_wait 1
    set_parameter net/netfilter/nf_conntrack_tcp_timeout_close 1
}

# An awk library: addresses as numbers and back.
addresses='
function number(text,  part) { split(text, part, "."); return ((part[1] * 256 + part[2]) * 256 + part[3]) * 256 + part[4] }
function dotted(n) { return int(n / 16777216) "." int(n / 65536) % 256 "." int(n / 256) % 256 "." n % 256 }'

# Runs an awk program with what is to be balanced as variables.
generate() {
    awk -v services="$LAB_SERVICES" -v endpoints="$LAB_BACKENDS" -v vip="$LAB_VIP" -v backend="$LAB_BACKEND" \
        -v port="$LAB_PORT" -v target="$LAB_BACKEND_PORT" -v proto="$LAB_PROTOCOL" "$addresses BEGIN { $1 }"
}

# Says what is there already that `teardown` would take away. A script that puts more than parameters has its own.
present() { :; }

# For `present`: the table that scripts here put.
present_table() {
    if nft list tables ip | grep -x "table ip lab" >/dev/null; then echo "nftables has a table ip lab already"; fi
}

# For `present`: an XDP program on an interface.
present_xdp() {
    if ip -d link show dev "$1" | grep "prog/xdp" >/dev/null; then echo "$1 has an XDP program already"; fi
}

# Whether there is IPVS. Its table of connections is made as large as the lab's new flows ask for, where the module is not there yet.
check_ipvs() {
    [ -e /proc/net/ip_vs ] || modprobe -q ip_vs conn_tab_bits=18 2>/dev/null || { echo "this kernel has no IPVS"; exit 1; }
    need ipvsadm awk
}

present_ipvs() {
    [ -z "$(ipvsadm -Sn)" ] || echo "IPVS has services already"
    [ ! -e /sys/class/net/lab-ipvs ] || echo "there is an interface lab-ipvs already"
}

# The services, with round robin and masquerading forwarding.
setup_ipvs() {
    # IPVS takes what is for the machine itself, so every VIP has to be local.
    ip link add lab-ipvs type dummy
    ip link set lab-ipvs up
    generate 'for (s = 0; s < services; s++) print "address add " dotted(number(vip) + s) "/32 dev lab-ipvs"' | ip -batch -
    generate '
        option = proto == "udp" ? "-u" : "-t"
        for (s = 0; s < services; s++) {
            service = dotted(number(vip) + s) ":" port
            printf "-A %s %s -s rr\n", option, service
            for (e = 0; e < endpoints; e++)
                printf "-a %s %s -r %s:%d -m\n", option, service, dotted(number(backend) + s * endpoints + e), target
        }' | ipvsadm -R
}

teardown_ipvs() {
    ipvsadm -C || true
    ip link del lab-ipvs || true
}

# Compiles an XDP program of this directory and attaches it in the driver to an interface.
attach_xdp() {
    local source=$1 interface=$2 object
    shift 2
    object=$LAB_STATE/$(basename "$source" .c).$interface.o
    clang -O2 -g -target bpf "-I/usr/include/$(uname -m)-linux-gnu" "$@" -c "$(dirname "$0")/$source" -o "$object"
    ip link set dev "$interface" xdpdrv obj "$object" sec xdp
}

# Calls what the script defines for its argument. A `setup` that finds something present has not begun, and leaves nothing to
# tear down.
run() {
    local found begun=${LAB_STATE-}/begun
    case ${1-} in
        kind | check) "$1" ;;
        setup)
            found=$(present)
            [ -z "$found" ] || { echo "$found"; exit 1; }
            touch "$begun"
            setup
            ;;
        teardown)
            [ -e "$begun" ] || exit 0
            teardown
            rm "$begun"
            ;;
        *)
            echo "usage: $0 kind|check|setup|teardown" >&2
            exit 2
            ;;
    esac
}
