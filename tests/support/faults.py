"""Runs on a disk that fails: every call that changes a file, one after the other, and the runs that go on.

    python tests/support/faults.py

Whatever fails, and whether the disk recovers or stays full: a run ends with one sentence and loses nothing,
and the run that resumes it ends with the bytes of one that was never disturbed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crash import start_runner, tiny_task

NATIVE = Path(__file__).resolve().parents[1] / "native"


@dataclass(frozen=True)
class Ended:
    """A run: its exit code, and the lines that it wrote to stderr."""

    status: int
    errors: list[str]


def build(folder: Path) -> Path:
    """The library that is preloaded. Raises RuntimeError if there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("a C compiler is needed, and there is no cc")
    library = folder / "faults.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", NATIVE / "faults.c", "-o", library, "-ldl"], check=True
    )
    return library


class Disk(ABC):
    """Starts runs on a disk that fails."""

    def __init__(self, library: Path) -> None:
        self.preload = {"LD_PRELOAD": str(library)}

    @abstractmethod
    def run(self, folder: Path, **faults: str) -> Ended:
        """A run whose files lie in `folder`; it resumes if its journal is there. Changes fail as `faults` say
        (tests/native/faults.c).
        """

    def changes(self, folder: Path) -> int:
        """How many calls of an undisturbed run change something in `folder`."""
        count = folder.parent / f"{folder.name}-count"
        ended = self.run(folder, FAULT_COUNT=str(count))
        if ended.status != 0:
            raise RuntimeError(f"the undisturbed run failed: {ended.errors}")
        return count.stat().st_size


class NativeDisk(Disk):
    """Runs of `mobizo_runner train`."""

    def __init__(self, library: Path, program: Path, dataset: Path) -> None:
        super().__init__(library)
        self.settings = [program, dataset, "--steps=6", "--eval-every=2", "--quiet", "--resume"]

    def run(self, folder: Path, **faults: str) -> Ended:
        files = ["--journal", folder / "journal", "--adapter-out", folder / "adapter.safetensors"]
        environment = {**self.preload, "FAULT_FOLDER": f"{folder}/", **faults}
        process = start_runner(["train", *self.settings, *files], environment=environment)
        _, errors = process.communicate()
        return Ended(process.returncode, errors.splitlines())


class EagerDisk(Disk):
    """Runs of `mobizo train` in torch: children of one process that has imported everything."""

    def __init__(self, library: Path, arguments: Sequence[str]) -> None:
        super().__init__(library)
        self.arguments = [*arguments, "--resume"]
        self.parent = subprocess.Popen(
            [sys.executable, __file__, "--children"],
            env={**os.environ, **self.preload},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, **faults: str) -> Ended:
        arguments = ["train", *self.arguments, f"--out={folder}", f"--journal={folder / 'journal'}"]
        assert self.parent.stdin is not None and self.parent.stdout is not None
        request = {"arguments": arguments, "environment": {"FAULT_FOLDER": f"{folder}/", **faults}}
        print(json.dumps(request), file=self.parent.stdin, flush=True)
        return Ended(**json.loads(self.parent.stdout.readline()))

    def close(self) -> None:
        """Let the process end. It ends with its input."""
        self.parent.communicate()


def serve_children() -> None:
    """For each line of stdin, run `mobizo` with its arguments in a child, and print how it ended."""
    from mobizo_kernels.cli import main, train  # noqa: F401  before the first fork

    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile("w+") as errors:
            child = os.fork()
            if child == 0:
                os.environ.update(request["environment"])
                os.dup2(errors.fileno(), 2)
                os.dup2(2, 1)
                try:
                    main.run(request["arguments"])
                    status = 0
                except SystemExit as end:
                    status = int(end.code or 0)
                sys.stderr.flush()
                os._exit(status)
            _, ended = os.waitpid(child, 0)
            errors.seek(0)
            status = os.waitstatus_to_exitcode(ended)
            print(json.dumps({"status": status, "errors": errors.read().splitlines()}), flush=True)


def results(folder: Path) -> dict[str, bytes]:
    """The journal and the adapter of a run. Its other files tell times, and how often it was resumed."""
    found = [
        path for path in sorted(folder.rglob("*")) if path.name == "journal" or path.suffix == ".safetensors"
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def tiny_arguments(folder: Path) -> list[str]:
    """The arguments of `mobizo train` for its tiny task: three steps."""
    task = {**tiny_task(folder), "steps": 3, "start": "readout"}
    del task["stop_unsteady"]
    return [f"--{name.replace('_', '-')}={value}" for name, value in task.items()]


def disturbed(disk: Disk, root: Path, calls: Sequence[int]) -> Iterator[tuple[str, Ended]]:
    """Let each of `calls` fail, once and for good, and look at what is left and what resuming makes of it.

    Args:
        disk: that fails.
        root: empty; gets a folder a run.
        calls: from 1.

    Yields:
        What failed, and how the disturbed run ended.

    Raises:
        AssertionError: a run was killed or said more or less than a sentence, or its resumption failed or
            ended with other bytes.
    """
    whole = root / "whole"
    whole.mkdir()
    expected_run = disk.run(whole)
    assert expected_run.status == 0, expected_run.errors
    expected = results(whole)
    for call in calls:
        for code, stays in ((errno.EIO, "0"), (errno.ENOSPC, "1")):
            name = f"call {call}: {errno.errorcode[code]}{' from then on' if stays == '1' else ''}"
            folder = root / f"{call}-{code}"
            folder.mkdir()
            ended = disk.run(folder, FAULT_AT=str(call), FAULT_ERRNO=str(code), FAULT_STAYS=stays)
            assert ended.status in (0, 1, 2), f"{name}: exit code {ended.status}, {ended.errors}"
            if ended.status != 0:
                assert ended.errors and os.strerror(code) in ended.errors[-1], f"{name}: {ended.errors}"
                assert not any(line.startswith("Traceback") for line in ended.errors), (
                    f"{name}: {ended.errors}"
                )
            resumed = disk.run(folder)
            assert resumed.status == 0, f"{name}: {ended.errors}, then {resumed.errors}"
            got = results(folder)
            wrong = [file for file in expected if got.get(file) != expected[file]]
            assert not wrong, f"{name}: {wrong} are not those of the undisturbed run"
            yield name, ended
            shutil.rmtree(folder)


def main() -> int:
    import torch
    from programs import DEFAULTS, export_quietly, lora_config, tiny_dataset, tiny_llama

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        library, program, dataset = build(root), root / "tiny.pte", root / "data.safetensors"
        export_quietly(tiny_llama(1), program, targets=lora_config(), **{**DEFAULTS, "dynamic_length": False})
        tiny_dataset(dataset, torch.Generator().manual_seed(0))
        _report("mobizo_runner train", NativeDisk(library, program, dataset), root / "native")
        disk = EagerDisk(library, tiny_arguments(root))
        _report("mobizo train", disk, root / "eager")
        disk.close()
    return 0


def _report(name: str, disk: Disk, root: Path) -> None:
    (root / "count").mkdir(parents=True)
    calls = range(1, disk.changes(root / "count") + 1)
    ends = [ended for _, ended in disturbed(disk, root, calls)]
    failed = sum(ended.status != 0 for ended in ends)
    print(
        f"{name}: {len(calls)} calls failed, each once and for good; {failed} of {len(ends)} runs ended with"
    )
    print("one sentence, and every run that resumed them has the bytes of one that was not disturbed")


if __name__ == "__main__":
    if sys.argv[1:] == ["--children"]:
        serve_children()
    else:
        sys.exit(main())
