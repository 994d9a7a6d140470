"""Every instruction set that this machine has, each in a process of its own: MOBIZO_CPU is read once."""

from __future__ import annotations

import inspect
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import DISTRIBUTIONS, DTYPES, assert_close_to_mp_lora, assert_same_bits, directions
from mp_outer_problems import OuterProblem, assert_close_to_mp_outer

from mobizo_kernels import ops, reference

X86 = platform.machine() in ("x86_64", "AMD64")


def instruction_sets() -> list[str]:
    if not X86:
        return ["scalar", "neon"]
    capability = torch.backends.cpu.get_cpu_capability()
    return ["scalar"] + ["avx2"] * (capability in ("AVX2", "AVX512")) + ["avx512"] * (capability == "AVX512")


def optimizer_steps(
    param: torch.Tensor, seeds: torch.Tensor, coeffs: torch.Tensor, distribution: str
) -> list[torch.Tensor]:
    """A parameter after two steps of each optimizer, all state, and the norm of each step."""
    param, lr, norms = param.clone(), torch.tensor([0.01]), []
    momentum, exp_avg, exp_avg_sq = (torch.zeros(param.shape) for _ in range(3))
    numbers, rest = (0.9, 0.999, 1e-8), (0.99, distribution)
    for stream in (4, 5):
        directions = (seeds + stream, coeffs)
        norms.append(ops.zo_momentum(param, momentum, *directions, stream, 0.9, *rest))
        norms.append(ops.zo_adam(param, exp_avg, exp_avg_sq, *directions, lr, stream, *numbers, *rest))
        norms.append(ops.zo_sign(param, *directions, lr, stream, *rest))
    return [param, momentum, exp_avg, exp_avg_sq, *norms]


# Runs in the child: the noise and updates of every kind, and mp_lora and mp_outer_ on the parent's problems.
CHILD = f"""
import sys, torch
from mobizo_kernels import ops
{inspect.getsource(optimizer_steps)}
problem, result = sys.argv[1:]
given = torch.load(problem)
out = dict(name=torch.ops.mobizo.cpu_capability(), noise=[], perturb=[], norm=[], optimizers=[], mp_lora=[])
out["mp_outer"] = [(base.clone(), x, *tried) for base, x, _, _, *tried in given["mp_lora"]]
for arguments in out["mp_outer"]:
    ops.mp_outer_(*arguments, 4)
for distribution in {DISTRIBUTIONS}:
    out["noise"].append(ops.noise([41, 123], torch.tensor(-3), 4, distribution))
    for param in given["params"]:
        seeds, coeffs = given["directions"]
        out["perturb"].append(ops.perturb_(param.clone(), seeds, coeffs, 4, 0.9, distribution))
        out["norm"].append(ops.zo_update(param.clone(), seeds, coeffs, 4, 0.9, distribution))
        out["optimizers"].append(optimizer_steps(param, seeds, coeffs, distribution))
    for arguments in given["mp_lora"]:
        out["mp_lora"].append(ops.mp_lora(*arguments, 0.5, 4, distribution))
torch.save(out, result)
"""


def run_child(program: str, cpu: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "MOBIZO_CPU": cpu},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("cpu", instruction_sets())
def test_same_values(cpu: str, rng: torch.Generator, tmp_path: Path) -> None:
    params = [torch.randn(33, 125, generator=rng).to(dtype) for dtype in DTYPES]
    seeds, coeffs = directions(5, rng)
    problems = []
    for dtype in DTYPES:
        for rows, in_features, out_features, rank, copies in (
            (30, 65, 131, 5, 1),
            (40, 33, 70, 16, 2),  # two groups for each seed
            (10, 20, 40, 100, 1),
        ):
            problems.append(
                (
                    torch.randn(rows, out_features, generator=rng).to(dtype),
                    torch.randn(rows, in_features, generator=rng).to(dtype),
                    torch.randn(rank, in_features, generator=rng),
                    torch.randn(out_features, rank, generator=rng),
                    seeds.repeat(copies),
                    torch.cat([coeffs, -coeffs])[: 5 * copies],
                )
            )
    given = {"params": params, "directions": (seeds, coeffs), "mp_lora": problems}
    torch.save(given, tmp_path / "problem.pt")
    done = run_child(CHILD, cpu, tmp_path / "problem.pt", tmp_path / "result.pt")
    assert done.returncode == 0, done.stderr
    got = torch.load(tmp_path / "result.pt")
    assert got["name"] == cpu
    for distribution in DISTRIBUTIONS:
        expected = torch.from_numpy(reference.noise([41, 123], -3, 4, distribution))
        assert_same_bits(got["noise"].pop(0), expected)
        for param in params:
            args = (param, seeds, coeffs, 4, 0.9, distribution)
            assert_same_bits(got["perturb"].pop(0), reference.perturb(*args))
            # This process runs another instruction set: the norms agree to the bit across all of them.
            assert_same_bits(got["norm"].pop(0), ops.zo_update(param.clone(), *args[1:]))
            stepped = optimizer_steps(param, seeds, coeffs, distribution)
            for one, other in zip(got["optimizers"].pop(0), stepped, strict=True):
                assert_same_bits(one, other)
        for arguments in problems:
            assert_close_to_mp_lora(got["mp_lora"].pop(0), *arguments, 0.5, 4, distribution)
    for (moved, *_), (base, x, _, _, *tried) in zip(got["mp_outer"], problems, strict=True):
        assert_close_to_mp_outer(moved, OuterProblem(base, x, *tried, 4))


@pytest.mark.parametrize("cpu", ["nonsense", "AVX2", "neon" if X86 else "avx512"])
def test_refuses_what_the_machine_lacks(cpu: str) -> None:
    program = "import torch; from mobizo_kernels import ops; ops.noise([3], torch.tensor(1), 2)"
    done = run_child(program, cpu)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert "MOBIZO_CPU" in message
    assert f"'{cpu}'" in message
    assert "scalar" in message


def test_the_best_is_chosen_without_being_asked() -> None:
    program = "import torch, mobizo_kernels.ops; print(torch.ops.mobizo.cpu_capability())"
    done = run_child(program, "")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == instruction_sets()[-1]
