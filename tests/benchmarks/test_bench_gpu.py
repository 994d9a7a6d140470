"""The two stages of the GPU benchmark, run on the CPU: a typing error must not cost time on a GPU, and a run
that is cut off must leave what it had measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

PARTS = {
    "ops": ["perturb", "foreach", "linear", "noise", "optimizers", "parameters"],
    "steps": [
        "adapters", "compiled", "all_parameters", "large", "bases", "sharing", "settings", "compiled_peer",
    ],
}  # fmt: skip

# Launches what the sweep calls the package's own tiles, and the first of those it tries, for a GPU that is
# not here: each compiles.
SWEPT = """
import torch
from benchmarks.gpu import sweep, targets

targets.install("sm_90")
for name, sweeps in sweep.SWEEPS.items():
    for sweep in sweeps():
        for configuration in (sweep.chosen, sweep.configurations[0]):
            sweep.launch(sweep.operands(torch.device("cpu")), configuration)
        assert sweep.chosen in sweep.configurations, sweep
"""

# Runs a stage once for each of its parts, in a process of its own in which that part is endless, all others
# add a row at once, and the clock stands until the endless part has begun.
CUT_OFF = """
import os, sys, threading, time
from benchmarks.gpu import bench as bench_gpu
from benchmarks.harness import Timing

stage = sys.argv[1]
true_stages = bench_gpu.stages

class PatientClock(threading.Timer):
    def start(self):
        clocks.append(super().start)

def endless():
    clocks[0]()
    while True:
        time.sleep(0.01)

def instant(report, name):
    steps = name in ("adapters", "large")
    case = {"model": name, "step": "ours"} if steps else {"case": name}
    timings = {"t": Timing(1.0, 2.0, 3.0)}
    report.table("step" if steps else name, "caption").add(case, timings, {"time / bare": 1.5})
    report.goal(f"goal of {name}", 1.5, below=2.0)

def stages(report, device, quick):
    def faked(part):
        run = endless if part.name == slow else lambda: instant(report, part.name)
        return bench_gpu.Part(part.name, run, part.check)
    return {stage: [*map(faked, parts)] for stage, parts in true_stages(report, device, quick).items()}

bench_gpu.stages, bench_gpu.check, threading.Timer = stages, lambda name, device: (1, []), PatientClock
for slow in sys.argv.pop().split(","):
    clocks = []
    file = f"{sys.argv[2]}/{slow}.json"
    if os.fork() == 0:
        options = ["--device", "cpu", "--quick", "--until", "1", "--json", file]
        sys.argv = ["bench_gpu", "--stage", stage, *options]
        bench_gpu.main()
    _, status = os.wait()
    print("status of", slow, status, flush=True)
"""


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def on_a_gpu(file: Path) -> None:
    """Let the JSON file say that its run had one, and was whole: tables and pictures are made of no other."""
    report = json.loads(file.read_text())
    report["machine"] |= {"driver": "1.2", "runtime": "CUDA 13.0", "device": "Some GPU"}
    report["settings"]["quick"] = False
    file.write_text(json.dumps(report))


def publish(file: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page that `benchmarks.gpu.publish` makes."""
    monkeypatch.syspath_prepend(ROOT)  # an installed package does not bring its benchmarks
    from benchmarks.gpu import publish

    (directory / "gpu.md").write_text("before\n<!-- results -->\nold\n<!-- results -->\nafter\n")
    monkeypatch.setattr(sys, "argv", ["gpu_publish", str(file), "--docs", str(directory)])
    publish.main()
    page = (directory / "gpu.md").read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and "\nold\n" not in page
    return page


def rows(report: dict[str, Any]) -> int:
    return sum(map(len, report["tables"].values()))


@pytest.mark.parametrize("stage", PARTS)
def test_a_stage_from_end_to_end(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.json"
    command = ["benchmarks/run_gpu.sh", "--stage", stage, "--seconds", "1200"]
    done = run([*command, "--device", "cpu", "--quick", "--json", str(file)])
    assert done.returncode == 0, done.stdout
    report = json.loads(file.read_text())
    assert report["parts"] == dict.fromkeys(PARTS[stage], "done")
    assert report["wrong"] == [] and report["comparisons"] > 0
    assert report["goals"] == []  # a CPU is not judged
    wanted = {
        "ops": {
            "perturb_", "foreach_perturb_", "mp_lora_linear", "noise", "optimizers", "full parameters",
            "predictions", "assumptions", "fuses",
        },
        "steps": {"step", "predictions"},
    }[stage]  # fmt: skip
    assert set(report["tables"]) == wanted
    for name in wanted:  # the tables are the last that is printed
        assert f"\n{name}: " in done.stdout
    on_a_gpu(file)
    assert publish(file, tmp_path, monkeypatch).count("\n| ") == rows(report) + len(report["tables"])


@pytest.mark.parametrize("stage", PARTS)
def test_a_stage_that_is_cut_off_anywhere(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = PARTS[stage]
    done = run([sys.executable, "-c", CUT_OFF, stage, str(tmp_path), ",".join(parts)])
    assert done.returncode == 0 and done.stdout.count("the time is up") == len(parts), done.stdout
    for place, part in enumerate(parts):
        assert f"status of {part} 0" in done.stdout
        file = tmp_path / f"{part}.json"
        report = json.loads(file.read_text())
        ends = ["done"] * place + ["cut off"] + ["not reached"] * (len(parts) - place - 1)
        assert report["parts"] == dict(zip(parts, ends, strict=True))
        assert rows(report) == place
        on_a_gpu(file)
        (tmp_path / "steps.png").unlink(missing_ok=True)
        page = publish(file, tmp_path, monkeypatch)
        assert page.count(" | 1.5 |") == place and f"{part} (cut off)" in page
        assert (tmp_path / "steps.png").exists() == ("steps.png" in page) == ("step" in report["tables"])


def test_the_fused_kernel_is_among_what_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.gpu.check import FUSED_SHAPE
    from mobizo_kernels.triton.mp_lora_linear import fuses

    rows, in_features, out_features, rank, groups = FUSED_SHAPE
    assert fuses(rows, groups, in_features, out_features, rank)


def test_the_sweep_launches_the_package_s_own_tiles() -> None:
    done = run([sys.executable, "-c", SWEPT])
    assert done.returncode == 0, done.stdout
