#!/usr/bin/env bash
# Checks the licences, duplicates, sources and known faults of the dependencies of the workspace and of those beside it.
set -euo pipefail
cd "$(dirname "$0")/.."

manifests=(Cargo.toml)
for beside in perf/generator dataplane/fuzz; do
    [ ! -e "$beside/Cargo.toml" ] || manifests+=("$beside/Cargo.toml")
done

for manifest in "${manifests[@]}"; do
    echo "cargo deny: $manifest"
    cargo deny --log-level error --config deny.toml --manifest-path "$manifest" check bans licenses sources
done

# The advisories come from a database on the network: that it cannot be had says nothing about the dependencies.
if cargo deny --log-level error fetch db >/dev/null 2>&1; then
    for manifest in "${manifests[@]}"; do
        cargo deny --log-level error --config deny.toml --manifest-path "$manifest" check advisories
    done
else
    echo "advisories: did not run, database unreachable"
fi
