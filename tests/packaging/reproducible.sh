#!/usr/bin/env bash
# Two builds of one commit are the same, byte for byte: of two clones that lie elsewhere, in other time zones and locales, with other
# hashes of Python. What differs is shown. Both are compiled in full. Needs what wheel.sh needs.
set -euo pipefail
cd "$(dirname "$0")/../.."

root=$PWD
base=$root/build/reproducible
rm -rf "$base"
made() {  # made PLACE VARIABLE=VALUE...
  git clone --quiet --no-hardlinks "$root" "$base/$1"
  env CCACHE_DISABLE=1 "${@:2}" "$base/$1/tests/packaging/build.sh" "$base/$1/build/clang" "$root/build/clang/tools"
}
made one TZ=UTC LC_ALL=C PYTHONHASHSEED=1
sleep 2  # zip files count in steps of two seconds
made elsewhere/another TZ=Asia/Kathmandu LC_ALL=C.UTF-8 PYTHONHASHSEED=2

cd "$base"
one=one/build/clang/dist another=elsewhere/another/build/clang/dist
differ=0
for file in "$one"/*; do
  if cmp --silent "$file" "$another/${file##*/}"; then
    sha256sum "$file"
    continue
  fi
  differ=1
  echo "${file##*/} differs:" >&2
  if [[ $file = *.whl ]]; then
    diff <(python -m zipfile --list "$file") <(python -m zipfile --list "$another/${file##*/}") >&2 || true
    for each in "$file" "$another/${file##*/}"; do python -m zipfile --extract "$each" "$each.unpacked"; done
    diff --recursive --brief "$file.unpacked" "$another/${file##*/}.unpacked" >&2 || true
  else
    diff <(tar tvzf "$file") <(tar tvzf "$another/${file##*/}") >&2 || true
  fi
done
exit "$differ"
