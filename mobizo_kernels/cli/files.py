"""Which files a command reads and writes: no output may be an input, whatever the names that lead to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mobizo_kernels.errors import InputError
from mobizo_kernels.files.file import same_file


def check_distinct(outputs: Mapping[str, Iterable[Path]], inputs: Mapping[str, str | Path | None]) -> None:
    """Raise InputError if a file that would be written is read, or written under another option, too.

    Args:
        outputs: the files by their options.
        inputs: files, or directories whose files are all read, by their options; what is neither, such as the
            name of a task, does not matter.
    """
    others = [(option, path) for option, source in inputs.items() for path in _files_of(source)]
    for option, paths in outputs.items():
        paths = list(paths)
        for path in paths:
            for other, there in others:
                if same_file(path, there):
                    raise InputError(
                        f"{option}: {str(path)!r} is the same file as {str(there)!r} of {other}; name another"
                    )
        others += [(option, path) for path in paths]


def is_within(path: Path, directory: Path) -> bool:
    """Whether `path` is `directory` or lies in it, be they there or not."""
    return path.resolve().is_relative_to(directory.resolve())


def _files_of(source: str | Path | None) -> list[Path]:
    path = Path(source or "")
    if source and path.is_dir():
        return [file for file in sorted(path.iterdir()) if file.is_file()]
    return [path] if source and path.is_file() else []
