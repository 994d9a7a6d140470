"""Makes a kernel repository for Hugging Face's `kernels` of the CPU ops: `make hub-kernel`.

The repository holds one build variant, for any torch from 2.10 on and any Python. Its Python files are those
of mobizo_kernels/ops with relative imports. The ops are registered under a name that depends on every source
file, so that two versions of it, and the package itself, can live in one process.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mobizo_kernels"
OPS = PACKAGE / "ops"
NAME = "mobizo"
VERSION = 1
LEFT_OUT = {"_cuda.py"}  # the ops on GPUs are the Triton kernels of the package
STABLE_ABI = "torch-stable-abi210"  # TORCH_TARGET_VERSION of csrc/CMakeLists.txt

OPS_MODULE = '''"""Loads the compiled ops, which no other version of this kernel shares."""

from pathlib import Path

import torch

NAMESPACE = "{ops}"
torch.ops.load_library(str(Path(__file__).parent / f"{{NAMESPACE}}.abi3.so"))
ops = getattr(torch.ops, NAMESPACE)
ops.cpu_capability()


def add_op_namespace_prefix(op_name: str) -> str:
    """The name by which torch.library knows an op of this kernel."""
    return f"{{NAMESPACE}}::{{op_name}}"
'''

# Releases of `kernels` that import a folder of the kernel's name find the same module there.
COMPATIBLE_MODULE = """import importlib.util
import sys
from pathlib import Path

_name = "{ops}"
if _name not in sys.modules:
    _spec = importlib.util.spec_from_file_location(_name, Path(__file__).parent.parent / "__init__.py")
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])
globals().update({{key: value for key, value in vars(sys.modules[_name]).items() if key[:2] != "__"}})
"""


def modules() -> list[Path]:
    """The Python files of the kernel: those of the ops, and what they import from the top of the package."""
    found = sorted(file for file in OPS.glob("*.py") if file.name not in LEFT_OUT)
    for file in found:  # which grows
        for name in re.findall(r"^from mobizo_kernels\.(\w+) import", file.read_text(), flags=re.MULTILINE):
            module = PACKAGE / f"{name}.py"
            if module.exists() and module not in found:
                found.append(module)
    return found


def namespace() -> str:
    """The kernel's id, of every file that goes into it."""
    digest = hashlib.sha1()
    files = [*ROOT.glob("csrc/**/*"), *modules(), Path(__file__)]
    for file in sorted(path for path in files if path.is_file()):
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return f"_{NAME}_cpu_{digest.hexdigest()[:10]}"


def relative(source: str, ops: str) -> str:
    """A module of mobizo_kernels/ops as one of a kernel whose ops are torch.ops.`ops`."""
    source = source.replace("from mobizo_kernels import _library ", "from . import _ops ")
    source = re.sub(r"from mobizo_kernels\.ops import (_cuda, )?", "from . import ", source)
    source = re.sub(r"from mobizo_kernels\.(?:ops\.)?(\w+) import", r"from .\1 import", source)
    source = source.replace("torch.ops.mobizo", f"torch.ops.{ops}")
    source = re.sub(r'(register_fake|register_autograd)\((f?)"mobizo::', rf'\1(\2"{ops}::', source)
    return source.replace('Library("mobizo"', f'Library("{ops}"')


def compile_ops(build: Path, ops: str) -> Path:
    """The extension, by the CMake project in csrc/; objects that lie in `build` already are taken."""
    options = [f"-DMOBIZO_HUB_OPS={ops}", "-DMOBIZO_MANYLINUX=ON"]
    if not (build / "CMakeCache.txt").exists():
        packages = Path(torch.__file__).parent.parent
        options += ["-G", "Ninja", f"-DMOBIZO_TORCH_DIR={packages / 'torch'}"]
        options += [f"-DMOBIZO_HIDDEN_PREFIXES={ROOT};{build};{packages}"]
    for command in (
        ["-S", ROOT / "csrc", "-B", build, *options],
        ["--build", build, "--target", "mobizo_hub"],
    ):
        subprocess.run(["cmake", *command], check=True, stdout=subprocess.DEVNULL)
    return build / f"{ops}.abi3.so"


def write_metadata(variant: Path, ops: str) -> None:
    digests = {}
    for path in sorted(path for path in variant.rglob("*") if path.is_file()):
        digest = hashlib.sha256(path.read_bytes()).digest()
        digests[path.relative_to(variant).as_posix()] = base64.b64encode(digest).decode()
    metadata = {
        "name": NAME,
        "id": ops,
        "version": VERSION,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cpu"},
        "digest": {"algorithm": "sha256", "files": digests},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def make(repository: Path, build: Path) -> Path:
    """Writes the repository, in place of one that is there; the folder of its variant."""
    ops = namespace()
    library = compile_ops(build, ops)
    shutil.rmtree(repository, ignore_errors=True)
    variant = repository / "build" / f"{STABLE_ABI}-cpu-{platform.machine()}-linux"
    (variant / NAME).mkdir(parents=True)
    shutil.copy(library, variant)
    for file in modules():
        (variant / file.name).write_text(relative(file.read_text(), ops))
    (variant / "_ops.py").write_text(OPS_MODULE.format(ops=ops))
    (variant / NAME / "__init__.py").write_text(COMPATIBLE_MODULE.format(ops=ops))
    write_metadata(variant, ops)
    shutil.copy(ROOT / "LICENSE", repository)
    return variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", type=Path)
    parser.add_argument(
        "--build", type=Path, required=True, help="folder of CMake, new or of a build of the package"
    )
    arguments = parser.parse_args()
    print(make(arguments.repository.resolve(), arguments.build.resolve()))


if __name__ == "__main__":
    main()
