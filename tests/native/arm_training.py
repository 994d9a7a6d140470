"""Trains one program on this machine and on emulated ARM CPUs, and compares. arm_training.sh builds both."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from programs import (  # noqa: E402
    DEFAULTS,
    eager_twin,
    export_quietly,
    lora_config,
    tiny_dataset,
    tiny_llama,
)

from mobizo_kernels.journal import read_journal, replay  # noqa: E402
from mobizo_kernels.lora import adapter_layers  # noqa: E402

LAYERS, STEPS, C_STEPS = 2, 6, 2
LOSS_TOLERANCE = 1e-5
CPUS = ("max,sme=off", "cortex-a76")  # plain max has SME, with which XNNPACK is slow under emulation
KNOWN_ANSWERS = Path(__file__).parents[1] / "support" / "noise_vectors.json"


@dataclass(frozen=True)
class Machine:
    """A build, and the words before its programs that run them."""

    name: str
    build: Path
    start: list[str]

    def run(self, program: str, *arguments: object) -> str:
        """The output of a program; the script ends if it fails."""
        command = [*self.start, str(self.build / program), *map(str, arguments)]
        done = subprocess.run(command, text=True, capture_output=True)
        if done.returncode != 0:
            sys.exit(f"{self.name}: {program} exited with {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


def losses_of(log: Path) -> torch.Tensor:
    """What --log recorded: float64 [steps, G]."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return torch.tensor([line["step"]["losses"] for line in lines if "step" in line], dtype=torch.float64)


def make_files(folder: Path) -> tuple[Path, Path]:
    program, dataset = folder / "llama.pte", folder / "data.safetensors"
    export_quietly(tiny_llama(LAYERS), program, targets=lora_config(), **{**DEFAULTS, "queries": 4})
    return program, tiny_dataset(dataset, torch.Generator().manual_seed(0))


def train_everywhere(machines: list[Machine], program: Path, dataset: Path, folder: Path) -> Path:
    """Each goes its own way through the same steps; the journal of the first."""
    journals, losses = [], []
    for machine in machines:
        journals.append(folder / f"{machine.name}.journal")
        log = folder / f"{machine.name}.jsonl"
        machine.run(
            "mobizo_runner", "train", program, dataset, "--adapter-out", folder / "trained.safetensors",
            "--start", "zero", "--steps", STEPS, "--eval-every", 3, "--journal", journals[-1], "--log", log,
            "--threads", 2,
        )  # fmt: skip
        losses.append(losses_of(log))
        assert losses[-1].shape == (STEPS, 8), f"{machine.name}: losses of shape {tuple(losses[-1].shape)}"
        error = (losses[-1] - losses[0]).abs().max().item()
        print(f"{machine.name}: {STEPS} steps of 8 losses, at most {error:.1e} from {machines[0].name}")
        if not error <= LOSS_TOLERANCE:
            sys.exit(f"{machine.name}: the losses are not within {LOSS_TOLERANCE}")
    return journals[0]


def train_in_c(machines: list[Machine], program: Path, dataset: Path, folder: Path) -> None:
    """The app of examples/c by libmobizo.so: each trains, and goes on from the journal of the first, which
    leaves nothing to do but to replay it, to the same file.
    """
    losses, digests = [], []
    for machine in machines:
        own = folder / f"c-{machine.name}.journal"
        machine.run("c_example", program, dataset, folder / "own.safetensors", own, C_STEPS)
        losses.append(read_journal(own)[1].losses)
        error = (losses[-1] - losses[0]).abs().max().item()
        if not error <= LOSS_TOLERANCE:
            sys.exit(f"{machine.name}: in C the losses are {error:.1e} from those of {machines[0].name}")
        shared, adapter = folder / "shared.journal", folder / "shared.safetensors"
        shutil.copy(folder / f"c-{machines[0].name}.journal", shared)
        machine.run("c_example", program, dataset, adapter, shared, C_STEPS)
        digests.append(hashlib.blake2b(adapter.read_bytes(), digest_size=8).hexdigest())
        print(f"{machine.name}: the app in C, losses at most {error:.1e} off, adapter {digests[-1]}")
    if len(set(digests)) != 1:
        sys.exit("the app in C makes other adapters of one journal")


def replay_everywhere(machines: list[Machine], program: Path, journal: Path, folder: Path) -> None:
    """One journal, in torch and on each machine: the same bytes."""
    model = eager_twin(LAYERS)
    assert replay(model, journal) == STEPS
    torch_b = {
        f"base_model.model.{name}.lora_B.weight": layer.lora_b.detach()
        for name, layer in adapter_layers(model).items()
    }
    assert all(b.abs().max() > 0 for b in torch_b.values())
    adapter = folder / "replayed.safetensors"
    for machine in machines:
        adapter.unlink(missing_ok=True)
        machine.run("mobizo_runner", "replay", program, journal, "--adapter-out", adapter)
        tensors = load_file(adapter)
        for name, b in torch_b.items():
            if not torch.equal(tensors[name].view(torch.int32), b.view(torch.int32)):
                sys.exit(f"{machine.name}: replay gives other bits than torch in {name}")
        print(f"{machine.name}: the journal replays to the bits of torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("native_build", "native_libraries", "arm_build", "arm_libraries"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    emulator = ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"]
    emulator += ["-E", f"LD_LIBRARY_PATH={options.arm_libraries}"]
    machines = [
        Machine(
            platform.machine(), options.native_build, ["env", f"LD_LIBRARY_PATH={options.native_libraries}"]
        )
    ]
    machines += [Machine(cpu, options.arm_build, [*emulator, "-cpu", cpu]) for cpu in CPUS]
    for machine in machines:
        print(f"{machine.name}: {machine.run('trainer_tests', KNOWN_ANSWERS).splitlines()[-1]}")
    with tempfile.TemporaryDirectory() as scratch:
        program, dataset = make_files(Path(scratch))
        journal = train_everywhere(machines, program, dataset, Path(scratch))
        replay_everywhere(machines, program, journal, Path(scratch))
        train_in_c(machines, program, dataset, Path(scratch))


if __name__ == "__main__":
    main()
