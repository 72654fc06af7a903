# Everything here needs Linux 6.7 or later on x86-64, root (namespaces, userfaultfd, ptrace) and Debian 12 or
# alike. `scripts/setup` installs what is missing and is silent otherwise.

CARGO ?= cargo

.PHONY: demo build test kvm-test soak bench lint setup

# One machine, two hosts made of namespaces, a real server that moves under load. Under two minutes.
demo: setup
	$(CARGO) build --release --package whimbrel
	$$($(CARGO) metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/release/whimbrel demo

build: setup
	$(CARGO) build --release --package whimbrel

# The moves run one after the other: they share two cores, and a starved test only looks like a broken one.
test: setup
	$(CARGO) test --workspace -- --test-threads=1

# Machines whose processors are those of this host. Needs /dev/kvm.
kvm-test: setup
	$(CARGO) test --package whimbrel --test integration -- --ignored kvm --test-threads=1 --nocapture

# The same tests with the long counts: 1,000 moves of the memory torture instead of 10, and so on.
soak: setup
	WHIMBREL_SOAK=1 $(CARGO) test --release --package whimbrel -- --test-threads=1 --nocapture

# Measurements, as tables, and as charts in bench/results. Nothing is asserted.
bench: setup
	$(CARGO) bench --package whimbrel

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

setup:
	@scripts/setup
