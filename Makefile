# SPDX-License-Identifier: Apache-2.0
# The front door. Every target does its own set-up, asks nothing and can be repeated.
SHELL := /bin/bash
export PATH := $(PATH):$(HOME)/.cargo/bin
TOOLS := target/tools

.PHONY: demo test check bench fuzz-smoke build

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

# Format, lints, dependency table, licences.
check: $(TOOLS)/bin/cargo-deny
	@scripts/setup.sh build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	cargo xtask deps
	$(TOOLS)/bin/cargo-deny --log-level error check licenses bans sources

$(TOOLS)/bin/cargo-deny:
	@scripts/setup.sh build
	cargo install --quiet --locked cargo-deny --root $(TOOLS) --target-dir target/tools-build
	rm -rf target/tools-build

bench:
	@scripts/setup.sh build
	cargo bench --package meltemi-policy
	cargo bench --package meltemi-analysis

# Every fuzz target for FUZZ_SECONDS seconds (10), then the property tests that feed parsers and a waypoint with noise.
fuzz-smoke:
	@scripts/setup.sh fuzz
	scripts/fuzz.sh $(or $(FUZZ_SECONDS),10)
	PROPTEST_CASES=20000 cargo test --package meltemi-policy --package meltemi-wire -- fuzz
	PROPTEST_CASES=20000 cargo test --package meltemi-waypoint --test golden
