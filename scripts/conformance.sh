#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The conformance suite of the Gateway API against a mesh of this machine (needs root, Go, and Go's module proxy).
#
#   scripts/conformance.sh [MELTEMI [ARGUMENT...]]   MELTEMI: the binary; arguments go to the suite, e.g. -run-test NAME
#
# SETS (gateway mesh) are run one after the other: the profiles of gateways with every feature that the GatewayClass claims,
# and those of the mesh with every feature that docs/status.md claims, behind a waypoint. Reports in the suite's own form are
# written to REPORTS (target/conformance), and the suite's words to SET.log there. With ONLY=core just the tests that
# tests/conformance/core-SET.txt lists run, without a report. Fails if the suite does, or if a test of the lists there has not
# passed: kept-SET.txt names those that passed once. Takes the mesh down whatever happens.
set -euo pipefail
cd "$(dirname "$0")/.."
meltemi=$(realpath "${1:-target/debug/meltemi}"); shift || true
reports=$(realpath -m "${REPORTS:-target/conformance}")
bin=$PWD/target/tools/conformance
mkdir -p "$bin" "$reports"
export CGO_ENABLED=0
(
  cd tests/conformance
  go test -c -o "$bin/suite" .
  go build -o "$bin/echo-basic" sigs.k8s.io/gateway-api/conformance/echo-basic
  go build -o "$bin/" istio.io/istio/pkg/test/echo/cmd/server istio.io/istio/pkg/test/echo/cmd/client
)

name=conformance-$$
work=$(mktemp -d)
suite=
down() {
  trap '' INT TERM HUP
  [ -z "$suite" ] || kill "$suite" 2>/dev/null || true
  "$meltemi" down --name "$name" --data-dir "$work/data" --purge >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap down EXIT
trap 'exit 130' INT TERM HUP
"$meltemi" up --name "$name" --data-dir "$work/data" --detach
# Images of the suite's manifests; what they run is the suite's own, in the version of go.mod.
image() { "$meltemi" image --name "$name" --data-dir "$work/data" "$@"; }
for version in v1.5.1 v1.6.0-dev.2 v1.6.0-dev.3; do
  image add "registry.k8s.io/gateway-api/echo-basic:$version" -- "$bin/echo-basic"
done
root=$work/echo-advanced
mkdir -p "$root/usr/local/bin"
cp "$bin/server" "$bin/client" "$root/usr/local/bin/"
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=echo -keyout "$root/cert.key" -out "$root/cert.crt" 2>/dev/null
chmod 644 "$root/cert.key"
image load registry.k8s.io/gateway-api/echo-advanced:v1.5.1 "$root" -- /usr/local/bin/server
# For UDPRoutes, which are not claimed: nobody asks it.
image add registry.k8s.io/coredns/coredns:v1.12.2 -- /bin/sh -c 'exec sleep infinity'

# The suite asks the Gateways at their addresses, as a program on a node does; the API has an address there too.
# Its exit code is 1 while a part is not in step, as on a busy machine right after the start; the process is told all the same.
supervisor=$({ "$meltemi" status --name "$name" --data-dir "$work/data" --output json || true; } |
  python3 -c 'import json,sys; print(json.load(sys.stdin)["running"]["pid"])')
node=$(pgrep --parent "$supervisor" --full 'serve runner' | head -n 1)
sed 's#server: https://127.0.0.1:[0-9]*#server: https://10.96.0.1:443#' "$work/data/kubeconfig" >"$work/kubeconfig"

# Features of the mesh beside the core of its profiles. The suite reads those of gateways from the GatewayClass.
mesh_features=HTTPRouteResponseHeaderModification,HTTPRouteParentRefPort,HTTPRoute303RedirectStatusCode
mesh_features+=,HTTPRoute307RedirectStatusCode,HTTPRoute308RedirectStatusCode,MeshClusterIPMatching
mesh_features+=,MeshHTTPRouteRewritePath,MeshHTTPRouteSchemeRedirect,MeshHTTPRouteRedirectPort,MeshHTTPRouteRedirectPath
mesh_features+=,MeshHTTPRouteBackendRequestHeaderModification,MeshHTTPRouteQueryParamMatching,MeshHTTPRouteNamedRouteRule

run() {
  local set=$1 list flags=()
  shift
  case $set in
    gateway) flags=(-conformance-profiles GATEWAY-HTTP,GATEWAY-GRPC,GATEWAY-TLS -gateway-class istio) ;;
    mesh)
      export WAYPOINT=namespace
      flags=(-conformance-profiles MESH-HTTP,MESH-GRPC -gateway-class= -supported-features "$mesh_features"
        -namespace-labels istio.io/dataplane-mode=ambient,istio.io/use-waypoint=namespace)
      ;;
    *) echo "conformance: no set $set; there are gateway and mesh" >&2; return 2 ;;
  esac
  if [ -n "${ONLY:-}" ]; then
    list=tests/conformance/$ONLY-$set.txt
    export TESTS=$PWD/$list
  else
    list=tests/conformance/kept-$set.txt
    flags+=(-report-output "$reports/$set.yaml" -organization meltemi -project meltemi -url https://meltemi.dev
      -contact https://meltemi.dev/community -version "$("$meltemi" --version | cut -d' ' -f2)")
  fi
  local failed=0
  # Not in the foreground: a signal must not wait for its end.
  KUBECONFIG=$work/kubeconfig nsenter --target "$node" --net "$bin/suite" -test.v -test.timeout 60m "${flags[@]}" \
    -allow-crds-mismatch "$@" >"$reports/$set.log" 2>&1 &
  suite=$!
  wait "$suite" || failed=$?
  suite=
  grep -E '^ *--- (PASS|FAIL)' "$reports/$set.log" || true
  [ "$failed" = 0 ] || echo "conformance: $set failed; the suite's words are in $reports/$set.log" >&2
  # With arguments of somebody's own it is another selection.
  if [ $# = 0 ]; then
    local name
    while read -r name; do
      grep -qF -- "--- PASS: TestConformance/$name (" "$reports/$set.log" && continue
      echo "conformance: $set: $name of $list has not passed" >&2
      failed=1
    done < <(grep -v '^#' "$list")
  fi
  return "$failed"
}
status=0
for set in ${SETS:-gateway mesh}; do
  run "$set" "$@" || status=$?
done
exit "$status"
