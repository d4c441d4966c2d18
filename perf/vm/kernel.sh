#!/bin/bash
# Unpacks a Debian kernel package beside the build's own files, for perf/vm/run.sh. Prints the folder that holds it.
# The machine's own package sources stay as they are: those for the kernel live in a folder of their own.
#
#     perf/vm/kernel.sh [VERSION]      a version's beginning, such as 6.18 (the default) or 6.12
set -euo pipefail

version=${1:-6.18}
base=$(cd "$(dirname "$0")/../.." && pwd)/target/vm
home=$base/$version
if [ -e "$home/vmlinuz" ]; then
    echo "$home"
    exit
fi
mkdir -p "$base/apt/lists/partial" "$base/apt/cache/archives/partial" "$home"

# Wherever this machine has its Debian packages from.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/$' | head -n 1)
[ -n "$mirror" ] || { echo "kernel.sh: this machine has no Debian package source" >&2; exit 1; }
key=/usr/share/keyrings/debian-archive-keyring.gpg
for suite in trixie trixie-backports; do
    echo "deb [signed-by=$key] $mirror $suite main"
done >"$base/apt/sources.list"
apt=(-o "Dir::Etc::sourcelist=$base/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$base/apt/lists" -o "Dir::Cache=$base/apt/cache" -o APT::Sandbox::User=root)
apt-get "${apt[@]}" update >&2

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
