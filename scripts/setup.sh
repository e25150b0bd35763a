#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages that a make target needs and that are missing; asks nothing.
# usage: setup.sh build|demo|test|kubernetes|conformance|bench|fuzz
set -euo pipefail

case "${1:-build}" in
  build) want=(gcc libc6-dev make) ;;
  demo) want=(gcc libc6-dev make curl kubernetes-client) ;;
  test) want=(gcc libc6-dev make chromium curl nftables iproute2 openssl python3 python3-pip nginx-light postgresql redis-server uidmap) ;;
  kubernetes) want=(gcc libc6-dev make busybox-static containerd containernetworking-plugins curl etcd-server iproute2 kubernetes-client nftables openssl python3 runc) ;;
  conformance) want=(gcc libc6-dev make openssl procps python3 util-linux) ;;
  bench) want=(gcc libc6-dev make kubernetes-client nginx-light iperf3) ;;
  fuzz) want=(g++ gcc libc6-dev make) ;;
  *) echo "usage: $0 build|demo|test|kubernetes|bench|fuzz" >&2; exit 2 ;;
esac

# A program that is there serves as well as its package.
declare -A program=([chromium]=chromium [g++]=c++ [gcc]=cc [make]=make [curl]=curl [kubernetes-client]=kubectl [nftables]=/usr/sbin/nft [iproute2]=/usr/sbin/ip
  [openssl]=openssl [python3]=python3 [python3-pip]=pip3 [nginx-light]=nginx [iperf3]=iperf3 [postgresql]=pg_ctlcluster [redis-server]=redis-server
  [uidmap]=newuidmap [procps]=pgrep [util-linux]=nsenter)

missing=()
for package in "${want[@]}"; do
  if [ -n "${program[$package]:-}" ]; then
    command -v "${program[$package]}" >/dev/null 2>&1 || [ -x "/usr/sbin/$(basename "${program[$package]}")" ] || missing+=("$package")
  else
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  fi
done

if ! command -v cargo >/dev/null 2>&1 && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
  echo "setup: no Rust toolchain found; install one from https://rustup.rs (1.95 or later)" >&2
  exit 1
fi
if [[ "${1:-}" =~ ^(kubernetes|conformance)$ ]] && ! command -v go >/dev/null 2>&1; then
  echo "setup: Go is missing, from which Kubernetes and the conformance suite are built; install it from https://go.dev/dl (1.26 or later)" >&2
  exit 1
fi
[ ${#missing[@]} -eq 0 ] && exit 0

install=(apt-get install -y --no-install-recommends "${missing[@]}")
if [ "$(id -u)" = 0 ]; then
  echo "setup: installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${install[@]}" -qq >/dev/null
elif sudo -n true 2>/dev/null; then
  echo "setup: installing ${missing[*]}"
  sudo -n apt-get update -qq
  sudo -n env DEBIAN_FRONTEND=noninteractive "${install[@]}" -qq >/dev/null
else
  echo "setup: these Debian packages are missing. Install them once, then repeat:" >&2
  echo "  sudo ${install[*]}" >&2
  exit 1
fi
