"""The binaries of the package, as installed or in a wheel: where they look for libraries, and what they tell.

MOBIZO_WHEEL names a wheel to look into, in place of the installed package.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import mobizo_kernels

RUNTIME = "$ORIGIN/../../executorch/lib"  # from site-packages/mobizo_kernels/executorch
PATTERNS = (
    "_C*.so",
    "executorch/_trainer*.so",
    "executorch/libmobizo_executorch.so",
    "executorch/libmobizo.so",
    "executorch/mobizo_runner",
)
needs_readelf = pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils are not installed")


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    package = Path(mobizo_kernels.__file__).parent
    if wheel := os.environ.get("MOBIZO_WHEEL"):
        package = tmp_path_factory.mktemp("wheel")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(package)
        package = package / "mobizo_kernels"
    found = [path for pattern in PATTERNS for path in package.glob(pattern)]
    assert len(found) == len(PATTERNS) if (package / "executorch/_built_for").exists() else len(found) == 1
    return found


def readelf(option: str, path: Path) -> str:
    return subprocess.run(
        ["readelf", "--wide", option, path],
        capture_output=True,
        text=True,
        check=True,
        env={"LC_ALL": "C", **os.environ},
    ).stdout


@needs_readelf
def test_libraries_are_looked_for_in_one_place(binaries: list[Path]) -> None:
    """An empty entry is the current directory, an absolute one a folder that somebody else may make."""
    for path in binaries:
        entries = re.findall(r"\((RPATH|RUNPATH)\).*\[(.*)\]", readelf("--dynamic", path))
        expected = [] if path.name.startswith("_C") else [("RUNPATH", RUNTIME)]
        assert entries == expected, path.name
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("--dynamic", path))
        assert needed and not [name for name in needed if "/" in name], path.name


@needs_readelf
def test_binaries_are_stripped(binaries: list[Path]) -> None:
    for path in binaries:
        sections = readelf("--section-headers", path)
        assert ".dynsym" in sections
        assert ".symtab" not in sections and ".debug_" not in sections, path.name


def test_no_path_of_the_building_machine(binaries: list[Path]) -> None:
    """No string is the absolute name of a source file, or of a folder that Python or a build uses here."""
    root = Path(__file__).resolve().parent.parent
    places = {
        root,
        Path.home(),
        Path(sys.prefix),
        Path(sys.base_prefix),
        *map(Path, sysconfig.get_paths().values()),
    }
    told = re.compile(rb"(?<![\w.])/[\w.+-]+(?:/[\w.+-]+)*/[\w.+-]+\.(?:h|hpp|c|cc|cpp|py)\b")
    for path in binaries:
        content = path.read_bytes()
        assert not told.findall(content), path.name
        named = [str(place) for place in places if len(place.parts) > 2 and os.fsencode(place) in content]
        assert not named, path.name
