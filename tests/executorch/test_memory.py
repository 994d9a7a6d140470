"""The runner where memory is scarce: one sentence, not a signal, and a journal to go on with."""

from __future__ import annotations

from pathlib import Path

from crash import run_to_end, start_runner


def test_memory_that_is_exhausted(program: Path, dataset: Path, tmp_path: Path) -> None:
    """Wherever it is: as methods are loaded, in a validation, in a step."""

    def arguments(name: str) -> list[str | Path]:
        journal, adapter = tmp_path / f"{name}.journal", tmp_path / f"{name}.safetensors"
        files = [f"--journal={journal}", f"--adapter-out={adapter}"]
        return ["train", program, dataset, "--steps=4", "--eval-every=2", "--quiet", "--resume", *files]

    def ended(kibibytes: int, name: str) -> tuple[int, str]:
        process = start_runner(arguments(name), shell=f'ulimit -v {kibibytes}; exec "$@"')
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    fails, works = 0, 2**20
    while works - fails > 16:
        middle = (fails + works) // 2
        if ended(middle, str(middle))[0] == 0:
            works = middle
        else:
            fails = middle
    said = set()
    for kibibytes in range(works - 1024, works, 64):
        status, errors = ended(kibibytes, "scarce")
        if status == 0:
            continue  # what is asked for depends on where the system puts things
        assert status in (1, 2) and errors.startswith("mobizo_runner: ") and errors.count("\n") == 1, (
            f"{kibibytes} KiB of {works}: {status}, {errors}"
        )
        said.add(errors)
    assert len(said) > 1
    for name in ("scarce", "whole"):
        run_to_end(arguments(name))
    for kind in ("journal", "safetensors"):
        assert (tmp_path / f"scarce.{kind}").read_bytes() == (tmp_path / f"whole.{kind}").read_bytes()
