"""What bench.py measures: the cases, and the folder that keeps their programs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mobizo_kernels.models import SMOLLM2
from mobizo_kernels.models.quantization import QUANTIZATIONS

ROOT = Path(__file__).resolve().parents[2]
LOWERINGS = ("rewritten", "per-op", "portable")  # of first-order training
ROWS = 32  # of every forward: q * B = 16, each direction with both signs
MANY = 128  # of those that share a part: q * B = 64
WIDE = 64  # of a step of 32 directions, one row each
SIZES: dict[str, dict[str, Any]] = {
    "20m": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 8192},
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 256},
}
MODELS = (*SIZES, SMOLLM2)
_EXPORT = (
    "delegated", "describe", "description", "export", "inputs", "lowering", "partitioner", "program",
    "quantization", "rotation", "widening", "xnnpack_rewrites",
)  # fmt: skip
MAKERS = (
    *(f"benchmarks/executorch/{name}.py" for name in ("first_order", "peers", "programs")),
    *(f"mobizo_kernels/executorch/{name}.py" for name in _EXPORT),
)


@dataclass(frozen=True)
class Case:
    """A program and how it is run.

    Attributes:
        name: for --cases and the table.
        kind: "forward", "ours", "dual" or "first-order".
        queries: q; the forward has 2q groups of `rows` / 2q rows, one group where there is no direction.
        targets: the linears that ours adapts, with rank 8.
        untuned: percent of the layers, the lower ones, without an adapter.
        tail: n, the tokens where the adapters act (Activated LoRA); 0 for all.
        distribution: of the directions of ours.
        lowering: of the adapters of ours, or of first-order training.
        weight_cache: whether XNNPACK's methods share packed weights.
    """

    name: str
    kind: str
    rows: int = ROWS
    queries: int = 0
    quantization: str = "none"
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    untuned: int = 0
    tail: int = 0
    distribution: str = "gaussian"
    lowering: str = ""
    weight_cache: bool = True

    @property
    def groups(self) -> int:
        return 2 * self.queries or 1

    @property
    def method(self) -> str:
        return "train_step" if self.kind == "ours" else "forward"

    @property
    def limit(self) -> str:
        """The name of the forward of as many rows with the same weights."""
        return forward_name(self.rows, self.quantization)


def forward_name(rows: int, quantization: str) -> str:
    return f"forward-{quantization}" if rows == ROWS else f"forward-{quantization}-{rows}"


def all_cases() -> dict[str, Case]:
    """By name: the limits, ours, the paper's module, first-order training with the same rows and half."""
    cases = [Case(forward_name(rows, "none"), "forward", rows) for rows in (ROWS, ROWS // 2)]
    cases += [Case(forward_name(ROWS, kind), "forward", quantization=kind) for kind in QUANTIZATIONS[1:]]
    for kind in QUANTIZATIONS:
        cases += [Case(f"ours-q{q}-{kind}", "ours", queries=q, quantization=kind) for q in (1, 4, 16)]
        cases.append(Case(f"nocache-q4-{kind}", "ours", ROWS, 4, kind, weight_cache=False))
    cases += shared_cases() + delegated_cases()
    cases.append(Case("dual-q1-none", "dual", queries=1))
    for lowering in LOWERINGS:
        # What ExecuTorch's own partitioner gives to XNNPACK is not safe with the cache.
        cached = lowering != "per-op"
        cases += [
            Case(
                f"fo-{lowering}-{rows}",
                "first-order",
                rows,
                lowering=lowering,
                weight_cache=cached,
            )
            for rows in (ROWS, ROWS // 2)
        ]
    return {case.name: case for case in cases}


def shared_cases() -> list[Case]:
    """Steps of which groups share a part: the lower half of the layers, or a third and the tokens before the
    last 3 or 2; and the same without the latter.
    """
    cases = [
        Case("half-q4-none", "ours", queries=4, untuned=50),
        *(Case(forward_name(MANY, kind), "forward", MANY, quantization=kind) for kind in QUANTIZATIONS[:2]),
    ]
    for kind in QUANTIZATIONS[:2]:
        for name, tail in (("whole", 0), ("prefix-3", 3), ("prefix-2", 2)):
            upper = Case(f"{name}-q8-{kind}", "ours", MANY, 8, kind, ("v_proj",), untuned=33, tail=tail)
            cases.append(upper)
    return cases


def delegated_cases() -> list[Case]:
    """Steps along directions "outer", by our op and in one delegate."""
    cases = [Case(forward_name(WIDE, kind), "forward", WIDE, quantization=kind) for kind in QUANTIZATIONS]
    for kind in QUANTIZATIONS:
        for queries, rows in ((4, ROWS), (32, WIDE)):
            for name, lowering in (("outer", "custom-op"), ("delegated", "delegated")):
                made = Case(f"{name}-q{queries}-{kind}", "ours", rows, queries, kind)
                cases.append(replace(made, distribution="outer", lowering=lowering))
    return cases


@dataclass(frozen=True)
class Files:
    """A program and the arguments of its method; `loss` is that of the unperturbed model in eager float32."""

    program: Path
    arguments: Path

    def exist(self) -> bool:
        return self.program.is_file() and self.arguments.is_file()

    @property
    def loss(self) -> float:
        with safe_open(self.arguments, "pt") as file:
            return float(file.metadata()["loss"])


def files_of(case: Case, model: str, length: int, folder: Path) -> Files:
    """Where a program is kept; another name when anything that it depends on changes."""
    depends = {key: value for key, value in asdict(case).items() if key not in ("name", "weight_cache")}
    versions = {name: version(name) for name in ("executorch", "torch", "transformers", "torchao")}
    key = json.dumps([depends, model, SIZES.get(model), length, versions, sources_digest()], sort_keys=True)
    digest = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
    stem = f"{model}-{case.name.replace('nocache', 'ours')}-{digest}"
    return Files(folder / f"{stem}.pte", folder / f"{stem}.safetensors")


def sources_digest() -> str:
    """A hash of the sources that make programs."""
    digest = hashlib.blake2b(digest_size=8)
    for pattern in MAKERS:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def chosen(names: Sequence[str], model: str) -> list[Case]:
    """The named cases, or those that are measured by default, each with its limit."""
    cases = all_cases()
    picked = [cases[name] for name in names] or [case for case in cases.values() if by_default(case, model)]
    return [
        case for case in cases.values() if case in picked or case.name in {other.limit for other in picked}
    ]


def by_default(case: Case, model: str) -> bool:
    """Without the slow forms of first-order training: after seconds on one thread the next case is slow, too;
    without those where groups share a part, for they have other rows, and those of directions "outer".

    Of SmolLM2 also without what the small model tells as well.
    """
    if case.lowering in ("per-op", "portable") or case.rows in (MANY, WIDE) or case.untuned:
        return False
    if case.distribution != "gaussian":
        return False
    return model != SMOLLM2 or (case.weight_cache and case.queries in (0, 1, 4))
