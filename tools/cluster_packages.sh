#!/usr/bin/env bash
# What the cluster tests need beside Go, where this is root on Debian or Ubuntu; elsewhere it says so.
set -euo pipefail

packages=(containerd runc containernetworking-plugins buildah debootstrap iptables iproute2 conntrack gcc libc6-dev)

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "cluster tests: this is not root on a system with apt; nothing was installed" >&2
  exit 0
fi
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ "${#missing[@]}" = 0 ] && exit 0
for attempt in 1 2 3 4 5; do
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null && exit 0
  echo "attempt $attempt of 5 to install ${missing[*]} failed" >&2
  sleep $((attempt * 5))
done
echo "cluster tests: ${missing[*]} could not be installed; those tests will be left out" >&2
