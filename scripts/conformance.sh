#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The conformance suite of the Gateway API against a mesh of this machine (needs root, Go, and Go's module proxy).
#
#   scripts/conformance.sh [MELTEMI [ARGUMENT...]]   MELTEMI: the binary; arguments go to the suite, e.g. -run-test NAME
#
# PROFILES (GATEWAY-HTTP,GATEWAY-GRPC) are run with every feature that the GatewayClass claims; the report is written to
# REPORT (target/conformance.yaml). Ends with the suite's own exit code.
set -euo pipefail
cd "$(dirname "$0")/.."
meltemi=$(realpath "${1:-target/debug/meltemi}"); shift || true
profiles=${PROFILES:-GATEWAY-HTTP,GATEWAY-GRPC}
report=$(realpath -m "${REPORT:-target/conformance.yaml}")
bin=$PWD/target/tools/conformance
mkdir -p "$bin"
export CGO_ENABLED=0
(
  cd tests/conformance
  go test -c -o "$bin/suite" .
  go build -o "$bin/echo-basic" sigs.k8s.io/gateway-api/conformance/echo-basic
  go build -o "$bin/echo-advanced" istio.io/istio/pkg/test/echo/cmd/server
)

name=conformance-$$
work=$(mktemp -d)
down() { "$meltemi" down --name "$name" --data-dir "$work/data" --purge >/dev/null 2>&1 || true; rm -rf "$work"; }
trap down EXIT
"$meltemi" up --name "$name" --data-dir "$work/data" --detach
# Images of the suite's manifests; what they run is the suite's own, in the version of go.mod.
add() { "$meltemi" image add "$1" --name "$name" --data-dir "$work/data" -- "${@:2}"; }
for version in v1.5.1 v1.6.0-dev.2 v1.6.0-dev.3; do
  add "registry.k8s.io/gateway-api/echo-basic:$version" "$bin/echo-basic"
done
add registry.k8s.io/gateway-api/echo-advanced:v1.5.1 "$bin/echo-advanced"
# For UDPRoutes, which are not claimed: nobody asks it.
add registry.k8s.io/coredns/coredns:v1.12.2 /bin/sh -c 'exec sleep infinity'

# The suite asks the Gateways at their addresses, as a program on a node does; the API has an address there too.
supervisor=$("$meltemi" status --name "$name" --data-dir "$work/data" --output json |
  python3 -c 'import json,sys; print(json.load(sys.stdin)["running"]["pid"])')
node=$(pgrep --parent "$supervisor" --full 'serve runner' | head -n 1)
sed 's#server: https://127.0.0.1:[0-9]*#server: https://10.96.0.1:443#' "$work/data/kubeconfig" >"$work/kubeconfig"
KUBECONFIG=$work/kubeconfig nsenter --target "$node" --net "$bin/suite" -test.v -test.timeout 60m \
  -gateway-class istio -conformance-profiles "$profiles" -allow-crds-mismatch -report-output "$report" \
  -organization meltemi -project meltemi -url https://meltemi.dev -contact https://meltemi.dev/community \
  -version "$("$meltemi" --version | cut -d' ' -f2)" "$@"
