#!/bin/bash
# Unpacks a Debian kernel package beside the build's own files, for perf/vm/run.sh. Prints the folder that holds it.
#
#     perf/vm/kernel.sh [VERSION]      a version's beginning, such as 6.18 (the default) or 6.12
set -euo pipefail

version=${1:-6.18}
source "$(dirname "$0")/packages.sh"
home=$base/$version
if [ -e "$home/vmlinuz" ]; then
    echo "$home"
    exit
fi
mkdir -p "$home"
learn_packages
package=$(apt-cache "${apt[@]}" search --names-only "^linux-image-${version//./\\.}[.0-9]*\+deb13-amd64\$" |
    cut -d ' ' -f 1 | sort -V | tail -n 1)
[ -n "$package" ] || { echo "kernel.sh: no package of Linux $version" >&2; exit 1; }
work=$(mktemp -d "$base/unpack.XXXXXX")
trap 'rm -rf "$work"' EXIT
modules=${package/image/modules}
(cd "$work" && apt-get "${apt[@]}" download "$package" >&2 &&
    if apt-cache "${apt[@]}" show "$modules" >/dev/null 2>&1; then apt-get "${apt[@]}" download "$modules" >&2; fi)
for archive in "$work"/*.deb; do
    dpkg-deb -x "$archive" "$work/tree"
done
[ -d "$work/tree/lib" ] || mv "$work/tree/usr/lib" "$work/tree/lib"
release=$(basename "$work"/tree/lib/modules/*)
/sbin/depmod -b "$work/tree" "$release"
rm -rf "$home/lib"
mv "$work/tree/lib" "$home/lib"
echo "$release" >"$home/release"
mv "$work"/tree/boot/vmlinuz-* "$home/vmlinuz"
echo "$home"
