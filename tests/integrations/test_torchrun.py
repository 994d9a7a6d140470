"""examples/torchrun: a rank is killed at work, and the run that is started again ends with the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_texts
from rank_runs import run_script
from worlds import run_world

from mobizo_kernels.journal import read_journal

SCRIPT = Path(__file__).parents[2] / "examples/torchrun/train.py"
SETTINGS = ["--steps", "5", "--queries", "4", "--batch-size", "4"]
FILES = ("run.journal", "adapter_model.safetensors")


def arguments(folder: Path, out: str) -> list[str]:
    model = tiny_texts.save_model(folder / "model")
    rows = tiny_texts.write_jsonl(folder / "rows.jsonl", tiny_texts.questions(12))
    return [str(SCRIPT), str(model), str(rows), str(folder / out), *SETTINGS]


def test_a_killed_rank(tmp_path: Path) -> None:
    run_world(4, run_script, (arguments(tmp_path, "whole"), None), tmp_path, joined=False)
    again = arguments(tmp_path, "killed")
    *others, last = run_world(4, run_script, (again, 3), tmp_path, joined=False)
    assert others[2] is None
    for text in (*others[:2], last):
        assert "step 3: a rank is gone, or did not answer within the timeout of the process group" in text
    assert len(read_journal(tmp_path / "killed/run.journal")[1]) == 3
    assert not (tmp_path / "killed" / FILES[1]).exists()
    assert run_world(4, run_script, (again, None), tmp_path, joined=False) == [""] * 4
    for file in FILES:
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("split", ["queries", "rows"])
def test_torchrun_starts_it_again(split: str, tmp_path: Path) -> None:
    killer = tmp_path / "killer.py"
    killer.write_text(
        "import os, sys\nfrom rank_runs import run_script\n"
        "first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "sys.exit(1 if run_script((sys.argv[1:], 3 if first else None)) else 0)\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    support = str(Path(__file__).parents[1] / "support")
    path = os.pathsep.join([support, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    for out, script in (("whole", [str(SCRIPT)]), ("killed", [str(killer), str(SCRIPT)])):
        command = [*torchrun, "--max-restarts", "1", *script, *arguments(tmp_path, out)[1:], "--split", split]
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert ran.returncode == 0, ran.stderr
    for file in FILES:
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
