"""`mobizo_runner`: the program that trains without Python, from the folder that it was installed to.

It is not started from there: importing `mobizo_kernels.executorch` fails where there is no ExecuTorch.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import NoReturn


def run() -> None:
    """Become the program; only its own arguments, output and exit code are seen. Without it, that is said in
    one sentence, and the exit code is 2.
    """
    program = Path(__file__).parents[1] / "executorch" / "mobizo_runner"
    if not program.is_file():
        _fail(
            "this installation was built without ExecuTorch (MOBIZO_EXECUTORCH=0); install it again with it"
        )
    spec = importlib.util.find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        _fail("ExecuTorch is missing; pip install executorch==1.5.1")
    # An editable installation is not where the program looks for the runtime's libraries.
    libraries = str(Path(spec.submodule_search_locations[0], "lib"))
    inherited = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = f"{libraries}:{inherited}" if inherited else libraries
    try:
        os.execv(program, ["mobizo_runner", *sys.argv[1:]])
    except OSError as error:
        _fail(f"{program} cannot be run ({error.strerror})")


def _fail(problem: str) -> NoReturn:
    print(f"mobizo_runner: {problem}", file=sys.stderr)
    sys.exit(2)
