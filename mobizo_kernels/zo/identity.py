"""What decides on a run: what one that goes on, or ranks that make one together, have to agree on."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mobizo_kernels.journal.replay import model_fields
from mobizo_kernels.lora import adapter_layers, adapter_of, is_wrapped
from mobizo_kernels.lora.weights_fingerprint import adapter_fingerprints, frozen_fingerprint
from mobizo_kernels.zo.split import Split

if TYPE_CHECKING:
    from mobizo_kernels.zo.zeroth_order import ZerothOrder


def identity(zo: ZerothOrder) -> dict[str, Any]:
    """What decides, together with a step's number, on the directions and on what is made of them, and the
    adapter that they are of.
    """
    candidates = zo.loss.candidates
    found: dict[str, Any] = {
        **zo.estimator.as_json(),
        "run_seed": zo.run_seed,
        "distribution": zo.distribution,
        "optimizer": zo.rule.as_json(),
        "candidate_tokens": None if candidates is None else candidates.tolist(),
    }
    if is_wrapped(zo.model):
        layers = adapter_layers(zo.model)
        found["scalings"] = {name: layer.scaling for name, layer in layers.items()}
        found["invocation_tokens"] = list(adapter_of(zo.model).config.alora_invocation_tokens or ())
        found["lora_a"] = adapter_fingerprints(zo.model)[0]
    return found


def shared_identity(zo: ZerothOrder, split: Split, check_every: int | None) -> dict[str, Any]:
    """What ranks have to agree on. What steps have changed is not in it: a rank may have missed some."""
    found = {**identity(zo), "optimizer": zo.rule, **model_fields(zo.model)}
    del found["lora_b"]
    if not is_wrapped(zo.model):
        del found["base_fingerprint"]  # of what is tuned, too
        found["frozen_fingerprint"] = frozen_fingerprint(zo.model)
    return {**found, **asdict(split), "check_every": check_every}
