"""Time on a GPU: replays of CUDA graphs between two events, so that the host's work is not in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.gpu.report import l2_cache
from benchmarks.harness import Timing, Variant, time_variants

MOST_COPIES = 24


class Stopwatch:
    """Times calls on one device.

    Args:
        device: a CUDA or ROCm device, or the CPU, where calls are timed as they are.
        rounds: samples of each variant, at least 2.
        shortest: seconds; a sample is of as many calls as take that long.
    """

    def __init__(self, device: torch.device, rounds: int, shortest: float = 2e-3) -> None:
        self.device, self._rounds, self._shortest = device, rounds, shortest

    def copies(self, size: int) -> int:
        """How many sets of operands of `size` bytes to take turns with, for none to be in the cache."""
        return min(MOST_COPIES, 1 + 2 * l2_cache(self.device) // size)

    def time(self, variants: Mapping[str, Sequence[Variant]]) -> dict[str, Timing]:
        """Seconds per call of each variant.

        Args:
            variants: by name, the calls to make one after another, each on its own set of operands.
        """
        if self.device.type != "cuda":
            runs = {name: _all(calls) for name, calls in variants.items()}
            timings = time_variants(runs, self._rounds, self._shortest)
            return {name: _shared(timing, len(variants[name])) for name, timing in timings.items()}
        replays = {name: captured(_all(calls)) for name, calls in variants.items()}
        counts = {name: self._count(replay) for name, replay in replays.items()}
        samples: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(self._rounds):  # in turns: a change of the clock meets all of them
            for name, replay in replays.items():
                samples[name].append(_seconds(replay, counts[name]) / counts[name] / len(variants[name]))
        return {name: Timing.of(values) for name, values in samples.items()}

    def _count(self, replay: Variant) -> int:
        _seconds(replay, 1)
        return 1 + int(self._shortest / _seconds(replay, 1))


def captured(run: Variant) -> Callable[[], None]:
    """The replay of a CUDA graph of `run`, which is made twice before to compile, tune and allocate."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def time_steps(step: Variant, device: torch.device, seconds: float, least: int = 3) -> Timing:
    """Seconds of a step that ends on the host, by the clock on the wall: as many as fit into `seconds`."""
    samples: list[float] = []
    while len(samples) < least or sum(samples) < seconds:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        samples.append(time.perf_counter() - start)
    return Timing.of(samples)


def _all(calls: Sequence[Variant]) -> Variant:
    def run() -> None:
        for call in calls:
            call()

    return run


def _shared(timing: Timing, calls: int) -> Timing:
    return Timing(timing.p20 / calls, timing.p50 / calls, timing.p80 / calls)


def _seconds(replay: Variant, count: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        replay()
    end.record()
    end.synchronize()
    return 1e-3 * float(start.elapsed_time(end))
