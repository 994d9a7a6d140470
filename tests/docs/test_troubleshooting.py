"""docs/troubleshooting.md: the messages that it quotes are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SYMPTOMS = ("transformers)",)  # of rows whose message is another library's


def quoted() -> list[list[str]]:
    """The fixed parts of each message in the first column."""
    messages = []
    for line in (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").splitlines():
        first = line.split(" | ")[0]
        if line.startswith("| `") and not first.endswith(SYMPTOMS):
            messages += [quote.split("...") for quote in re.findall(r"`([^`]+)`", first) if " " in quote]
    return messages


def sentences() -> str:
    """What literals of Python say, those side by side and the parts of f-strings as one."""
    found = []
    for path in (*(ROOT / "mobizo_kernels").rglob("*.py"), ROOT / "setup.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_are_there() -> None:
    messages, code = quoted(), sentences()
    assert len(messages) > 30
    parts = {part.strip("; ") for message in messages for part in message}
    assert [part for part in sorted(parts) if part not in code] == []
