"""A run in one call: what it makes, what it keeps, how it resumes and when it ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from helpers import assert_same_bits
from journals import adapters, assert_same_adapters
from numpy.typing import ArrayLike
from peft import LoraConfig

from mobizo_kernels import UpdateRule, ZerothOrder, training, wrap, wrap_parameters
from mobizo_kernels.data import EncodedExample, collate
from mobizo_kernels.journal import read_journal
from mobizo_kernels.training import FitResult, Scored, StepReport, fit
from mobizo_kernels.zo import tuned_parameters

WORDS = [5, 7]  # of the two labels
RECORD = 28 + 4 * 2
RULES = {"sgd": UpdateRule.sgd(0.5), "adam": UpdateRule.adam(0.05, weight_decay=0.1)}


def wrapped() -> Any:
    return wrap(tiny.llama(), LoraConfig(r=3, target_modules=["q_proj", "v_proj"]))


def optimizer(model: Any = None, **options: Any) -> ZerothOrder:
    return ZerothOrder(model or wrapped(), queries=2, candidate_tokens=WORDS, **options)


def rows(count: int, seed: int = 0) -> list[EncodedExample]:
    rng = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        tokens = torch.randint(8, tiny.VOCABULARY, (4 + number % 3,), generator=rng).tolist()
        made.append(EncodedExample([*tokens, WORDS[number % 2]], number % 2))
    return made


def batches(seed: int = 1) -> Iterator[list[EncodedExample]]:
    """Without end, the same on every call."""
    return (rows(3, seed + number) for number in itertools.count())


def same(result: FitResult, expected: FitResult) -> None:
    assert result.losses == expected.losses
    assert result.validations == expected.validations
    assert (result.best_step, result.stopped, result.lost) == (expected.best_step, expected.stopped, "")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_resumed_run_is_that_in_one_go(rule: UpdateRule, tmp_path: Path) -> None:
    def run(journal: Path | None) -> tuple[ZerothOrder, FitResult]:
        zo = optimizer(optimizer=rule)
        options: dict[str, Any] = {"journal": journal, "resume": journal is not None, "data": "rows"}
        return zo, fit(zo, batches(), steps=7, validation=rows(8), eval_every=2, **options)

    plain, expected = run(None)
    assert [point.step for point in expected.validations] == [0, 2, 4, 6, 7]
    assert len(expected.losses) == len(expected.seconds) == 7 and not expected.stopped
    one, result = run(tmp_path / "journal")
    same(result, expected)
    assert_same_adapters(one.model, adapters(plain.model))
    content = (tmp_path / "journal").read_bytes()
    header, _ = read_journal(tmp_path / "journal")
    assert (header.steps, header.lr_schedule, header.lr, header.data) == (7, "linear", rule.lr, "rows")
    for done in (0, 1, 4, 7):
        (tmp_path / "cut").write_bytes(content[: len(content) - (7 - done) * RECORD])
        resumed, result = run(tmp_path / "cut")
        same(result, expected)
        assert len(result.seconds) == 7 - done and resumed.steps == 7 and resumed.journal is None
        assert_same_adapters(resumed.model, adapters(plain.model))
        assert (tmp_path / "cut").read_bytes() == content


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_run_of_all_parameters_resumes(dtype: torch.dtype, tmp_path: Path) -> None:
    def run(journal: Path) -> tuple[dict[str, torch.Tensor], FitResult]:
        model = wrap_parameters(tiny.llama().to(dtype))
        zo = optimizer(model, distribution="outer", eps=1e-3, lr=1e-2, normalize=True)
        options: dict[str, Any] = {"journal": journal, "resume": True, "validation": rows(8)}
        result = fit(zo, batches(), steps=5, eval_every=2, **options)
        return {name: p.detach().clone() for name, p in model.named_parameters()}, result

    began = dict(tiny.llama().to(dtype).named_parameters())
    expected, result = run(tmp_path / "journal")
    assert all(not torch.equal(parameter, began[name]) for name, parameter in expected.items())
    content = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(content[: -3 * RECORD])
    resumed, again = run(tmp_path / "journal")
    same(again, result)
    for name, parameter in expected.items():
        assert_same_bits(resumed[name], parameter)
    assert (tmp_path / "journal").read_bytes() == content


def test_the_callbacks_see_each_step_and_validation(tmp_path: Path) -> None:
    steps: list[StepReport] = []
    points: list[training.Validation] = []
    callbacks: dict[str, Any] = {"on_step": steps.append, "on_validation": points.append}
    zo = optimizer(lr=0.5)
    result = fit(zo, batches(), steps=4, validation=rows(6), eval_every=3, **callbacks)
    assert [report.step for report in steps] == [0, 1, 2, 3]
    assert [report.lr for report in steps] == pytest.approx([0.5, 0.375, 0.25, 0.125])
    assert [report.loss for report in steps] == result.losses
    assert [report.seconds for report in steps] == result.seconds and min(result.seconds) > 0
    assert not any(report.unsteady or report.skipped for report in steps)
    assert points == result.validations and [point.step for point in points] == [0, 3, 4]
    assert all(0 <= point.accuracy <= 1 and point.balanced_accuracy is not None for point in points)

    fit(optimizer(lr=0.5), batches(), steps=4, journal=tmp_path / "journal")
    content = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(content[: -2 * RECORD])
    steps.clear()
    resumed = fit(
        optimizer(lr=0.5), batches(), steps=4, journal=tmp_path / "journal", resume=True, **callbacks
    )
    assert [report.step for report in steps] == [2, 3] and len(resumed.losses) == 4


def made_up(losses: Sequence[ArrayLike], count: int = 50) -> Callable[[], Scored]:
    """Validations of `count` rows whose losses are about these."""
    given = iter(losses)

    def score() -> Scored:
        gap = np.broadcast_to(np.log(np.expm1(next(given))), count)
        return Scored(np.stack([np.zeros(count), gap], axis=1).astype(np.float32), np.arange(count) % 1)

    return score


@pytest.mark.parametrize(("keep", "best"), [("best", 2), ("last", 4)])
@pytest.mark.parametrize("full", [False, True], ids=["wrapped", "full"])
def test_the_best_parameters_come_back(full: bool, keep: str, best: int) -> None:
    zo = optimizer(tiny.llama() if full else wrapped(), eps=1e-3, lr=0.01)
    seen = []

    def on_validation(point: training.Validation) -> None:
        seen.append([parameter.detach().clone() for _, parameter in tuned_parameters(zo.model)])

    result = fit(
        zo,
        batches(),
        steps=4,
        validation=made_up([0.6, 0.5, 0.4, 0.7, 0.8]),
        eval_every=1,
        keep=keep,
        on_validation=on_validation,
    )
    assert (result.best_step, len(result.losses)) == (best, 4)
    assert [point.loss for point in result.validations] == pytest.approx([0.6, 0.5, 0.4, 0.7, 0.8], rel=1e-5)
    for (_, parameter), expected in zip(tuned_parameters(zo.model), seen[best], strict=True):
        assert_same_bits(parameter, expected)


def test_without_a_validation_the_last_is_kept() -> None:
    zo, twin = optimizer(), optimizer()
    result = fit(zo, batches(), steps=3, lr_schedule="constant")
    assert (result.best_step, result.validations) == (3, [])
    for batch in itertools.islice(batches(), 3):
        twin.step(collate(batch, 0))
    assert_same_adapters(zo.model, adapters(twin.model))


def test_batches_of_rows_and_of_tensors_and_those_that_go_round() -> None:
    three = list(itertools.islice(batches(), 3))
    results = [optimizer() for _ in range(3)]
    tensors = [collate(batch, 0) for batch in three]
    losses = [
        fit(zo, given, steps=6).losses
        for zo, given in zip(results, (three, tensors, iter(three + three)), strict=True)
    ]
    assert losses[0] == losses[1] == losses[2]
    with pytest.raises(ValueError, match="batches must be one for each step, got 3"):
        fit(optimizer(), iter(three), steps=6)


def test_a_run_goes_on_behind_its_steps() -> None:
    once, twice, given = optimizer(), optimizer(), batches()
    expected = fit(once, batches(), steps=6, lr_schedule="cosine", validation=rows(6), eval_every=3)
    first = fit(twice, given, steps=2, lr_schedule="constant")
    second = fit(twice, given, steps=6, lr_schedule="constant", validation=rows(6), eval_every=3)
    assert [len(first.losses), len(second.losses)] == [2, 4]
    assert [point.step for point in second.validations] == [2, 3, 6]
    assert first.losses[0] == expected.losses[0] and twice.steps == 6
    with pytest.raises(ValueError, match="steps must be above the 6 that were made, got 6"):
        fit(twice, given, steps=6)


def run_away(monkeypatch: pytest.MonkeyPatch, *, stop_unsteady: bool) -> FitResult:
    """Of a model that stays as it is, while its training losses jump at step 30."""
    zo = optimizer(lr=0.0)
    losses = itertools.chain(itertools.repeat(0.5, 30), itertools.repeat(4.0))
    monkeypatch.setattr(zo._trials, "losses", lambda *args: (torch.full((4,), next(losses)), None))
    return fit(zo, [rows(2)], steps=40, validation=rows(2), stop_unsteady=stop_unsteady)


def test_a_loss_that_runs_away_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    result = run_away(monkeypatch, stop_unsteady=False)
    assert result.losses == [0.5] * 30 + [4.0] * 10 and not result.stopped
    assert len(caplog.messages) == 1 and "the loss runs away at step 3" in caplog.messages[0]


def test_a_loss_that_runs_away_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_away(monkeypatch, stop_unsteady=True)
    assert result.stopped and 30 < len(result.losses) <= 33
    assert result.validations[-1].step == len(result.losses)


def test_a_validation_that_runs_away_ends_the_run() -> None:
    result = fit(optimizer(), batches(), steps=4, validation=made_up([0.6, 0.5, 1.0]), eval_every=1)
    assert (result.stopped, result.best_step, len(result.losses)) == (True, 1, 2)


@pytest.mark.parametrize(("stop_unsteady", "best"), [(True, 1), (False, 2)])
def test_where_the_loss_ran_away_the_best_is_kept(stop_unsteady: bool, best: int) -> None:
    """Two rows that differ much don't tell the last parameters to be worse than it."""
    zo, twin = optimizer(), optimizer()
    validation = made_up([0.5, 0.4, [0.1, 2.0]], 2)
    options: dict[str, Any] = {"lr_schedule": "constant", "eval_every": 1, "stop_unsteady": stop_unsteady}
    result = fit(zo, batches(), steps=2, validation=validation, **options)
    assert (result.best_step, result.stopped) == (best, False)
    for batch in itertools.islice(batches(), best):
        twin.step(collate(batch, 0))
    assert_same_adapters(zo.model, adapters(twin.model))


