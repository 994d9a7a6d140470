"""What the models behind the kernels' tiles predict, beside what was measured: which assumption is wrong?

The tiles of the kernels, and `fuses` of mobizo_kernels/triton/mp_lora_linear.py, follow from three rates of
an H100: bytes, operations of the matrix units and instructions a second. A call is predicted to take as long
as the longest of the three; where a call takes twice that, another cost was forgotten, and where the rates
themselves are off, table `assumptions` says by how much.
"""

from __future__ import annotations

from benchmarks.gpu.report import GpuReport
from benchmarks.gpu.roofline import INSTRUCTIONS, SPLIT, Gpu, Work
from mobizo_kernels.triton import mp_lora_linear, shrink_expand
from mobizo_kernels.triton.matrix import depth_of, width_of

OPERATIONS = 700e12  # of bfloat16 products in a second
ASSUMED = Gpu(
    bandwidth=OPERATIONS / mp_lora_linear.OPERATIONS_PER_BYTE,
    products=OPERATIONS,
    instructions=OPERATIONS / mp_lora_linear.OPERATIONS_PER_INSTRUCTION,
)


def compare(report: GpuReport, work: Work, seconds: float) -> None:
    """Add a call to table `predictions`: it took `seconds`."""
    predicted, reason = work.seconds(ASSUMED)
    table = report.table("predictions", "us by the model of the tiles, and measured")
    table.add(
        {"call": work.name},
        {},
        {
            "MB": work.bytes / 1e6,
            "G instructions": work.instructions / 1e9,
            "GFLOP": work.products / 1e9,
            "predicted us": 1e6 * predicted,
            "set by": reason,
            "measured us": 1e6 * seconds,
            "measured / predicted": seconds / predicted,
        },
    )


def assume(report: GpuReport, what: str, assumed: float, measured: float) -> None:
    """Add a row to table `assumptions`."""
    table = report.table("assumptions", "what the tiles and the choice of a fused linear rest on")
    results = {"assumed": assumed, "measured": measured, "measured / assumed": measured / assumed}
    table.add({"assumption": what}, {}, results)


def shrink_and_expand(what: str, rows: int, groups: int, features: int, width: int, rank: int) -> Work:
    """mp_lora_ on 16-bit x and base over a float32 adapter, Gaussian, two-sided."""
    splits = shrink_expand.shrink_splits(rows, features, rank)
    parts = shrink_expand.expand_parts(rows // groups, groups, width, rank)
    scratch = 4 * splits * rows * depth_of(rank)  # written, and read from the cache
    drawn = parts * -(-groups // 2) * width * width_of(rank)
    return Work(
        f"mp_lora_ ({what}, {rows} rows)",
        2 * rows * (features + 2 * width) + scratch,
        2.0 * rows * depth_of(rank) * (SPLIT * features + 2 * SPLIT * width),
        drawn * INSTRUCTIONS["gaussian"],
    )


def choice(
    report: GpuReport,
    case: dict[str, object],
    shape: tuple[int, int, int, int, int],
    linear: float,
    apart: float,
    fused: float,
    noiseless: float,
) -> None:
    """Add a row to table `fuses`: what each form adds to `linear` seconds of F.linear; and to `assumptions`.

    Args:
        case: names of the row.
        shape: rows, groups, in and out features, rank.
        linear: seconds of F.linear.
        apart: seconds of F.linear and mp_lora_.
        fused: seconds of the one kernel for both.
        noiseless: the same with coefficients that are 0, so that no noise is drawn.
    """
    predicted = [operations / OPERATIONS for operations in mp_lora_linear.added_operations(*shape)]
    taken = mp_lora_linear.fuses(*shape)
    table = report.table("fuses", "us that each form of mp_lora_linear adds to F.linear: model, measured")
    table.add(
        case,
        {},
        {
            "fused: predicted us": 1e6 * predicted[0],
            "fused: measured us": 1e6 * (fused - linear),
            "apart: predicted us": 1e6 * predicted[1],
            "apart: measured us": 1e6 * (apart - linear),
            "chosen": "fused" if taken else "apart",
            "faster": "fused" if fused < apart else "apart",
        },
    )
    rows, groups, features, width, rank = shape
    operations = 2 * rows * features * width
    _, column_tiles = mp_lora_linear.fused_tiles(rows, groups, width)
    adapter = 2 * rows * depth_of(rank) * (features * column_tiles + 6 * width)
    lead = (noiseless / linear) - (operations + adapter) / operations
    what = f"lead of the library's product, {rows} rows, {features} to {width}, G = {groups}"
    assume(report, what, mp_lora_linear.LEAD_OF_LIBRARY, lead)
