"""What holds for all inputs of the ops on the CPU. Many examples, others in each run: `make properties`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers import DISTRIBUTIONS, DTYPES, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from op_properties import NUMBERS, SHAPES, WORDS, Shape, assert_is_the_twin, calls, filled
from update_ops import UPDATES, UpdateOp

from mobizo_kernels import ops, reference

# Of numpy, where the reference gets what has no number.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@contextmanager
def running(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


THREADS = st.sampled_from([1, 2, 5])


@pytest.mark.parametrize("update", UPDATES, ids=str)
@given(data=st.data(), threads=THREADS)
def test_updates(update: UpdateOp, data: st.DataObject, threads: int) -> None:
    with running(threads):
        assert_is_the_twin(update, data.draw(calls(update)), update.functional)


@given(
    shape=SHAPES,
    seed=WORDS,
    stream=WORDS,
    dtype=st.sampled_from(DTYPES),
    distribution=st.sampled_from(DISTRIBUTIONS),
    threads=THREADS,
)
def test_noise(
    shape: Shape, seed: int, stream: int, dtype: torch.dtype, distribution: str, threads: int
) -> None:
    with running(threads):
        z = ops.noise(shape, torch.tensor(seed), stream, distribution, dtype=dtype)
    expected = torch.from_numpy(reference.noise(shape, seed, stream, distribution))
    assert_same_bits(z, expected.to(dtype))


@given(data=st.data(), rows=st.integers(0, 5), rank=st.integers(1, 9), groups=st.integers(1, 4))
def test_a_group_of_mp_lora_is_as_if_alone(data: st.DataObject, rows: int, rank: int, groups: int) -> None:
    """Whatever stands in the other groups, their coefficients included."""
    width, height = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 70)))
    dtype, distribution = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(DISTRIBUTIONS))
    base, x = (data.draw(filled((rows * groups, size), dtype)) for size in (height, width))
    factors = data.draw(filled((rank, width), torch.float32)), data.draw(filled((height, rank), dtype))
    seeds = torch.tensor(data.draw(st.lists(WORDS, min_size=groups, max_size=groups)))
    coeffs = torch.tensor(data.draw(st.lists(NUMBERS, min_size=groups, max_size=groups)))
    rest = (data.draw(NUMBERS), data.draw(WORDS), distribution)
    got = ops.mp_lora(base, x, *factors, seeds, coeffs, *rest)
    for group in range(groups):
        part, here = slice(group * rows, (group + 1) * rows), slice(group, group + 1)
        alone = ops.mp_lora(base[part], x[part], *factors, seeds[here], coeffs[here], *rest)
        assert_same_bits(got[part], alone)
