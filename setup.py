"""Builds csrc/ with CMake and Ninja into mobizo_kernels/_C; all else about the package: pyproject.toml."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
MACHINES = {"x86_64", "amd64", "aarch64", "arm64"}
OLDEST_TORCH = (2, 10)  # the first with every part of the stable ABI that csrc/aten uses


def require(ok: object, sentence: str) -> None:
    if not ok:
        sys.exit(f"mobizo_kernels: {sentence}")


def torch_directory() -> Path:
    try:
        import torch
    except ImportError:
        sys.exit("mobizo_kernels: building needs torch; install torch==2.13.0, or drop --no-build-isolation")
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    oldest = ".".join(map(str, OLDEST_TORCH))
    require(version >= OLDEST_TORCH, f"building needs torch {oldest} or later, found {torch.__version__}")
    return Path(torch.__file__).parent


def tool(name: str, why: str) -> str:
    """The program of the environment that runs this file, which need not be activated, or else of PATH."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    path = shutil.which(name, path=os.pathsep.join(places))
    require(path, f"building needs {name}, {why}; none was found")
    return str(path)


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        machine = platform.machine()
        require(machine.lower() in MACHINES, f"x86-64 and aarch64 CPUs are supported, not {machine}")
        compilers = [os.environ.get("CXX", "c++").split()[0], "g++", "clang++"]
        require(any(map(shutil.which, compilers)), "building needs a C++17 compiler; none was found on PATH")
        cmake = tool("cmake", "3.24 or later (pip install cmake)")
        ninja = tool("ninja", "(pip install ninja)")
        build = (ROOT / self.build_temp / "csrc").resolve()
        configure = [
            cmake,
            *("-S", str(ROOT / "csrc"), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DMOBIZO_TORCH_DIR={torch_directory()}",
        ]
        for command in (configure, [cmake, "--build", str(build), "--target", "mobizo_torch"]):
            built = subprocess.run(command).returncode == 0
            require(built, f"'{' '.join(command[:2])} ...' failed; its output is above")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place: a process that has the old file loaded keeps it whole.
        shutil.copy2(build / "_C.so", target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)


setup(
    ext_modules=[
        # The extension never touches Python's C API: one build serves every Python version.
        Extension(
            "mobizo_kernels._C",
            sources=[],
            depends=[str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc").rglob("*")) if p.is_file()],
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": CMakeBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
