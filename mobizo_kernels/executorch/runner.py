"""`mobizo_runner`: the program that trains without Python, from the folder that it was installed to."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path


def run() -> None:
    """Become the program; only its own arguments, output and exit code are seen."""
    program = Path(__file__).parent / "mobizo_runner"
    if not program.is_file():
        sys.exit("mobizo_runner: this installation was built without ExecuTorch (MOBIZO_EXECUTORCH=0)")
    spec = importlib.util.find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("mobizo_runner: ExecuTorch is missing; pip install executorch==1.5.1")
    # An editable installation is not where the program looks for the runtime's libraries.
    libraries = str(Path(spec.submodule_search_locations[0], "lib"))
    inherited = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = f"{libraries}:{inherited}" if inherited else libraries
    os.execv(program, ["mobizo_runner", *sys.argv[1:]])
