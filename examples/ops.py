"""The ops alone: no model, no adapters. Forward passes find the minimum of any function of a tensor.

python ops.py
"""

import torch

from mobizo_kernels import ops

wanted = torch.linspace(-1, 1, 256)
found = torch.zeros(256)
stream = ops.parameter_stream("found")  # two parameters never share their noise
queries, eps, lr = 8, 1e-3, 1.5e-2


def loss(values: torch.Tensor) -> float:
    """Stands for anything that can be computed, and need have no gradient."""
    return float((values - wanted).square().sum())


for step in range(200):
    seeds = torch.arange(step * queries, (step + 1) * queries)  # which directions: one number each
    slopes = torch.empty(queries)
    for query in range(queries):
        seed = seeds[query : query + 1]
        ops.perturb_(found, seed, torch.tensor([eps]), stream)  # found += eps z(seed)
        above = loss(found)
        ops.perturb_(found, seed, torch.tensor([-2 * eps]), stream)
        below = loss(found)
        ops.perturb_(found, seed, torch.tensor([eps]), stream)
        slopes[query] = (above - below) / (2 * eps)
    ops.zo_update(found, seeds, -lr / queries * slopes, stream)  # all directions in one pass
    if step % 40 == 39:
        print(f"step {step + 1}: loss {loss(found):.4f}")
