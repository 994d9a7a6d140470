"""What no GPU can be faster than: bytes and operations of each kernel, and the times they take at least.

    python -m benchmarks.gpu.roofline [--docs docs/gpu.md]

A kernel reads and writes each of its tensors once, issues its instructions, and has its products made at the
full rate of the tensor cores; the limit is the longest of the three. Rates are those of the makers' data
sheets, which no program reaches: a copy gets about nine tenths of the bandwidth. Instructions for a value of
noise are those of `python -m benchmarks.gpu.static_cost`, by the machine code for sm_90. Needs no GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.models import SIZES, parameter_shapes

MARKER = "<!-- roofline -->"
# Of a value on sm_90, by benchmarks.gpu.static_cost.
INSTRUCTIONS = {"gaussian": 39.1, "rademacher": 3.6, "outer": 9.5}
BYTES = {"float32": 4, "bfloat16": 2}
RANK, GROUPS, SEQUENCES = 16, 8, 32
SPLIT = 3  # a float32 factor of a product is three bfloat16 ones


@dataclass(frozen=True)
class Gpu:
    """Rates a second by the data sheet: bytes of memory, bfloat16 operations of the tensor cores with float32
    sums, and instructions of threads, 128 in a cycle of each multiprocessor.
    """

    bandwidth: float
    products: float
    instructions: float


GPUS = {
    "A100 80GB SXM": Gpu(2.039e12, 312e12, 108 * 128 * 1.41e9),
    "H100 SXM": Gpu(3.35e12, 989e12, 132 * 128 * 1.98e9),
    "H200 SXM": Gpu(4.8e12, 989e12, 132 * 128 * 1.98e9),
    "RTX 4090": Gpu(1.008e12, 165e12, 128 * 128 * 2.52e9),
}


@dataclass(frozen=True)
class Work:
    """What a call has to do."""

    name: str
    bytes: float
    products: float = 0.0
    instructions: float = 0.0

    def seconds(self, gpu: Gpu) -> tuple[float, str]:
        """The limit, and what sets it."""
        return max(
            (self.bytes / gpu.bandwidth, "bytes"),
            (self.products / gpu.products, "products"),
            (self.instructions / gpu.instructions, "instructions"),
        )


def noise(values: int, dtype: str, distribution: str) -> Work:
    """The op of that name."""
    made = values * INSTRUCTIONS[distribution]
    return Work(f"noise ({dtype}, {distribution})", values * BYTES[dtype], instructions=made)


def update(op: str, values: int, dtype: str, distribution: str, directions: int = 1, states: int = 0) -> Work:
    """Anything that reads and writes a parameter and its `states` float32 of each value."""
    made = values * INSTRUCTIONS[distribution] * directions
    size = 2 * values * (BYTES[dtype] + 4 * states)
    return Work(f"{op} ({dtype}, {distribution})", size, instructions=made)


def linear(what: str, rows: int, features: int, width: int) -> Work:
    """F.linear in bfloat16."""
    size = 2 * (rows * (features + width) + features * width)
    return Work(f"F.linear ({what}, {rows} rows)", size, 2.0 * rows * features * width)


def elementwise(values: int) -> Iterator[Work]:
    """noise, the updates and the optimizers; one direction."""
    for dtype in BYTES:
        for distribution in INSTRUCTIONS:
            yield noise(values, dtype, distribution)
            yield update("perturb_, zo_update", values, dtype, distribution)
            if dtype == "float32":
                for op, states in (("zo_sign", 0), ("zo_momentum", 1), ("zo_adam", 2)):
                    yield update(op, values, dtype, distribution, states=states)


def linears(length: int) -> Iterator[Work]:
    """F.linear and mp_lora_linear in bfloat16 over a float32 adapter, Gaussian, two-sided with q = 4."""
    rows = SEQUENCES * length
    for model, (features, width) in (("TinyLlama-1.1B", (2048, 2048)), ("Llama-2-7B", (4096, 4096))):
        alone = linear(model, rows, features, width)
        yield alone
        adapter = 2.0 * rows * RANK * (features + width) * SPLIT
        drawn = GROUPS * width * RANK * INSTRUCTIONS["gaussian"]
        own = 4 * RANK * (features + width)
        what = f"mp_lora_linear ({model}, {rows} rows)"
        yield Work(what, alone.bytes + own, alone.products + adapter, drawn)


def steps(length: int) -> Iterator[Work]:
    """The forward of 32 rows in bfloat16, the LM head at one position of each, and what ours adds."""
    tokens = SEQUENCES * length
    for model, sizes in SIZES.items():
        hidden, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
        head = sizes["vocab_size"] * hidden
        inside = sum(shape.numel() for shape in parameter_shapes(sizes)) - 2 * head
        attention = 2.0 * length * hidden * layers * tokens  # causal: half of all pairs, two products
        products = 2.0 * inside * tokens + attention + 2.0 * head * SEQUENCES
        size = 2.0 * (inside + head)
        yield Work(f"bare forward ({model}, T = {length})", size, products)
        keys = hidden * sizes["num_key_value_heads"] // sizes["num_attention_heads"]
        widths = 2 * hidden + hidden + keys  # in and out of q_proj and v_proj
        adapter = 2.0 * tokens * RANK * widths * layers * SPLIT
        yield Work(f"ours ({model}, T = {length})", size, products + adapter)


def table() -> list[str]:
    """Markdown."""
    lines = [
        "| call | bytes | operations | " + " | ".join(GPUS) + " | set by |",
        "|---" * (4 + len(GPUS)) + "|",
    ]
    values = 1 << 26
    everything = sum(shape.numel() for shape in parameter_shapes(SIZES["TinyLlama-1.1B"]))
    what = "perturb_ of all of TinyLlama-1.1B"
    full = [update(what, everything, dtype, name) for dtype in BYTES for name in INSTRUCTIONS]
    for work in (*elementwise(values), *full, *linears(128), *steps(128)):
        limits = [work.seconds(gpu) for gpu in GPUS.values()]
        operations = work.products or work.instructions
        cells = [work.name, _si(work.bytes, "B"), _si(operations, ""), *(_time(limit) for limit, _ in limits)]
        reasons = list(dict.fromkeys(reason for _, reason in limits))
        lines.append("| " + " | ".join([*cells, ", ".join(reasons)]) + " |")
    return lines


def _si(value: float, unit: str) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--docs", type=Path, metavar="FILE", help="put the table there, between its markers")
    path = options.parse_args().docs
    text = "\n".join(table())
    print(text)
    if path is not None:
        before, _, after = path.read_text().split(MARKER)
        path.write_text(f"{before}{MARKER}\n{text}\n{MARKER}{after}")


if __name__ == "__main__":
    main()
