"""What the inner loops of the CPU kernels cost by a model of the processor, ARM beside x86.

    python -m benchmarks.static_cost [--json FILE]

Compiles the loops with the build's own flags, finds them in the assembly and asks llvm-mca for the cycles of
one turn, all data in the first-level cache. Beside them the measured time of the op on this machine, one
thread, data in the second-level cache. Needs an x86-64 machine with cmake, g++, Debian's
g++-aarch64-linux-gnu, and an llvm-mca, the newer the better: LLVM knows Neoverse V2 (Cortex-X3's server form)
from 17 on and falls back on Cortex-A57's model before 16.

Elements are values of noise, or multiply-adds of mp_lora: `dot` is the inner loop of x A^T, `expand` that of
the product with the perturbed B.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.harness import time_variants
from mobizo_kernels import ops

ROOT = Path(__file__).resolve().parent.parent
MEASURED_VALUES = 1 << 18  # 1 MiB of float32


@dataclass(frozen=True)
class Target:
    """An instruction set, the float32 lanes of its registers, and the processors to model it on, best first."""

    isa: str
    lanes: int
    triple: str
    processors: tuple[str, ...]
    cmake: tuple[str, ...] = ()


X86 = ("x86_64", ("sapphirerapids", "icelake-server"))
TARGETS = (
    Target("neon", 4, "aarch64", ("neoverse-v2", "neoverse-n2"), ("--toolchain", "cmake/aarch64-linux-gnu.cmake")),
    Target("avx2", 8, *X86),
    Target("avx512", 16, *X86),
)


@dataclass(frozen=True)
class Cost:
    """Of one element of a loop, on average over its turns."""

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
    """The instructions of every loop without a loop or a label inside, in functions with that in their name."""
    loops = []
    name, label, body = "", "", list[str]()
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
    noise = assembly(target, ROOT / "benchmarks/static_cost.cpp")
    loops = {}
    for name in ("gaussian", "rademacher_words", "rademacher_signs"):
        elements = re.search(rf"^{name}_elements:\n\s*\.(?:word|long)\s+(\d+)", noise, re.MULTILINE)
        assert elements is not None
        loops[name] = (max(inner_loops(noise, f"{name}_loop"), key=len), int(elements[1]))
    kernel = assembly(target, ROOT / "csrc/kernels/mp_lora.cpp")
    fma = "fmla" if target.isa == "neon" else r"vfmadd\d+ps"
    for name, function in (("dot", "mp_lora_shrink"), ("expand", "mp_lora_expand")):
        # The largest tile; the polynomials of the noise have a square root beside them.
        candidates = [loop for loop in inner_loops(kernel, function) if not count(loop, "v?f?sqrt(ps)?")]
        body = max(candidates, key=lambda loop: count(loop, fma))
        loops[name] = (body, count(body, fma) * target.lanes)
    return loops


def newest_mca() -> str:
    names = [f"llvm-mca-{version}" for version in range(30, 13, -1)] + ["llvm-mca"]
    found = next(filter(shutil.which, names), None)
    if found is None:
        raise SystemExit("static_cost: llvm-mca is needed, and none was found (Debian: llvm-19)")
    return found


def costs(target: Target, mca: str) -> list[Cost]:
    known = subprocess.run(
        [mca, f"-mtriple={target.triple}", "-mcpu=help"], input="", capture_output=True, text=True
    ).stderr
    processor = next(name for name in (*target.processors, "generic") if re.search(rf"^\s*{name}\b", known, re.MULTILINE))
    turns = 200
    result = []
    for name, (body, elements) in loops_of(target).items():
        report = output_of(
            mca, f"-mtriple={target.triple}", f"-mcpu={processor}", f"-iterations={turns}", stdin="\n".join(body)
        )
        total = re.search(r"Total Cycles:\s+(\d+)", report)
        assert total is not None
        result.append(Cost(name, target.isa, processor, len(body) / elements, int(total[1]) / turns / elements))
    return result


def measured() -> dict[str, float]:
    """Nanoseconds per value of ops.noise on one thread, by distribution."""
    torch.set_num_threads(1)
    seed = torch.tensor(1)
    calls = {d: lambda d=d: ops.noise([MEASURED_VALUES], seed, 2, d) for d in ("gaussian", "rademacher")}
    return {d: timing.p50 * 1e9 / MEASURED_VALUES for d, timing in time_variants(calls, rounds=20).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="static cost of the inner loops")
    parser.add_argument("--json", type=Path, help="write the numbers to this file as well")
    options = parser.parse_args()
    mca = newest_mca()
    version = re.search(r"LLVM version \S+", output_of(mca, "--version"))
    table = [cost for target in TARGETS for cost in costs(target, mca)]
    times = measured()
    print(mca, version[0] if version else "", "- cycles per element (instructions per element)")
    columns = {cost.isa: cost.processor for cost in table}
    print(f"{'':18}" + "".join(f"{f'{isa}, {processor}':>26}" for isa, processor in columns.items()))
    for loop in dict.fromkeys(cost.loop for cost in table):
        row = [cost for cost in table if cost.loop == loop]
        print(f"{loop:18}" + "".join(f"{f'{c.cycles:.3f} ({c.instructions:.3f})':>26}" for c in row))
    for distribution, ns in times.items():
        print(f"measured here, {torch.ops.mobizo.cpu_capability()}: {distribution} {ns:.3f} ns per value")
    if options.json:
        options.json.write_text(
            json.dumps({"mca": version and version[0], "costs": [asdict(c) for c in table], "ns_per_value": times}, indent=2)
        )


if __name__ == "__main__":
    main()
