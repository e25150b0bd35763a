#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the test data of the comparison with Envoy anew: random policies, and the RBAC filters that Istio's control plane
# generates for them (crates/judge/tests/data). Needs Go; the first build takes about ten minutes.
set -euo pipefail
cd "$(dirname "$0")/../crates/judge"
cargo test --package meltemi-judge --test envoy -- --ignored write_policies
data=$PWD/tests/data
cd istio-rbac
CGO_ENABLED=0 go run . "$data/policies.yaml" "$data/filters.json"
