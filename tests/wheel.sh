#!/usr/bin/env bash
# Builds a wheel with Clang, looks into its binaries, and tests it with the oldest versions that setup.py allows (but torch itself, whose
# older releases come with CUDA alone). Needs the tools that build the package in `python`, clang++ and binutils.
set -euo pipefail
cd "$(dirname "$0")/.."

base=build/clang
mkdir -p "$base"
rm -rf "$base/dist"
CXX=clang++ CC=clang python setup.py -q build --build-base "$base" bdist_wheel --dist-dir "$base/dist" >"$base.log" 2>&1 || {
  cat "$base.log" >&2
  exit 1
}
wheel=$(echo "$base"/dist/*.whl)
MOBIZO_WHEEL=$PWD/$wheel python -m pytest tests/test_binaries.py

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
pip() { "$oldest/bin/python" -m pip --disable-pip-version-check install --quiet --constraint "$base/oldest.txt" "$@"; }
pip torch "$wheel[gpu]" pytest hypothesis tokenizers
pip --force-reinstall --no-deps "$wheel"

# Away from the sources, which would hide the installed package.
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT
cp -r tests benchmarks pyproject.toml "$away"
python="$PWD/$oldest/bin/python"
cd "$away"
# PEFT 0.19 takes no layers_pattern alone, and under transformers 5.0 loads no adapter of a Mixtral: wrap() refuses both by name.
"$python" -m pytest tests/ops/test_noise.py tests/ops/test_perturb.py tests/ops/test_inplace.py tests/ops/test_gradients.py \
  tests/training/test_metrics.py tests/lora/test_wrapping.py \
  --deselect "tests/lora/test_wrapping.py::test_forward_is_that_of_peft[layers-pattern]" \
  --deselect tests/lora/test_wrapping.py::test_attention_of_a_mixture_of_experts
# The GPU kernels under the oldest Triton: what they compute, and that they compile without spills for one target.
"$python" -m pytest tests/triton_values/test_noise.py tests/triton_values/test_zo_update.py \
  tests/triton_values/test_mp_lora_linear.py
"$python" -m benchmarks.gpu.static_cost --targets sm_90 | tail -n 2
