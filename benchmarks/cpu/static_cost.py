"""What the inner loops of the CPU kernels cost by a model of the processor, ARM beside x86.

    python -m benchmarks.cpu.static_cost [--json FILE]

Compiles the loops with the build's own flags, finds them in the assembly and asks llvm-mca for the cycles of
one turn when all data is in the first-level cache. Below them stands the measured time of ops.noise on this
machine: one thread, the output in the second-level cache.

An element is a value of noise, or a multiply-add of mp_lora: `dot` is the inner loop of x A^T, `expand` that
of the product with the perturbed B. One Rademacher value costs `words` and `signs` together. With directions
"outer", `outer_expand` is the product with B that all groups share, `outer_perturb` the sum over the seeds of
perturb_, an element of it being one seed's part of one value, and `outer_dot` x . v of mp_outer_.

Neoverse V2 is the server form of Cortex-X3. LLVM 19 models it; LLVM 14 does not know it and takes Cortex-X2
for a Cortex-A57. LLVM's Sapphire Rapids issues one 512-bit multiply-add a cycle where the chip issues two:
the AVX-512 costs of mp_lora are about twice the true ones.

Needs an x86-64 machine with cmake, g++, Debian's g++-aarch64-linux-gnu and llvm-mca, the newer the better.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import Timing, Variant, time_variants
from mobizo_kernels import ops
from mobizo_kernels.ops.checks import DISTRIBUTIONS

ROOT = Path(__file__).resolve().parents[2]
MEASURED_VALUES = 1 << 18  # 1 MiB of float32


@dataclass(frozen=True)
class Target:
    """An instruction set, the float32 lanes of a register, and the processors to model, best first."""

    isa: str
    lanes: int
    triple: str
    processors: tuple[str, ...]
    cmake: tuple[str, ...] = ()


X86 = ("x86_64", ("sapphirerapids", "icelake-server"))
TARGETS = (
    Target(
        "neon", 4, "aarch64", ("neoverse-v2", "cortex-x2"), ("--toolchain", "cmake/aarch64-linux-gnu.cmake")
    ),
    Target("avx2", 8, *X86),
    Target("avx512", 16, *X86),
)
# The loops of kernels, by name: source file and function.
KERNELS = {
    "dot": ("mp_lora", "mp_lora_shrink"),
    "expand": ("mp_lora", "mp_lora_expand"),
    "outer_expand": ("mp_lora_outer", "mp_lora_outer"),
    "outer_perturb": ("perturb", "perturb"),
    "outer_dot": ("mp_outer", "mp_outer"),
}


@dataclass(frozen=True)
class Cost:
    """The cost of one element of a loop, on average over its turns."""

    loop: str
    isa: str
    processor: str
    instructions: float
    cycles: float


def output_of(*command: str, stdin: str | None = None, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, input=stdin, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"static_cost: {shlex.join(command)} failed:\n{done.stderr}")
    return done.stdout


def assembly(target: Target, source: Path) -> str:
    """`source` compiled as the build compiles mp_lora.cpp for the target."""
    build = ROOT / "build" / f"static_cost-{target.triple}"
    options = ("-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *target.cmake)
    output_of("cmake", "-S", "csrc", "-B", str(build), *options)
    for entry in json.loads((build / "compile_commands.json").read_text()):
        command = shlex.split(entry["command"])
        if f"-DMOBIZO_ISA_{target.isa.upper()}" in command and entry["file"].endswith("mp_lora.cpp"):
            flags = command[1 : command.index("-o")]
            return output_of(command[0], *flags, "-S", "-o", "-", str(source), cwd=Path(entry["directory"]))
    raise SystemExit(f"static_cost: the build does not compile mp_lora.cpp for {target.isa}")


def inner_loops(text: str, function: str) -> list[list[str]]:
    """The instructions of the loops without a label inside, in functions with `function` in their name."""
    loops: list[list[str]] = []
    name, label = "", ""
    body: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"([\w.]+):", line):
            label, body = match[1], []
            name = name if label.startswith(".L") else label
        elif re.match(r"\t[a-z]", line):
            body.append(line)
            if label.startswith(".L") and re.search(rf"\s{re.escape(label)}$", line):
                if function in name:
                    loops.append(body)
                label, body = "", []
    return loops


def count(body: list[str], mnemonic: str) -> int:
    return sum(re.match(rf"\t{mnemonic}\b", line) is not None for line in body)


def loops_of(target: Target) -> dict[str, tuple[list[str], int]]:
    """By name: the instructions of one turn, and how many elements it makes."""
    noise = assembly(target, ROOT / "benchmarks/cpu/static_cost.cpp")
    loops = {}
    for name in ("gaussian", "rademacher_words", "rademacher_signs"):
        elements = re.search(rf"^{name}_elements:\n\s*\.(?:word|long)\s+(\d+)", noise, re.MULTILINE)
        assert elements is not None
        loops[name] = (max(inner_loops(noise, f"{name}_loop"), key=len), int(elements[1]))
    neon = target.isa == "neon"
    fma, add = ("fmla", "fadd") if neon else (r"vfmadd\d+ps", "vaddps")
    for name, (kernel, function) in KERNELS.items():
        # The largest tile; the polynomials of the noise have a square root beside them.
        text = assembly(target, ROOT / f"csrc/kernels/{kernel}.cpp")
        candidates = [loop for loop in inner_loops(text, function) if not count(loop, "v?f?sqrt(ps)?")]
        operation = add if kernel == "mp_outer" else fma
        body = max(candidates, key=lambda loop: count(loop, operation))
        loops[name] = (body, count(body, operation) * target.lanes)
    return loops


def newest_mca() -> str:
    names = [f"llvm-mca-{version}" for version in range(30, 13, -1)] + ["llvm-mca"]
    found = next(filter(shutil.which, names), None)
    if found is None:
        raise SystemExit("static_cost: llvm-mca is needed, and none was found (Debian: llvm-19)")
    return found


def costs(target: Target, mca: str) -> list[Cost]:
    command = (mca, f"-mtriple={target.triple}")
    listed = subprocess.run([*command, "-mcpu=help"], input="", capture_output=True, text=True).stderr.split()
    processor = next(name for name in (*target.processors, "generic") if name in listed)
    turns = 200
    result = []
    for name, (body, elements) in loops_of(target).items():
        options = (f"-mcpu={processor}", f"-iterations={turns}")
        report = output_of(*command, *options, stdin="\n".join(body))
        total = re.search(r"Total Cycles:\s+(\d+)", report)
        assert total is not None
        result.append(
            Cost(name, target.isa, processor, len(body) / elements, int(total[1]) / turns / elements)
        )
    return result


def measured() -> dict[str, Timing]:
    """Seconds of a call of ops.noise on one thread, by distribution."""
    torch.set_num_threads(1)
    seed = torch.tensor(1)
    calls: dict[str, Variant] = {
        name: partial(ops.noise, [MEASURED_VALUES], seed, 2, name) for name in DISTRIBUTIONS
    }
    return time_variants(calls, rounds=50)


def main() -> None:
    parser = argparse.ArgumentParser(description="static cost of the inner loops")
    parser.add_argument("--json", type=Path, help="write the numbers to this file as well")
    options = parser.parse_args()
    mca = newest_mca()
    version = next(line.strip() for line in output_of(mca, "--version").splitlines() if "version" in line)
    table = [cost for target in TARGETS for cost in costs(target, mca)]
    print(f"cycles per element (instructions per element), by llvm-mca, {version}")
    columns = {cost.isa: cost.processor for cost in table}
    print(f"{'':18}" + "".join(f"{f'{isa}, {processor}':>26}" for isa, processor in columns.items()))
    for loop in dict.fromkeys(cost.loop for cost in table):
        row = [cost for cost in table if cost.loop == loop]
        print(f"{loop:18}" + "".join(f"{f'{c.cycles:.3f} ({c.instructions:.3f})':>26}" for c in row))
    times = measured()
    for distribution, timing in times.items():
        ns = timing.show(1e9 / MEASURED_VALUES)
        print(f"measured, {torch.ops.mobizo.cpu_capability()}, {distribution}: {ns} ns per value")
    if options.json:
        seconds = {name: asdict(timing) for name, timing in times.items()}
        numbers = {"costs": [asdict(cost) for cost in table], "values": MEASURED_VALUES, "seconds": seconds}
        options.json.write_text(json.dumps({"llvm_mca": version, **numbers}, indent=2) + "\n")


if __name__ == "__main__":
    main()
