"""Find data files that ship inside installed packages, without importing those packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from mobizo_kernels.errors import InputError


def package_file(package: str, name: str, install: str) -> Path:
    """The path of the file `name` inside the installed `package`, which is located and never imported.

    Importing would ask for whatever the package itself needs, when all we want is its data.

    Raises:
        InputError: the package is not installed (the message quotes the command `install`), or has no such
            file.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {package} is not installed ({install})")
    # Several packages may share one namespace, each in a directory of its own.
    for directory in spec.submodule_search_locations:
        if (path := Path(directory) / name).is_file():
            return path
    raise InputError(f"the installed package {package} has no file {name} ({install})")
