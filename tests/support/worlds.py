"""Processes that train together by gloo, forked from one that has imported all they need."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["mobizo_kernels.zo"])
TIMEOUT = 60.0


def run_world(
    ranks: int, run: Callable[[Any], Any], argument: Any, folder: Path, *, joined: bool = True
) -> list[Any]:
    """What `run(argument)` returns in each process, in which all of a gloo group are ranks.

    Args:
        ranks: how many.
        run: of a module that children can import.
        argument: for all of them.
        folder: where they meet.
        joined: they have; otherwise the environment says where they are to meet, as torchrun does it.

    Returns:
        A value for each rank, None for one that was killed.

    Raises:
        AssertionError: with its traceback, if a rank raised an error.
    """
    ends, processes = [], []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    for rank in range(ranks):
        here, there = CHILDREN.Pipe()
        names = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        address = f"file://{folder}/meeting" if joined else None
        process = CHILDREN.Process(target=_child, args=(there, names, address, run, argument), daemon=True)
        process.start()
        there.close()
        ends.append(here)
        processes.append(process)
    results = []
    for rank, (end, process) in enumerate(zip(ends, processes, strict=True)):
        try:
            assert end.poll(TIMEOUT), f"rank {rank} is silent"
            error, value = pickle.loads(end.recv_bytes())
        except EOFError:  # killed
            error, value = None, None
        assert error is None, f"rank {rank}:\n{error}"
        results.append(value)
        process.join(TIMEOUT)
    return results


def _child(
    end: Connection, names: dict[str, str], address: str | None, run: Callable[[Any], Any], argument: Any
) -> None:
    os.environ.update(names)
    torch.set_num_threads(1)
    try:
        if address is not None:
            ranks, rank = int(names["WORLD_SIZE"]), int(names["RANK"])
            dist.init_process_group("gloo", address, timedelta(seconds=30), world_size=ranks, rank=rank)
        end.send_bytes(pickle.dumps((None, run(argument))))
    except BaseException:
        end.send_bytes(pickle.dumps((traceback.format_exc(), None)))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def same_bits(values: Sequence[Mapping[str, torch.Tensor]]) -> bool:
    """Whether tensors by name are equal everywhere."""
    first = values[0]
    return all(
        one.keys() == first.keys() and all(torch.equal(one[name], first[name]) for name in first)
        for one in values
    )
