"""Commands on a disk that fails: every call that changes a file, one after the other, and the same again.

    python tests/support/faults.py [NAME ...]

Whatever fails, and whether the disk recovers or stays full: a command ends with one sentence and loses
nothing, and the same command once more ends with the bytes of one that was never disturbed. NAME is of
fault_tasks.py; all by default. As many at a time as there are cores, eight at most.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from crash import start_runner

NATIVE = Path(__file__).resolve().parents[1] / "native"
MOST_SECONDS = 1800
"""After which a command counts as hanging, also on a machine that has other work."""

Command = Callable[[Path], Sequence[str | Path]]
"""Arguments of a command, from the folder that it writes to. Repeated, it resumes or replaces."""


@dataclass(frozen=True)
class Ended:
    """A command: its exit code, less than 0 if a signal killed it, and the lines that it wrote to stderr."""

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
    """Starts a command on a disk that fails."""

    @abstractmethod
    def run(self, folder: Path, **faults: str) -> Ended:
        """The command, writing to `folder`, where changes fail as `faults` say (tests/native/faults.c)."""

    def changes(self, folder: Path) -> int:
        """How many calls of an undisturbed run change something in `folder`."""
        count = folder.parent / f"{folder.name}-count"
        ended = self.run(folder, FAULT_COUNT=str(count))
        if ended.status != 0:
            raise RuntimeError(f"the undisturbed run failed: {ended.errors}")
        return count.stat().st_size


class RunnerDisk(Disk):
    """A command of `mobizo_runner`."""

    def __init__(self, library: Path, command: Command) -> None:
        self.library, self.command = library, command

    def run(self, folder: Path, **faults: str) -> Ended:
        environment = {"LD_PRELOAD": str(self.library), "FAULT_FOLDER": f"{folder}/", **faults}
        process = start_runner(self.command(folder), environment=environment)
        try:
            _, errors = process.communicate(timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Ended(-signal.SIGALRM, ["it hangs"])
        return Ended(process.returncode, errors.splitlines())


class Children:
    """Processes that have imported everything and computed nothing; commands in Python are children of them.

    Args:
        library: that is preloaded.
        count: of the processes, each of which runs one command at a time.
    """

    def __init__(self, library: Path, count: int = 1) -> None:
        self._idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        self._processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--children"],
                env={**os.environ, "LD_PRELOAD": str(library)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(count)
        ]
        for process in self._processes:
            self._idle.put(process)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.communicate()  # it ends with its input

    def run(self, arguments: Sequence[str | Path], environment: dict[str, str]) -> Ended:
        """A command of `mobizo`, or one of `fault_tasks`, with variables that it has more; any thread may."""
        process = self._idle.get()
        assert process.stdin is not None and process.stdout is not None
        request = {"arguments": list(map(str, arguments)), "environment": environment}
        print(json.dumps(request), file=process.stdin, flush=True)
        ended = Ended(**json.loads(process.stdout.readline()))
        self._idle.put(process)
        return ended


class PythonDisk(Disk):
    """A command of `mobizo`, or one of `fault_tasks`."""

    def __init__(self, children: Children, command: Command) -> None:
        self.children, self.command = children, command

    def run(self, folder: Path, **faults: str) -> Ended:
        return self.children.run(self.command(folder), {"FAULT_FOLDER": f"{folder}/", **faults})


def serve_children() -> None:
    """For each line of stdin, run a command with its arguments in a child, and print how it ended."""
    from fault_tasks import run_task

    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile("w+") as errors:
            child = os.fork()
            if child == 0:
                signal.alarm(MOST_SECONDS)
                os.environ.update(request["environment"])
                os.dup2(errors.fileno(), 2)
                os.dup2(2, 1)
                status = run_task(request["arguments"])
                sys.stdout.flush()  # both are `errors`
                sys.stderr.flush()
                os._exit(status)
            _, ended = os.waitpid(child, 0)
            errors.seek(0)
            status = os.waitstatus_to_exitcode(ended)
            print(json.dumps({"status": status, "errors": errors.read().splitlines()}), flush=True)


def results(folder: Path) -> dict[str, bytes]:
    """What a command made. Its other files tell times, and how often it was resumed."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.name.endswith(("journal", ".safetensors", ".pte", "tokenizer.json", "adapter_config.json"))
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def undisturbed(disk: Disk, root: Path) -> dict[str, bytes]:
    """What a command makes on a disk that works. Raises AssertionError if it fails."""
    (whole := root / "whole").mkdir()
    ended = disk.run(whole)
    assert ended.status == 0, ended.errors
    return results(whole)


