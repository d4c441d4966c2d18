#!/usr/bin/env bash
# Lays out the image's files: the binary, what it is linked to, certificates, and the places that it writes to.
#
#   deploy/image/rootfs.sh BINARY FOLDER
set -euo pipefail

binary=$1
root=$2

mkdir -p "$root/usr/bin" "$root/etc/weir" "$root/etc/ssl/certs" "$root/run/weir" "$root/tmp"
chmod 1777 "$root/tmp"
install -m 0755 "$binary" "$root/usr/bin/weir"
# Each library under the very path that the loader looks for it, and the loader itself.
ldd "$binary" | grep -o '/[^ ]*' | sort -u | while read -r library; do
    install -D -m 0755 "$(readlink -f "$library")" "$root$library"
done
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
    install -m 0644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
fi
