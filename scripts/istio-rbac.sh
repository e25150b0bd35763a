#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the test data of the comparison with Envoy anew: random policies, and the RBAC filters that Istio's control plane
# generates for them (crates/judge/tests/data). Needs Go; the first build takes some minutes. JUDGE_SEED=N makes other
# policies, JUDGE_DATA=DIR puts them elsewhere; the test takes them from there with the same variable.
set -euo pipefail
cd "$(dirname "$0")/../crates/judge"
export JUDGE_DATA=${JUDGE_DATA:-$PWD/tests/data}
mkdir -p "$JUDGE_DATA"
cargo test --package meltemi-judge --test envoy -- --ignored write_policies
cd istio-rbac
CGO_ENABLED=0 go run . "$JUDGE_DATA/policies.yaml" "$JUDGE_DATA/filters.json"
