#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the programs of a real Kubernetes, and CoreDNS, as the `tool` lines of go.mod name them: an update is one line
# there. About 15 minutes of CPU the first time; Go's own cache makes the next times quick. usage: build.sh OUT
set -euo pipefail
OUT=$(realpath -m "$1"); mkdir -p "$OUT"
cd "$(dirname "${BASH_SOURCE[0]}")"
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false
stamp=$(cat go.mod go.sum dns/go.mod dns/go.sum build.sh pause.c | sha256sum | cut -d' ' -f1)
[ "$(cat "$OUT/stamp" 2>/dev/null)" != "$stamp" ] || exit 0
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}; minor=${minor%%.*}
x=k8s.io/component-base/version
go build -ldflags "-s -w -X $x.gitVersion=$version -X $x.gitMajor=1 -X $x.gitMinor=$minor" -o "$OUT/" tool
(cd dns && go build -ldflags "-s -w" -o "$OUT/" tool)
cc -static -O2 -o "$OUT/pause" pause.c
echo "$stamp" >"$OUT/stamp"
