"""What an installation does without a compiler: the command, an op, a step, a program.

tests/wheel.sh and cibuildwheel run it. It asks for nothing but the package and its requirements.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

import mobizo_kernels as mobizo
from mobizo_kernels import reference

WITH_EXECUTORCH = (Path(mobizo.__file__).parent / "executorch/_built_for").exists()
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++")


def check_commands() -> None:
    """`mobizo` and, with ExecuTorch, `mobizo_runner`, of the environment that runs this file."""
    folder = Path(sys.executable).parent
    told = subprocess.run([folder / "mobizo", "--version"], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["mobizo", version("mobizo-kernels")], told
    if WITH_EXECUTORCH:
        subprocess.run([folder / "mobizo_runner", "info", "--help"], capture_output=True, check=True)


def check_op() -> None:
    seeds, coeffs = torch.tensor([3, -5]), torch.tensor([0.5, -0.25])
    changed = mobizo.ops.perturb_(torch.zeros(7, 9), seeds, coeffs, stream=11)
    expected = reference.perturb(torch.zeros(7, 9), seeds, coeffs, stream=11)
    assert torch.equal(changed, expected), mobizo.cpu_capability()


def small_model() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def check_step() -> None:
    import peft

    model = small_model()
    mobizo.wrap(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    zo = mobizo.ZerothOrder(model, queries=2, eps=1e-2, lr=1e-2)
    tokens = torch.randint(64, (2, 6))
    report = zo.step({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens})
    moved = [p for name, p in model.named_parameters() if "lora_b" in name.lower() and p.abs().max() > 0]
    assert torch.isfinite(torch.as_tensor(report.loss)) and moved, report


def check_program() -> None:
    """A program of one op of the package is made, and the runtime of the `executorch` package runs it."""
    from executorch.exir import to_edge
    from executorch.runtime import Runtime

    from mobizo_kernels.executorch import read_description  # importing this registers the ops

    class Noise(torch.nn.Module):
        def forward(self, seed: torch.Tensor) -> torch.Tensor:
            return torch.ops.mobizo.noise((3, 5), seed, 7)

    seed = torch.tensor([42])
    program = to_edge(torch.export.export(Noise(), (seed,))).to_executorch()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "noise.pte")
        file.write_bytes(program.buffer)
        (drawn,) = Runtime.get().load_program(file).load_method("forward").execute((seed,))
        assert torch.equal(drawn, mobizo.ops.noise((3, 5), seed, 7))
        try:  # of the native trainer
            read_description(file)
        except ValueError as error:
            assert str(file) in str(error), error
        else:
            raise AssertionError("a program that describes itself was not expected")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-compiler", action="store_true", help="fail if there is a compiler on PATH")
    arguments = parser.parse_args()
    found = [name for name in COMPILERS if shutil.which(name)]
    assert not (arguments.no_compiler and found), f"on PATH: {found}"
    assert Path(mobizo.__file__).is_relative_to(sys.prefix), f"not the installed package: {mobizo.__file__}"
    check_commands()
    check_op()
    check_step()
    if WITH_EXECUTORCH:
        check_program()
    print(f"mobizo-kernels {version('mobizo-kernels')}, torch {torch.__version__}: {mobizo.cpu_capability()}")
    print(f"PATH={os.environ.get('PATH')}")


if __name__ == "__main__":
    main()
