"""Trains one program on this machine and on emulated ARM CPUs, lets it write there, and compares.

arm_training.sh builds both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from programs import lora_config  # noqa: E402
from tiny_texts import tokenizer  # noqa: E402
from trainer_files import llama, make_files  # noqa: E402

from mobizo_kernels import wrap  # noqa: E402
from mobizo_kernels.journal import read_journal, replay  # noqa: E402
from mobizo_kernels.lora import adapter_layers  # noqa: E402

STEPS, C_STEPS = 6, 2
TOKENS = 12
PROMPTS = ("The film is dull", "Every scene of it feels fresh and warm, but slow.")
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


def replay_everywhere(machines: list[Machine], program: Path, journal: Path, folder: Path) -> Path:
    """One journal, in torch and on each machine: the same bytes, those of the adapter that is returned."""
    model = wrap(llama(), lora_config())
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
    return adapter


def write_everywhere(machines: list[Machine], program: Path, adapter: Path, folder: Path) -> None:
    """What was trained is heard, and in the same words on each machine."""
    words = folder / "tokenizer.json"
    own = Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())
    # Without the expression that splits words: the build for ARM has no PCRE2.
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.save(str(words))
    asked = ["mobizo_runner", "generate", program, "--tokenizer", words, "--raw", "--json"]
    asked += ["--max-new-tokens", TOKENS, "--threads", 2, *PROMPTS]

    def tokens(machine: Machine, *more: object) -> list[list[int]]:
        answers = json.loads(machine.run(*map(str, [*asked, *more])).splitlines()[-1])["answers"]
        return [answer["tokens"] for answer in answers]

    first = tokens(machines[0], "--adapter", adapter)
    assert [len(answer) for answer in first] == [TOKENS] * len(PROMPTS), first
    if first == tokens(machines[0]):
        sys.exit("with the adapter the program writes what it does without")
    for machine in machines:
        if tokens(machine, "--adapter", adapter) != first:
            sys.exit(f"{machine.name}: the program writes other tokens than on {machines[0].name}")
        print(f"{machine.name}: the tuned program writes {TOKENS} tokens behind each prompt, the same ones")


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
    with ThreadPoolExecutor() as pool:
        told = pool.map(lambda machine: machine.run("trainer_tests", KNOWN_ANSWERS), machines)
        for machine, output in zip(machines, told, strict=True):
            print(f"{machine.name}: {output.splitlines()[-1]}")
    with tempfile.TemporaryDirectory() as scratch:
        program, dataset = make_files(Path(scratch))
        journal = train_everywhere(machines, program, dataset, Path(scratch))
        adapter = replay_everywhere(machines, program, journal, Path(scratch))
        write_everywhere(machines, program, adapter, Path(scratch))
        train_in_c(machines, program, dataset, Path(scratch))


if __name__ == "__main__":
    main()
