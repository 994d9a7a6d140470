#!/usr/bin/env bash
# Builds PCRE2 as a static library for a wheel: manylinux_2_28 has release 10.32, the tokenizer needs 10.40. cibuildwheel runs it.
#   tools/pcre2.sh [PREFIX [TARBALL]]      into /usr/local, downloaded, unless told otherwise
set -euo pipefail

version=10.42
sha256=c33b418e3b936ee3153de2c61cc638e7e4fe3156022a5c77d0711bcbb9d64f1f
prefix=${1:-/usr/local}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ $# -lt 2 ]; then
  curl --fail --location --silent --show-error --output "$work/pcre2.tar.gz" \
    "https://github.com/PCRE2Project/pcre2/releases/download/pcre2-$version/pcre2-$version.tar.gz"
fi
tarball=${2:-$work/pcre2.tar.gz}
echo "$sha256  $tarball" | sha256sum --check --quiet
tar xzf "$tarball" --strip-components=1 -C "$work"
cd "$work"
./configure --quiet --prefix="$prefix" --disable-shared --with-pic --enable-jit --enable-unicode
make --silent -j"$(nproc)" libpcre2-8.la
make --silent install-libLTLIBRARIES install-includeHEADERS install-nodist_includeHEADERS lib_LTLIBRARIES=libpcre2-8.la
