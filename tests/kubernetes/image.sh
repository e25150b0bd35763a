#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Packs a meltemi binary as a container image, with the libraries that it is linked to. usage: image.sh BINARY NAME OUT.tar
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
strip -o "$work/meltemi" "$1"
files=("$work/meltemi:/usr/local/bin/meltemi")
# ldd fails for a static binary, which needs none.
while read -r library; do files+=("$library:$library"); done < <(ldd "$1" 2>/dev/null | grep -oE '/[^ ]+' || true)
"$HERE/image.py" "$2" "$3" /usr/local/bin/meltemi "${files[@]}"
