#!/bin/bash
# Prints a command, a word a line, that starts a QEMU with the Intel 82576 (8.0 and newer): this machine's own, or else Debian
# trixie's with its libraries, unpacked beside the build's own files.
set -euo pipefail

if qemu-system-x86_64 -device help 2>/dev/null | grep -q '^name "igb"'; then
    echo qemu-system-x86_64
    exit
fi
source "$(dirname "$0")/packages.sh"
home=$base/qemu
if [ ! -e "$home/usr" ]; then
    learn_packages
    work=$(mktemp -d "$base/unpack.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # As on a machine where nothing is installed: with everything that it needs.
    touch "$work/status"
    mkdir -p "$work/archives/partial" "$home"
    apt-get "${apt[@]}" -o "Dir::State::status=$work/status" -o "Dir::Cache::archives=$work/archives" install -q -y \
        --no-install-recommends --download-only qemu-system-x86 >&2
    for archive in "$work"/archives/*.deb; do
        dpkg-deb -x "$archive" "$work/tree"
    done
    mv "$work/tree/usr" "$home/usr"
fi
libraries=$home/usr/lib/x86_64-linux-gnu
printf '%s\n' env "QEMU_MODULE_DIR=$libraries/qemu" "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" \
    "$home/usr/bin/qemu-system-x86_64" -L "$home/usr/share/qemu" -L "$home/usr/share/seabios"
