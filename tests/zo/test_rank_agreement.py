"""What two ranks have to do alike, in every step and with their journal."""

from __future__ import annotations

from pathlib import Path

from rank_agreement import disagreements, lost_before_all_knew
from worlds import run_world


def test_one_rank_does_something_else(tmp_path: Path) -> None:
    expected = {
        "error between trials": ("RankFailed", "rank 1 failed, nothing was updated: ZeroDivisionError"),
        "error before trials": ("RankFailed", "rank 1 failed, nothing was updated: ValueError: batch"),
        "shaping": ("RanksDisagree", "step 0: shaping is 'rank' on rank 1, but 'none' on rank 0"),
        "objective": ("RanksDisagree", "step 0: objective is 'given' on rank 1, but None on rank 0"),
        "two runs": ("RanksDisagree", "step 0: run is "),
        "rate of the second group": ("RanksDisagree", "step 0: optimizer is "),
        "journal of rank 1": ("RanksDisagree", "rank 1 is given a journal, but rank 0, which would write it"),
        "closed on rank 0": ("RanksDisagree", "step 1: journal is True on rank 1, but False on rank 0"),
        "without its journal": ("RanksDisagree", "the run of rank 0 has a journal, but rank 0 of the group"),
        "frozen": ("RanksDisagree", "rank 1 differs: frozen_fingerprint is "),
        "another call": ("RankFailed", ", or is in another call, of which its own error tells"),
    }
    for rank, found in enumerate(run_world(2, disagreements, tmp_path, tmp_path)):
        assert found.pop("equal after errors") == ("", None)
        assert found.pop("journal of rank 0") == ("", 0)
        assert found.pop("closed", ("", 1)) == ("", 1)
        assert found["another call"][1].startswith("sync_journal() at step 0:" if rank else "step 0:")
        assert expected.keys() - found.keys() == (set() if rank else {"without its journal"})
        for name, (kind, text) in found.items():
            if rank and name.startswith("error"):
                assert kind in ("ZeroDivisionError", "ValueError")
                continue
            assert kind == expected[name][0] and expected[name][1] in text, (name, kind, text)
    assert not (tmp_path / "one").exists() and (tmp_path / "zero").exists()


def test_a_rank_is_lost_when_the_step_was_on_the_disk(tmp_path: Path) -> None:
    assert run_world(2, lost_before_all_knew, tmp_path, tmp_path) == [(3, 3), None]
