# SPDX-License-Identifier: Apache-2.0
# The front door. Every target does its own set-up, asks nothing and can be repeated.
SHELL := /bin/bash
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/go/bin
TOOLS := target/tools

.PHONY: demo test test-kubernetes check bench fuzz-smoke build conformance

# The walkthrough on a mesh of this machine; KEEP=1 leaves it running.
demo:
	@scripts/setup.sh demo
	cargo build --release --package meltemi
	target/release/meltemi demo $(if $(KEEP),--keep)

build:
	@scripts/setup.sh build
	cargo build --release --package meltemi

# Unit, property and in-process tests, then the whole system with both kubectls. Property tests see the same cases each
# time, so that a change is judged by what it changes; fuzz-smoke looks for new ones.
test:
	@scripts/setup.sh test
	@scripts/kubectls.sh
	@scripts/envoy.sh
	PROPTEST_RNG_SEED=1 KUBECTL=$(CURDIR)/$(TOOLS)/kubectl-1.35 cargo test --workspace

# Install, policies, faults and removal on a real Kubernetes of two nodes, made on this machine. Needs root and Go.
# MELTEMI: a binary that is there already, such as the one that `make test` has made.
test-kubernetes:
	@scripts/setup.sh kubernetes
	tests/kubernetes/build.sh $(TOOLS)/kubernetes
	$(if $(MELTEMI),,cargo build --package meltemi)
	tests/kubernetes/run $(or $(MELTEMI),target/debug/meltemi)

# Format, lints, links of the code's documentation, dependency table, reference pages, tests of bounds, figures of the
# sources, licences.
check: $(TOOLS)/bin/cargo-deny $(TOOLS)/bin/cargo-machete
	@scripts/setup.sh build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace --quiet
	cargo xtask deps
	$(TOOLS)/bin/cargo-machete
	cargo xtask reference --check
	cargo xtask bounds
	cargo xtask style
	$(TOOLS)/bin/cargo-deny --log-level error check licenses bans sources

$(TOOLS)/bin/cargo-machete:
	@scripts/setup.sh build
	cargo install --quiet --locked cargo-machete --version 0.9.2 --root $(TOOLS) --target-dir target/tools-build
	rm -rf target/tools-build

$(TOOLS)/bin/cargo-deny:
	@scripts/setup.sh build
	cargo install --quiet --locked cargo-deny --root $(TOOLS) --target-dir target/tools-build
	rm -rf target/tools-build

# The data path on a mesh of this machine, beside no proxy and beside the peers that are installed (haproxy; envoy by
# scripts/envoy.sh); then the policy engine, and what proofs cost. BENCH_SECONDS for each figure (5), BENCH_ROUNDS (3).
bench: build $(TOOLS)/bin/oha
	@scripts/setup.sh bench
	cargo xtask bench --seconds $(or $(BENCH_SECONDS),5) --rounds $(or $(BENCH_ROUNDS),3)
	cargo bench --package meltemi-policy
	cargo bench --package meltemi-analysis

# The load generator. Without TLS, which the benchmark's clients do not speak: the mesh does.
$(TOOLS)/bin/oha:
	@scripts/setup.sh build
	cargo install --quiet --locked oha --version 1.16.0 --no-default-features --root $(TOOLS) --target-dir target/tools-build
	rm -rf target/tools-build

# The conformance suite of the Gateway API against a mesh of this machine: as root, with Go. ARGS go to the suite, e.g.
# ARGS="-run-test HTTPRouteCORS" with SETS=gateway; the reports are in target/conformance. ONLY=core: what CI runs.
conformance:
	@scripts/setup.sh conformance
	$(if $(MELTEMI),,cargo build --package meltemi)
	ONLY=$(ONLY) SETS="$(SETS)" scripts/conformance.sh $(or $(MELTEMI),target/debug/meltemi) $(ARGS)

# Every fuzz target for FUZZ_SECONDS seconds (10), then the property tests that feed parsers and a waypoint with noise.
fuzz-smoke:
	@scripts/setup.sh fuzz
	scripts/fuzz.sh $(or $(FUZZ_SECONDS),10)
	PROPTEST_CASES=20000 cargo test --package meltemi-policy --package meltemi-wire -- fuzz
	PROPTEST_CASES=20000 cargo test --package meltemi-waypoint --test golden
