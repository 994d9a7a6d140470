#!/usr/bin/env bash
# What a package index takes and what users get of it. Makes the former (packaging/build.sh), and of its binaries a kernel repository for
# Hugging Face's `kernels`. Looks into them, installs the wheel where there is no compiler, with the oldest versions that setup.py allows
# (but torch itself, whose older releases come with CUDA alone), and tests it there. What it made lies in build/clang/dist. Needs the
# tools that build the package in `python`, clang++ and binutils.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD
base=$root/build/clang
tools=$base/tools
tests/packaging/build.sh "$base" "$tools"
dist=$base/dist
source=$base/source
platform=manylinux_2_28_$(uname -m)

wheel=$(echo "$dist"/*-cp3??-cp3*"$platform".whl)
abi3=$(echo "$dist"/*-abi3-"$platform".whl)
kernel=$base/kernel
"$tools/bin/python" "$source/tools/hub_kernel.py" "$kernel" --build "$(echo "$base"/build/temp*/csrc)"

# --- what it looks like -----------------------------------------------------------------------------------------------------------
"$tools/bin/twine" check --strict "$dist"/*
"$tools/bin/abi3audit" --strict --summary "$abi3"
for each in "$wheel" "$abi3"; do
  if python -m zipfile --list "$each" | grep '\.libs/'; then
    echo "$each carries libraries of other packages" >&2
    exit 1
  fi
  MOBIZO_WHEEL=$each python -m pytest tests/test_binaries.py
done
MOBIZO_HUB_KERNEL=$kernel "$tools/bin/python" -m pytest tests/packaging/test_hub_kernel.py

# --- what it does -----------------------------------------------------------------------------------------------------------------
oldest=$base/oldest
python - "$wheel" >"$base/oldest.txt" <<'PYTHON'
import email, re, sys, zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
for line in metadata.get_all("Requires-Dist"):
    found = re.match(r"([\w-]+)[^;]*>=([\d.]+)", line)
    if found and found[1] != "torch" and ("extra ==" not in line or found[1] == "triton"):
        print(f"{found[1]}=={found[2]}.*")
print("torch==2.13.0")
PYTHON
[ -x "$oldest/bin/python" ] || python -m venv "$oldest"
pip() {  # where there is no compiler
  PATH=$oldest/bin "$oldest/bin/python" -m pip --disable-pip-version-check install --quiet --constraint "$base/oldest.txt" "$@"
}
pip torch "$wheel[gpu]" pytest hypothesis tokenizers
pip --force-reinstall --no-deps "$wheel"

# Away from the sources, which would hide the installed package.
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT
cp -r "$source/tests" "$source/benchmarks" "$source/pyproject.toml" "$away"
python=$oldest/bin/python
cd "$away"
PATH=$oldest/bin "$python" tests/packaging/check_install.py --no-compiler
# PEFT 0.19 takes no layers_pattern alone, and under transformers 5.0 loads no adapter of a Mixtral: wrap() refuses both by name.
"$python" -m pytest tests/ops/test_noise.py tests/ops/test_perturb.py tests/ops/test_inplace.py tests/ops/test_gradients.py \
  tests/training/test_metrics.py tests/lora/test_wrapping.py \
  --deselect "tests/lora/test_wrapping.py::test_forward_is_that_of_peft[layers-pattern]" \
  --deselect tests/lora/test_wrapping.py::test_attention_of_a_mixture_of_experts
# The GPU kernels under the oldest Triton: what they compute, and that they compile without spills for one target.
"$python" -m pytest tests/triton_values/test_noise.py tests/triton_values/test_zo_update.py \
  tests/triton_values/test_mp_lora_linear.py
"$python" -m benchmarks.gpu.static_cost --targets sm_90 | tail -n 2
