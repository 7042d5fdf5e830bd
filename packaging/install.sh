#!/bin/sh
# Installs the agent on a gateway from a package that lies beside this script, or at a path or URL:
#   sudo ./install.sh [PACKAGE.deb] [SHA256]
# Refuses a package whose SHA-256 differs from the one given.
set -eu
package=${1:-}
digest=${2:-}
fail() { echo "install.sh: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "run it with sudo: it installs a package and makes two users"
command -v dpkg > /dev/null || fail "this needs Debian, Ubuntu or Raspberry Pi OS"
arch=$(dpkg --print-architecture)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$package" ]; then
  here=$(dirname "$0")
  package=$(find "$here" -maxdepth 1 -name "simcorp-edge_*_$arch.deb" | sort -V | tail -1)
  [ -n "$package" ] || fail "there is no simcorp-edge_*_$arch.deb beside this script"
fi
case $package in
  https://*)
    [ -n "$digest" ] || fail "add the package's SHA-256: install.sh URL SHA256"
    curl --fail --silent --show-error --location --output "$folder/edge.deb" "$package"
    package=$folder/edge.deb ;;
  http://*) fail "http is not encrypted; use https" ;;
esac
[ -f "$package" ] || fail "$package is not there"
if [ -n "$digest" ]; then
  echo "$digest  $package" | sha256sum --check --quiet || fail "$package does not have the given SHA-256"
fi
# Keeps the installed configuration when a default has changed, without a question.
apt-get install -y -qq -o Dpkg::Options::=--force-confold "$(realpath "$package")"
