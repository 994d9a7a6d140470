"""The tests of the noise pass right noise, and fail what is wrong with it in the ways that they look for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.statistics import battery, dieharder, names, words

Values = NDArray[np.float32]
COUNT = 200_000


def spoiled(change: Callable[[Values], Values]) -> battery.Sampler:
    """The kernels' values, changed."""
    return lambda *place: change(battery.kernel_noise(*place))


def least(*verdicts: battery.Verdict) -> battery.Verdict:
    return min(verdicts, key=lambda verdict: verdict.p_value)


def test_right_noise_passes() -> None:
    verdicts = [
        *battery.gaussian(battery.kernel_noise, COUNT),
        *battery.rademacher(battery.kernel_noise, COUNT),
    ]
    for distribution in ("gaussian", "rademacher"):
        verdicts.append(battery.lags(battery.kernel_noise, COUNT, distribution))
        verdicts += battery.correlations(battery.kernel_noise, 40, 2048, distribution)
    assert len(verdicts) == 24
    assert least(*verdicts).p_value > 1e-4


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda z: z * np.float32(1.01), "gaussian: E[z^2]"),
        (lambda z: z + np.float32(0.01), "gaussian: E[z^1]"),
        (lambda z: np.clip(z, -3, 3), "gaussian: |z| > 3"),
        (lambda z: np.round(z, 1), "gaussian: Kolmogorov-Smirnov"),
        (lambda z: np.round(z, 1), "gaussian: Anderson-Darling"),
    ],
)
def test_a_wrong_law_is_seen(change: Callable[[Values], Values], name: str) -> None:
    found = {verdict.name: verdict for verdict in battery.gaussian(spoiled(change), COUNT)}
    assert found[name].p_value < 1e-4


def test_wrong_signs_are_seen() -> None:
    def every_eighth_repeats(signs: Values) -> Values:
        signs[7::8] = signs[6::8]
        return signs

    found = list(battery.rademacher(spoiled(every_eighth_repeats), COUNT))
    assert all(verdict.p_value < 1e-4 for verdict in found[1:])


def test_an_echo_is_seen() -> None:
    def echo(z: Values) -> Values:
        z[100:] = z[100:] + np.float32(0.05) * z[:-100]
        return z

    assert battery.lags(spoiled(echo), COUNT, "gaussian").p_value < 1e-4


def test_shared_noise_is_seen() -> None:
    def forgets_streams(seed: int, stream: int, count: int, distribution: str) -> Values:
        return battery.kernel_noise(seed, stream % 2, count, distribution)

    streams, *others = battery.correlations(forgets_streams, 40, 2048, "gaussian")
    assert streams.p_value < 1e-12
    assert least(*others).p_value > 1e-4


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("order", words.ORDERS)
def test_words_are_those_of_the_contract(order: str, program: Path) -> None:
    for run_seed in (0, 2**40 + 7):
        expected = words.expected(order, run_seed, 9)
        assert np.array_equal(words.written(program, order, run_seed, 9), expected)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return words.build(tmp_path_factory.mktemp("words"))


def test_what_dieharder_says() -> None:
    table = (
        "  diehard_birthdays,   0,0.28,  PASSED  \n  sts_serial, 1,0.001, WEAK\n sts_serial, 1,0.4, PASSED\n"
    )
    assert dieharder.summary("elements", table) == dieharder.Outcome(
        "elements", 2, ["sts_serial(1) p=0.001"], []
    )
    with pytest.raises(RuntimeError, match="dieharder printed no result"):
        dieharder.summary("elements", "# no test\n")


def test_names_of_a_family() -> None:
    found = names.parameter_names("qwen3")
    assert "model.layers.63.self_attn.q_proj.weight" in found
    assert len(found) == len(set(found)) == 707
