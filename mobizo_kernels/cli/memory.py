"""The peak memory of this process."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

_SELF = Path("/proc/self")


def reset_peak_rss() -> None:
    """Let the peak start anew from what is in use now, where the system can (Linux); elsewhere do nothing."""
    with contextlib.suppress(OSError):
        (_SELF / "clear_refs").write_text("5")


def peak_rss_mb() -> float:
    """The most memory resident at a time since `reset_peak_rss`, in MB (10^6 bytes), with mapped files."""
    try:
        status = (_SELF / "status").read_text()
    except OSError:  # no Linux: the peak since the process began, in KiB or, on macOS, in bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
    kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kibibytes) * 1024 / 1e6
