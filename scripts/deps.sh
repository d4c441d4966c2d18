#!/usr/bin/env bash
# Installs what Weir needs and this machine lacks. Quick and silent where all is there.
#
#   scripts/deps.sh [build] [net] [check] [lint] [fuzz] [bench] [vm]     (default: all)
#
# build  the compilers and libraries of the workspace
# net    the servers and clients of the demo and the end-to-end tests
# check  what checks metrics and manifests; tests say where it is missing
# lint   cargo-deny
# fuzz   cargo-fuzz
# bench  what the benches, the traffic generator and the lab's peers need besides
# vm     an emulator, for a guest with another kernel, and what sets up that kernel's IPVS
set -euo pipefail

PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/sbin:/sbin

# group, how to see that it is there (a command, or a file with its path), Debian and Ubuntu package
apt_needs='
build  clang                  clang
build  gcc                    gcc
build  make                   make
build  curl                   curl
build  /etc/ssl/certs         ca-certificates
build  pkg-config             pkg-config
build  /usr/include/stdlib.h  libc6-dev
build  /usr/include/libelf.h  libelf-dev
build  /usr/include/zlib.h    zlib1g-dev
net    ip                     iproute2
net    ping                   iputils-ping
net    tcpdump                tcpdump
net    ethtool                ethtool
net    nginx                  nginx
net    dnsmasq                dnsmasq-base
net    iperf3                 iperf3
net    dig                    bind9-dnsutils
net    wrk                    wrk
net    traceroute             traceroute
net    vsftpd                 vsftpd
check  promtool               prometheus
check  kubectl                kubernetes-client
bench  llc                    llvm
bench  m4                     m4
bench  nft                    nftables
bench  valgrind               valgrind
bench  iptables-legacy        iptables
bench  ipvsadm                ipvsadm
vm     qemu-system-x86_64     qemu-system-x86
vm     busybox                busybox-static
vm     cpio                   cpio
vm     depmod                 kmod
vm     xz                     xz-utils
vm     ipvsadm                ipvsadm
'

# group, cargo subcommand's crate
cargo_needs='
lint  cargo-deny
fuzz  cargo-fuzz
'

fail() {
    echo "deps: $*" >&2
    exit 1
}

present() {
    case $1 in
        /*) [ -e "$1" ] ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

# Which of a table's rows belong to the groups asked for and are not there: their last column.
missing() {
    local group probe name
    while read -r group probe name; do
        case " $groups " in *" $group "*) ;; *) continue ;; esac
        present "$probe" || printf '%s ' "${name:-$probe}"
    done <<<"$(grep . <<<"$1")"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        fail "this needs root, and there is no sudo; as root, run: $*"
    fi
}

apt_install() {
    local packages=$1
    command -v apt-get >/dev/null ||
        fail "no apt-get on this system; install what corresponds to these Debian packages: $packages"
    echo "deps: installing $packages"
    as_root apt-get update -q
    # shellcheck disable=SC2086 # a list of words
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages
    case " $packages " in
        *" nginx "*) echo "deps: where systemd runs, Debian's nginx now serves port 80; Weir does not need that:" \
            "sudo systemctl disable --now nginx" ;;
    esac
}

rust_toolchain() {
    local wanted have='' remedy='rustup update stable'
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
    if command -v cargo >/dev/null; then
        have=$(rustc --version | sed 's/^rustc \([0-9.]*\).*/\1/')
    fi
    if [ "$(printf '%s\n' "$wanted" "${have:-0}" | sort -V | head -n 1)" = "$wanted" ]; then
        return
    fi
    command -v rustup >/dev/null ||
        remedy="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy -c rustfmt"
    fail "Weir needs Rust $wanted or newer, this machine has ${have:-none}; one command brings it:
    $remedy"
}

groups=${*:-build net check lint fuzz bench vm}
for group in $groups; do
    case $group in
        build | net | check | lint | fuzz | bench | vm) ;;
        *) fail "unknown group $group; there are build, net, check, lint, fuzz, bench and vm" ;;
    esac
done

packages=$(missing "$apt_needs")
[ -z "$packages" ] || apt_install "$packages"

# After the packages: curl is one of them, and the command that brings Rust needs it.
rust_toolchain

for crate in $(missing "$cargo_needs"); do
    echo "deps: installing $crate"
    cargo install --locked --quiet "$crate"
done
