# For the scripts beside it, to be sourced: Debian packages of a newer release than the machine's own, unpacked beside the build's own
# files. The machine's package sources stay as they are: those for the guest live in a folder of their own.

base=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/target/vm
apt=(-o "Dir::Etc::sourcelist=$base/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$base/apt/lists" -o "Dir::Cache=$base/apt/cache" -o APT::Sandbox::User=root)

# Learns which packages there are, from wherever this machine has its Debian packages.
learn_packages() {
    mkdir -p "$base/apt/lists/partial" "$base/apt/cache/archives/partial"
    local mirror key suite
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/$' | head -n 1)
    [ -n "$mirror" ] || { echo "$(basename "$0"): this machine has no Debian package source" >&2; exit 1; }
    key=/usr/share/keyrings/debian-archive-keyring.gpg
    for suite in trixie trixie-backports; do
        echo "deb [signed-by=$key] $mirror $suite main"
    done >"$base/apt/sources.list"
    apt-get "${apt[@]}" update >&2
}
