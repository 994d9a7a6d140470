"""A night in minutes: 20,000 steps of a tiny model, in torch and in mobizo_runner.

    python tests/support/soak.py [--steps 20000]

Memory has to stay near what it was after a tenth of the steps, the journal has to give the adapter back to
the bit, and the adapter has to be near the sum of all steps in float64. Prints what it saw; exit code 0 if
all held.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from crash import start_runner
from programs import DEFAULTS, eager_twin, export_quietly, lora_config, tiny_dataset, tiny_llama

import mobizo_kernels as mobizo
from mobizo_kernels import ops
from mobizo_kernels.journal import read_journal, replay
from mobizo_kernels.lora import adapter_layers, load_adapter, peft_from_device
from mobizo_kernels.optim import query_seeds

MOST_GROWTH = 1024
"""Bytes that a process may have more for each step: a bare forward of transformers leaves some, too."""


def resident(process: int) -> int:
    """Bytes of memory that a process holds. This one first gives back what it has freed and may use again,
    which is more or less from run to run.
    """
    if process == os.getpid():
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    steps: int = parser.parse_args().steps
    torch.set_num_threads(1)
    for engine, run in {"torch": eager, "mobizo_runner": native}.items():
        with tempfile.TemporaryDirectory() as scratch:
            journal = Path(scratch, "journal")
            start = time.monotonic()
            tuned, growth = run(Path(scratch), journal, steps)
            seconds = time.monotonic() - start
            again = twin(engine)
            assert replay(again, journal) == steps
            assert all(map(torch.equal, adapters(tuned), adapters(again))), f"{engine}: the replay differs"
            drift = distance(tuned, in_float64(journal, twin(engine)))
        print(
            f"{engine}: {steps} steps in {seconds:.0f} s, {growth / 1024:+.0f} KiB since the first tenth, "
            f"replay equal, {drift:.1e} (relative) from the sum in float64"
        )
        assert growth <= MOST_GROWTH * steps and drift < 1e-3, engine
    return 0


def twin(engine: str) -> Any:
    """The model of a run before its first step."""
    return eager_twin() if engine == "mobizo_runner" else mobizo.wrap(tiny.llama(), lora_config())


def eager(folder: Path, journal: Path, steps: int) -> tuple[Any, int]:
    """The tuned model, and by how much memory grew."""
    model, rng = twin("torch"), torch.Generator().manual_seed(0)
    lengths = random.Random(0)
    zo = mobizo.ZerothOrder(model, queries=4, eps=0.05, lr=0.02, distribution="rademacher", journal=journal)
    before = 0
    for step in range(steps):
        if step == steps // 10:
            before = resident(os.getpid())
        zo.step(tiny.batch(rng, [lengths.randint(4, 20) for _ in range(3)]))
    assert zo.journal is not None
    zo.journal.close()
    return model, resident(os.getpid()) - before


def native(folder: Path, journal: Path, steps: int) -> tuple[Any, int]:
    """The same of the native trainer, in a process of its own."""
    program, dataset, out = folder / "tiny.pte", folder / "data.safetensors", folder / "adapter.safetensors"
    export_quietly(tiny_llama(1), program, targets=lora_config(), **DEFAULTS)
    tiny_dataset(dataset, torch.Generator().manual_seed(0))
    arguments = [
        f"--steps={steps}",
        "--no-stop-unsteady",
        "--quiet",
        "--journal",
        journal,
        "--adapter-out",
        out,
    ]
    process = start_runner(["train", program, dataset, *arguments])
    tenth = last = 0
    while process.poll() is None:
        done = len(read_journal(journal)[1]) if journal.exists() else 0
        last = resident(process.pid) or last
        tenth = tenth or (last if done >= steps // 10 else 0)
        time.sleep(0.2)
    assert process.returncode == 0, process.communicate()[1]
    model = twin("mobizo_runner")
    peft_from_device(out, folder / "peft")
    return load_adapter(model, folder / "peft"), last - tenth


def adapters(model: Any) -> list[torch.Tensor]:
    return [layer.lora_b for layer in adapter_layers(model).values()]


def in_float64(journal: Path, model: Any) -> Callable[[int], torch.Tensor]:
    """LoRA-B number i of `model` after the steps of a journal, summed in float64."""
    header, records = read_journal(journal)

    def summed(index: int) -> torch.Tensor:
        parameter = header.parameters[index]
        total = adapters(model)[index].double()
        for step, record in enumerate(records):
            total *= record.decay
            for seed, coefficient in zip(
                query_seeds(header.run_seed, step, header.queries), record.coeffs, strict=True
            ):
                z = ops.noise(list(parameter.shape), seed, parameter.stream, header.distribution)
                total += coefficient.double() * z.double()
        return total

    return summed


def distance(model: Any, expected: Callable[[int], torch.Tensor]) -> float:
    """The largest of |B - expected| / |expected| over the adapters."""
    distances = []
    for index, lora_b in enumerate(adapters(model)):
        right = expected(index)
        distances.append(float((lora_b.double() - right).norm() / right.norm()))
    return max(distances)


if __name__ == "__main__":
    sys.exit(main())
