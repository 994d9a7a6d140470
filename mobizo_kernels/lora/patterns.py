"""Regular expressions of an adapter's configuration, tried where they can be stopped: some never end.

Python cannot interrupt a match from inside, so another process goes first over the same expressions and
names. Files of adapters come from anywhere.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence

from peft import LoraConfig

SECONDS = 10.0
"""What all patterns of a configuration may take over all names of a model; usual ones take milliseconds."""

_TRY = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for number, (method, pattern) in enumerate(patterns):
    print(number, flush=True)
    attempt = getattr(re.compile(pattern), method)
    for name in names:
        attempt(name)
"""


def check_patterns(config: LoraConfig, names: Sequence[str]) -> None:
    """Raise ValueError, naming the option, unless every pattern of a configuration ends on all of the names.

    Args:
        config: with options of the right types.
        names: of the modules of a model.
    """
    patterns = [entry for entry in _patterns(config) if not _plain(entry[1])]
    if not patterns:
        return
    arguments = json.dumps([[entry[2:] for entry in patterns], list(names)]).encode()
    command = [sys.executable, "-I", "-S", "-c", _TRY]
    try:
        done = subprocess.run(command, input=arguments, capture_output=True, timeout=SECONDS)
        if done.returncode == 0:
            return
        seen, reason = done.stdout, done.stderr.decode().strip().rpartition("\n")[2]
    except subprocess.TimeoutExpired as expired:
        seen, reason = expired.stdout or b"", f"matching it takes more than {SECONDS:g} s"
    option, pattern = patterns[int((seen.split() or [b"0"])[-1])][:2]
    raise ValueError(f"LoraConfig.{option}: the pattern {pattern[:60]!r} cannot be used: {reason}")


def _patterns(config: LoraConfig) -> Iterator[tuple[str, str, str, str]]:
    """Option, pattern, and what PEFT does with it: a method of `re`, and the regular expression."""
    for option in ("target_modules", "exclude_modules"):
        value = getattr(config, option)
        if isinstance(value, str):
            yield option, value, "fullmatch", value
    layers = config.layers_pattern or ()
    for pattern in (layers,) if isinstance(layers, str) else layers:
        yield "layers_pattern", pattern, "match", rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\."
    for option in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, option) or ():
            yield option, pattern, "match", rf"(.*\.)?({pattern})$"


def _plain(pattern: str) -> bool:
    """Whether it is a name, perhaps with anchors and escaped dots: nothing in it repeats or branches."""
    return re.fullmatch(r"\^?(\w|-|\.|\\\.)*\$?", pattern) is not None
