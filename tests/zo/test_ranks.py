"""Several gloo ranks against one process: bits, weights, faults, and what has to agree."""

from __future__ import annotations

import math
import operator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same_bits
from rank_runs import CASES, Case, a_model, all_cases, alone, faults, fitted
from worlds import run_world, same_bits

from mobizo_kernels.zo import ZerothOrder
from mobizo_kernels.zo.split import Split, make_split


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def four(place: Path) -> list[dict[str, Any]]:
    return run_world(4, all_cases, place / "fit", place)


@pytest.mark.parametrize("name", CASES)
def test_four_ranks_are_one_process_to_the_bit(name: str, four: list[dict[str, Any]]) -> None:
    case = CASES[name]
    losses, parameters = alone(case, slices=1 if case.parts == 4 else 4)
    assert same_bits([ranks[name][1] for ranks in four])
    for rank in four:
        for there, here in zip(rank[name][0], losses, strict=True):
            assert_same_bits(there, here)
    assert same_bits([four[0][name][1], parameters])


def test_rows_are_weighted_by_labelled_tokens(four: list[dict[str, Any]]) -> None:
    case = CASES["rows"]
    for step, combined in enumerate(four[0]["rows"][0][:1]):
        rows = case.rows(step)
        weights = [int((part["labels"][:, 1:] != -100).sum()) for part in rows]
        assert len(set(weights)) > 2
        each = [Case("lora").make().step(part).losses.double().tolist() for part in rows]
        expected = [
            math.fsum(map(operator.mul, weights, losses)) / sum(weights) for losses in zip(*each, strict=True)
        ]
        assert combined.double().tolist() == pytest.approx(expected, rel=2**-24)


def test_a_whole_run(four: list[dict[str, Any]], place: Path, tmp_path: Path) -> None:
    result, parameters = fitted(tmp_path / "alone", slices=4)
    for rank in four:
        assert rank["fit"][0] == result
        assert same_bits([rank["fit"][1], parameters])
    assert (place / "fit").read_bytes() == (tmp_path / "alone").read_bytes()


def test_faults(tmp_path: Path) -> None:
    *rest, killed = run_world(4, faults, tmp_path, tmp_path)
    assert killed is None
    for rank, found in enumerate(rest):
        expected = {
            "seed": ("RanksDisagree", "rank 2 differs: run_seed is 5 there, but 0 on rank 0"),
            "check_every": ("RanksDisagree", "rank 2 differs: check_every is 7 there, but 100 on rank 0"),
            "batch": ("RanksDisagree", "the batch of rank 1 is not that of rank 0, with which it shares"),
            "rate": ("RanksDisagree", "step 0: the learning rate is 0.2 on rank 3, but 0.1 on rank 0"),
            "lr": ("RanksDisagree", "rank 2 differs: optimizer is {"),
            "lora_a": ("RanksDisagree", "rank 3 differs: lora_a is "),
            "names": ("RanksDisagree", "rank 1 differs: "),
            "objective": ("RankFailed", "rank 1 failed, nothing was updated: ZeroDivisionError: no answer"),
            "nothing": ("NothingLabelled", "on any rank"),
            "drift": ("RanksDisagree", "step 2: the tuned parameters, or the optimizer's state, of rank 3"),
            "lost": ("JournalLost", "was removed"),
            "killed": ("RankFailed", "step 1: a rank is gone, or did not answer within the timeout"),
        }
        if rank == 1:
            expected["objective"] = ("ZeroDivisionError", "no answer")
        for name, (kind, text) in expected.items():
            assert found[name][0] == kind, (name, found[name])
            assert text in found[name][1], (name, found[name])
        assert found["inside of DDP"] and found["untouched"] and found["skipped"] == ("", (True, 1, 1))
        assert found["journal"] == (rank == 0) and found["steps"] == 1
        assert_same_bits(found["no labels on three"][1], alone(Case("lora"))[0][0])
        assert same_bits([found["late"][1], alone(Case("lora"), slices=4)[1]])


def test_slices_of_one_process() -> None:
    whole, parts = alone(Case("lora")), alone(Case("lora"), slices=3)
    for one, other in zip(whole[0], parts[0], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("ranks", "slices", "groups"), [(4, 4, 5), (3, 7, 8), (1, 1, 3), (5, 9, 9)])
def test_every_group_is_run_once(ranks: int, slices: int, groups: int) -> None:
    split = Split(groups, slices, ranks, ranks)
    found = [part for rank in range(ranks) for part in split.groups_of(rank)]
    assert [group for part in found for group in range(part.start, part.stop)] == list(range(groups))
    assert len(found) == slices and max(p.stop - p.start for p in found) <= math.ceil(groups / slices)
    assert all(split.groups_of(rank) for rank in range(ranks))


def test_a_grid() -> None:
    split = make_split("both", groups=8, ranks=6, query_ranks=2)
    assert split.rows == 3 and [split.row(rank) for rank in range(6)] == [0, 0, 1, 1, 2, 2]
    assert split.groups_of(3) == [slice(4, 8)] and split.groups_of(4) == [slice(0, 4)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"split": "layers"}, "split must be one of queries, rows, both, got 'layers'"),
        ({"split": "both"}, "query_ranks must be given with split='both'"),
        ({"split": "both", "query_ranks": 3}, "query_ranks must divide the 4 ranks, got 3"),
        ({"split": "rows", "query_ranks": 4}, "query_ranks must be 1 with split='rows' and 4 ranks, got 4"),
        ({"split": "queries", "groups": 3}, "queries must make at least a group for each of the 4 ranks"),
        ({"split": "queries", "slices": 3}, "slices must be from 4, .* to 8, the groups of a step, got 3"),
        ({"split": "rows", "slices": 9}, "slices must be from 1, .* to 8, the groups of a step, got 9"),
    ],
)
def test_splits_that_cannot_be(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_split(**{"groups": 8, "ranks": 4, **options})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"split": "rows"}, "split needs process_group, got 'rows'"),
        ({"query_ranks": 2}, "query_ranks needs process_group, got 2"),
        ({"slices": 9}, "slices must be from 1"),
        ({"check_every": 0}, "check_every must be None or at least 1, got 0"),
        ({"slices": 2, "cuda_graph": True}, "cuda_graph=True needs process_group=None and slices=None"),
        ({"process_group": "gloo"}, "process_group must be one of torch.distributed"),
    ],
)
def test_arguments_of_one_process(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ZerothOrder(a_model("lora"), **options)