def test_without_a_finite_validation_the_last_is_kept() -> None:
    result = fit(optimizer(), batches(), steps=4, validation=made_up([math.nan] * 4), eval_every=2)
    assert (result.stopped, result.best_step, len(result.losses)) == (True, 2, 2)


def test_what_a_callback_raises_ends_the_run(tmp_path: Path) -> None:
    """The journal has all that was made, and is free."""

    def interrupt(report: StepReport) -> None:
        if report.step == 2:
            raise KeyboardInterrupt

    zo, expected = optimizer(), optimizer()
    with pytest.raises(KeyboardInterrupt):
        fit(zo, batches(), steps=5, journal=tmp_path / "journal", on_step=interrupt)
    assert zo.steps == len(read_journal(tmp_path / "journal")[1]) == 3 and zo.journal is None
    again = optimizer()
    fit(again, batches(), steps=5, journal=tmp_path / "journal", resume=True)
    fit(expected, batches(), steps=5)
    assert_same_adapters(again.model, adapters(expected.model))


def test_a_lost_journal_ends_the_run_and_keeps_the_best(tmp_path: Path) -> None:
    journal = tmp_path / "journal"

    def lose(report: StepReport) -> None:
        if report.step == 2:
            journal.unlink()

    zo = optimizer()
    result = fit(zo, batches(), steps=9, validation=rows(6), eval_every=2, journal=journal, on_step=lose)
    assert "was removed or renamed" in result.lost and result.stopped
    assert len(result.losses) == 3 and [point.step for point in result.validations] == [0, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be above the 0 that were made, got 0"),
        ({"lr_schedule": "step"}, "lr_schedule must be one of constant, linear, cosine, got 'step'"),
        ({"keep": "first"}, "keep must be best or last, got 'first'"),
        ({"eval_every": 0}, "eval_every must be at least 1, got 0"),
        ({"validation": []}, "validation needs rows with labels from 0 to 1"),
        (
            {"validation": [EncodedExample([9, 5], 2)]},
            r"rows with labels from 0 to 1, got \[2\]",
        ),
        ({"validation": [EncodedExample([9, 5], -1)]}, "validation needs rows with labels"),
    ],
    ids=str,
)
def test_bad_arguments_change_and_write_nothing(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    zo = optimizer(lr=0.5)
    with pytest.raises(ValueError, match=message):
        fit(zo, batches(), **{"steps": 4, "journal": tmp_path / "journal", **options})
    assert zo.steps == 0 and zo.optimizer.param_groups[0]["lr"] == 0.5
    assert not list(tmp_path.iterdir())


def test_journals_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with pytest.raises(ValueError, match="resume needs a journal"):
        fit(optimizer(), batches(), steps=4, resume=True)
    with pytest.raises(ValueError, match="validation by rows needs candidate_tokens"):
        fit(ZerothOrder(wrapped(), queries=2), batches(), steps=4, validation=rows(4), journal=path)
    assert not path.exists()
    zo = optimizer()
    recorded = zo.open_journal(path)
    with pytest.raises(ValueError, match="recorded is of a journal that is open"):
        fit(zo, batches(), steps=4, recorded=recorded, journal=tmp_path / "other")
    with pytest.raises(ValueError, match="journal must be left out where ZerothOrder has one already"):
        fit(zo, batches(), steps=4, journal=tmp_path / "other")
    fit(zo, batches(), steps=4, recorded=recorded)
    assert zo.journal is not None and len(read_journal(path)[1]) == 4
    zo.journal.close()
    with pytest.raises(FileExistsError, match="exists already"):
        fit(optimizer(), batches(), steps=4, journal=path)
    with pytest.raises(ValueError, match="lr_schedule is None there, but 'linear' in this run"):
        fit(optimizer(), batches(), steps=4, journal=path, resume=True)
    resumed = optimizer()
    with pytest.raises(ValueError, match="recorded has 4 steps, more than the 3 of the run"):
        fit(resumed, batches(), steps=3, recorded=resumed.open_journal(path, resume=True))
