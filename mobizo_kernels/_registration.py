"""`import mobizo_kernels` gives `torch.ops.mobizo.*`, whichever of the two packages is imported first.

Without torch there is no place for ops, and importing it takes a second. Where nobody has done so yet, the
ops wait until somebody does: what needs no torch, such as the help of the command line, does not pay for it.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from types import ModuleType

from wrapt import register_post_import_hook

_OPS = "mobizo_kernels.ops"


def with_torch() -> None:
    """Register the ops: now if torch is imported, else right after it is.

    Raises:
        ImportError: torch is imported, and the compiled extension is missing or does not load under it.
    """
    if "torch" in sys.modules:
        import_module(_OPS)
    else:
        register_post_import_hook(_register, "torch")


def _register(torch: ModuleType) -> None:
    try:
        import_module(_OPS)
    except ImportError as error:
        # It is not torch's import that has failed; what asks for the ops raises this again.
        warnings.warn(f"torch.ops.mobizo is not there: {error}", RuntimeWarning, stacklevel=2)