def disturb(
    disk: Disk, root: Path, expected: Mapping[str, bytes], call: int, code: int, *, stays: bool
) -> Ended:
    """Let one call fail, and look at what the same command makes of what is left.

    Args:
        disk: that fails.
        root: gets a folder, which goes again unless something was wrong.
        expected: results of a run that was never disturbed.
        call: which fails, from 1.
        code: the system's error.
        stays: whether all later ones fail, too.

    Returns:
        How the disturbed run ended.

    Raises:
        AssertionError: the run was killed, hung, or did not end with the system's own words; or the same
            command once more failed, ended with other bytes, or left a file that was not ready.
    """
    name = f"call {call}: {errno.errorcode[code]}{' from then on' if stays else ''}"
    folder = root / f"{call}-{code}"
    folder.mkdir()
    ended = disk.run(folder, FAULT_AT=str(call), FAULT_ERRNO=str(code), FAULT_STAYS=str(int(stays)))
    assert ended.status in (0, 1, 2), f"{name}: exit code {ended.status}, {ended.errors}"
    if ended.status != 0:
        assert ended.errors and os.strerror(code) in ended.errors[-1], f"{name}: {ended.errors}"
        assert not any(line.startswith("Traceback") for line in ended.errors), f"{name}: {ended.errors}"
    resumed = disk.run(folder)
    assert resumed.status == 0, f"{name}: {ended.errors}, then {resumed.errors}"
    got = results(folder)
    wrong = [file for file in expected if got.get(file) != expected[file]]
    assert not wrong, f"{name}: {wrong} are not those of the undisturbed run"
    scratch = [path.name for path in folder.rglob(".*.mobizo")]
    assert not scratch, f"{name}: {scratch} are left"
    shutil.rmtree(folder)
    return ended


FAULTS: tuple[tuple[int, bool], ...] = ((errno.EIO, False), (errno.ENOSPC, True))
"""What happens to each call: it fails once, or the disk is full from then on."""


def disturbed(disk: Disk, root: Path, calls: Sequence[int]) -> list[Ended]:
    """Let each of `calls` fail in each of the ways of `FAULTS`. Raises AssertionError as :func:`disturb`."""
    expected = undisturbed(disk, root)
    return [
        disturb(disk, root, expected, call, code, stays=stays) for call in calls for code, stays in FAULTS
    ]


def report(name: str, disk: Disk, root: Path, jobs: int) -> bool:
    """Disturb every call of a command, `jobs` at a time, and print what was seen; whether all was as it
    should be.
    """
    (root / "count").mkdir(parents=True)
    calls, began = disk.changes(root / "count"), time.monotonic()
    expected, ends, wrong = undisturbed(disk, root), list[Ended](), 0
    with ThreadPoolExecutor(jobs) as pool:
        disturbed = [
            pool.submit(disturb, disk, root, expected, call, code, stays=stays)
            for call in range(1, calls + 1)
            for code, stays in FAULTS
        ]
        for one in disturbed:
            try:
                ends.append(one.result())
            except AssertionError as error:
                wrong += 1
                print(f"{name}: {error}", flush=True)
    failed = sum(ended.status != 0 for ended in ends)
    print(
        f"{name}: {calls} calls failed, each once and for good; {failed} of {2 * calls} runs ended with one "
        f"sentence, {len(ends)} with the right bytes when run again, {wrong} wrong; "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    return not wrong


def main(names: Sequence[str]) -> int:
    from fault_tasks import RUNNER, commands

    good, jobs = True, min(8, os.cpu_count() or 1)  # each holds half a gigabyte
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        library = build(root)
        with Children(library, jobs) as children:
            for name, command in commands(children, root).items():
                if names and name not in names:
                    continue
                disk = RunnerDisk(library, command) if name in RUNNER else PythonDisk(children, command)
                good &= report(name, disk, root / name.replace(" ", "-"), jobs)
    return 0 if good else 1


if __name__ == "__main__":
    if sys.argv[1:] == ["--children"]:
        serve_children()
    else:
        sys.exit(main(sys.argv[1:]))
