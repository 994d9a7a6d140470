"""Benchmarks are no part of the package: they are imported from the tree. The package may be another one."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
