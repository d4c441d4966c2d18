# make demo    real traffic through Weir, in namespaces of this machine
# make test    every test; what needs namespaces runs as root
# make test-vm tunnels, SCTP, bonds, kernel IPVS beside a replay, network cards of four drivers: in a guest that has them
# make lint    formatting, lints, documentation, dependencies
# make bench   the engine's cost, what changes cost, iperf3 beside a bare forwarder, and the lab in its short form
# make lab     Weir beside its peers: CPU a packet, throughput, connections, latency, scaling; says how long it takes
# make lab-vm  the same beside kernel IPVS, on virtio-net in zero-copy mode: in a guest, in instructions
# make deps    installs what all of these need; each of them asks for its own part first

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH):/usr/sbin:/sbin

# Workspaces of their own beside the main one.
BESIDE := $(wildcard perf/generator/Cargo.toml dataplane/fuzz/Cargo.toml)
FUZZ_SECONDS ?= 60

# Namespaces and AF_XDP are root's. An ordinary user builds, and sudo runs.
ifneq ($(shell id -u),0)
SUDO := $(if $(shell command -v sudo),sudo -E)
RUNNER := $(if $(SUDO),--config 'target."cfg(unix)".runner=["sudo","-E"]')
endif

.PHONY: help
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

.PHONY: deps
deps:
	@scripts/deps.sh

.PHONY: deps-%
deps-%:
	@scripts/deps.sh $(subst +, ,$*)

.PHONY: demo
demo: deps-build+net
	cargo build --release --bin weir
	$(SUDO) target/release/weir demo $(DEMO_ARGS)

# The lab's tests run the generator.
.PHONY: test
test: deps-build+net+check+bench
	cargo build --release --manifest-path perf/generator/Cargo.toml
	cargo $(RUNNER) test --workspace --no-fail-fast
	cargo $(RUNNER) test --manifest-path perf/generator/Cargo.toml

# End-to-end tests that pass on the guest's network cards: what tells most of the cards, and the rest.
VM_NIC_TESTS ?= access:: answers:: flood:: icmp:: kernel:: neighbours:: queues:: reach:: reload:: sctp:: show:: traffic::
VM_NIC_MORE ?= client_address:: datagrams:: ftp:: kubernetes::policies metrics:: modes:: start:: tuning::

# The guest is emulated: an optimized build, and one test at a time. First what needs no network cards, then what is tried on
# virtio-net in zero-copy mode; then the tests of cards alone, with an emulator that spreads frames by the guest's key,
# where the kernel has only copy mode for them, and with cards of other drivers; last the rest on virtio-net.
.PHONY: test-vm
test-vm: deps-build+net+vm
	cargo test --profile guest --test e2e --no-run
	binary=$$(cargo test --profile guest --test e2e --no-run --message-format=json | \
		sed -n 's/.*"executable":"\([^"]*\/e2e-[^"]*\)".*/\1/p') && \
	tests() { perf/vm/run.sh --timeout 3600 "$${@:2}" -- $$binary --test-threads=1 --nocapture $$1; } && \
	tests "$(or $(VM_TESTS),modes sctp doctor ipvs::)" && \
	tests "$(VM_NIC_TESTS)" --nics && \
	tests nics --nics --rss && \
	tests nics --nics --kernel 6.12 && \
	tests nics --card igb && \
	tests nics --card vmxnet3 && \
	tests nics --card e1000e && \
	tests "$(VM_NIC_MORE)" --nics

# The cfg is the one that cargo-fuzz sets.
.PHONY: lint
lint: deps-build+lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace
	$(foreach manifest,$(BESIDE),\
		cargo fmt --manifest-path $(manifest) --check && \
		RUSTFLAGS="--cfg fuzzing" cargo clippy --manifest-path $(manifest) --all-targets -- -D warnings &&) true
	scripts/deny.sh

.PHONY: bench
bench: deps-build+net+bench
	cargo bench --bench engine
	cargo bench --bench scaling
	cargo $(RUNNER) bench --bench control
	cargo $(RUNNER) bench --package xdp-prog --bench program
	cargo build --release --bin weir
	cargo build --release --manifest-path perf/generator/Cargo.toml
	cargo build --release --package testbed --example iperf
	mkdir -p perf/results
	$(SUDO) target/release/examples/iperf --store perf/results/iperf-$$(git rev-parse --short=12 HEAD).json
	cargo build --release --package lab
	$(SUDO) nice -n -20 target/release/weir-lab run --short --no-store

# What else runs on the machine disturbs the less the higher the lab's own priority is.
.PHONY: lab
lab: deps-build+net+bench
	cargo build --release --bin weir
	cargo build --release --manifest-path perf/generator/Cargo.toml
	cargo build --release --package lab
	$(SUDO) nice -n -20 target/release/weir-lab run $(LAB_ARGS)

# Costs alone, for they are instructions here; more memory than the kernel takes for small, so that it tracks as many connections
# as the lab opens.
.PHONY: lab-vm
lab-vm: deps-build+net+bench+vm
	cargo build --release --bin weir
	cargo build --release --manifest-path perf/generator/Cargo.toml
	cargo build --release --package lab
	mkdir -p perf/results/guest
	perf/vm/run.sh --nics --instructions --memory 6144 --timeout 5400 --keep perf/results/guest -- perf/vm/lab.sh --results perf/results/guest \
		--short --repeats 3 --profiles cost --devices bare,weir-fullnat,weir-nat,ipvs,ipvs-nat,nftables,ip-forward $(LAB_ARGS)

# The seeds, then so many seconds of each target. Stable Rust suffices: the flags of coverage are let through. Without a
# sanitizer, which finds nothing in safe Rust: checks of bounds and overflow are on, and there are several times as many runs.
.PHONY: fuzz-smoke
fuzz-smoke: deps-build+fuzz
	cd dataplane/fuzz && for target in $$(cargo fuzz list); do \
		mkdir -p corpus/$$target; \
		RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none --fuzz-dir . $$target corpus/$$target seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -verbosity=0 || exit 1; done
