"""Builds csrc/ into mobizo_kernels/_C and executorch_ops/ into mobizo_kernels/executorch, by CMake and Ninja.

MOBIZO_EXECUTORCH=0 leaves the second out: nothing of ExecuTorch is built, or asked for at run time.
MOBIZO_MANYLINUX=1 builds for a manylinux_2_28 wheel. CMAKE_ARGS are further arguments of CMake. All else:
pyproject.toml.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
MACHINES = {"x86_64", "amd64", "aarch64", "arm64"}
OLDEST_TORCH = (2, 10)  # the first with every part of the stable ABI that csrc/torch uses
TORCH_EXTENSION = "mobizo_kernels._C"
TRAINER_EXTENSION = "mobizo_kernels.executorch._trainer"
TRAINER_HEADER = "executorch_ops/trainer/c_interface/mobizo.h"
# Beside it.
TRAINER_FILES = ("libmobizo_executorch.so", "libmobizo.so", "mobizo.h", "mobizo_runner", "_built_for")
WITH_EXECUTORCH = os.environ.get("MOBIZO_EXECUTORCH", "1") != "0"
MANYLINUX = os.environ.get("MOBIZO_MANYLINUX", "0") != "0"
REQUIREMENTS = [
    "torch>=2.10",
    "numpy>=2.0",
    "transformers>=5.0",
    "peft>=0.19",
    "safetensors>=0.4.3",
    "scikit-learn>=1.7.1",
    "typer>=0.19",
    "tqdm>=4.66",
    "pyyaml>=6.0",
    "wrapt>=1.17",
    "matplotlib>=3.8",
]
# Its C++ interface is that of one release series; torchao makes the quantised programs.
EXECUTORCH_REQUIREMENTS = ["executorch>=1.5,<1.6", "torchao>=0.18"]


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


def executorch_directory() -> Path:
    spec = importlib.util.find_spec("executorch")
    require(
        spec and spec.submodule_search_locations,
        "building needs executorch; install executorch==1.5.1, or set MOBIZO_EXECUTORCH=0 to leave it out",
    )
    directory = Path(spec.submodule_search_locations[0])
    require((directory / "share/cmake").is_dir(), f"the executorch in {directory} has no C++ SDK")
    return directory


def hidden_prefixes(build: Path) -> list[str]:
    """Folders of this machine that hold sources and headers: `__FILE__` would tell of them in a binary."""
    paths = sysconfig.get_paths()
    places = [build, ROOT, *(paths[name] for name in ("include", "platinclude", "platlib", "purelib"))]
    packages = [importlib.util.find_spec(name) for name in ("torch", "executorch", "pybind11")]
    places += [Path(spec.submodule_search_locations[0]).parent for spec in packages if spec]
    return list(dict.fromkeys(str(Path(place).resolve()) for place in places))


def install(file: Path, target: Path) -> None:
    """Renamed into place: a process that has the old file loaded keeps it whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(file, target.with_suffix(".new"))
    target.with_suffix(".new").replace(target)


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        kernels = self.cmake("csrc", ["mobizo_torch"], f"-DMOBIZO_TORCH_DIR={torch_directory()}")
        if ext.name == TORCH_EXTENSION:
            install(kernels / "_C.so", target)
            return
        directory = executorch_directory()
        import pybind11

        build = self.cmake(
            "executorch_ops",
            ["mobizo_executorch", "_trainer", "mobizo_runner", "mobizo_c"],
            f"-DMOBIZO_CORE={kernels / 'libmobizo_core.a'}",
            f"-Dexecutorch_DIR={directory / 'share/cmake'}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DMOBIZO_PYTHON_MODULE=ON",
        )
        install(next(build.glob("_trainer*.so")), target)
        shutil.copy2(ROOT / TRAINER_HEADER, build)
        (build / "_built_for").write_text(version("executorch") + "\n")
        for name in TRAINER_FILES:
            install(build / name, target.parent / name)

    def copy_extensions_to_source(self) -> None:
        """For an editable install: what lies beside the trainer's module goes with it."""
        super().copy_extensions_to_source()
        if WITH_EXECUTORCH:
            folder = Path(*TRAINER_EXTENSION.split(".")[:-1])
            for name in TRAINER_FILES:
                install(self.build_lib / folder / name, ROOT / folder / name)

    def cmake(self, source: str, targets: list[str], *options: str) -> Path:
        """Build targets of the CMake project in the folder `source`; where the results lie."""
        machine = platform.machine()
        require(machine.lower() in MACHINES, f"x86-64 and aarch64 CPUs are supported, not {machine}")
        compilers = [os.environ.get("CXX", "c++").split()[0], "g++", "clang++"]
        require(any(map(shutil.which, compilers)), "building needs a C++17 compiler; none was found on PATH")
        cmake = tool("cmake", "3.28 or later (pip install cmake)")
        ninja = tool("ninja", "(pip install ninja)")
        build = (ROOT / self.build_temp / source).resolve()
        configure = [
            cmake,
            "-S",
            str(ROOT / source),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DMOBIZO_HIDDEN_PREFIXES={';'.join(hidden_prefixes(build))}",
            f"-DMOBIZO_MANYLINUX={'ON' if MANYLINUX else 'OFF'}",
            *options,
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        for command in (configure, [cmake, "--build", str(build), "--target", *targets]):
            built = subprocess.run(command).returncode == 0
            require(built, f"'{' '.join(command[:2])} ...' failed; its output is above")
        return build


def extension(name: str, *folders: str, limited: bool) -> Extension:
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    depends = [str(path.relative_to(ROOT)) for path in files]
    return Extension(name, sources=[], depends=depends, py_limited_api=limited)


# The torch extension never touches Python's C API: one build of it serves every version of Python.
extensions = [extension(TORCH_EXTENSION, "csrc", limited=True)]
if WITH_EXECUTORCH:
    extensions.append(extension(TRAINER_EXTENSION, "csrc", "executorch_ops", limited=False))
setup(
    ext_modules=extensions,
    cmdclass={"build_ext": CMakeBuild},
    install_requires=REQUIREMENTS + (EXECUTORCH_REQUIREMENTS if WITH_EXECUTORCH else []),
    # What an earlier build with ExecuTorch has left in the sources.
    exclude_package_data={}
    if WITH_EXECUTORCH
    else {"mobizo_kernels": [f"executorch/{name}" for name in TRAINER_FILES]},
    options={} if WITH_EXECUTORCH else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
