"""Let every group of rows of a forward see all parameters of a model moved along directions of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from mobizo_kernels.lora import bare, check_plain_loras, is_wrapped, plain_name
from mobizo_kernels.lora.adapter import PARAMETERS_ATTRIBUTE
from mobizo_kernels.lora.linear import device_of
from mobizo_kernels.ops import parameter_stream
from mobizo_kernels.ops.checks import STORAGE_DTYPES
from mobizo_kernels.parameters.directions import ParameterDirections, TriedVector
from mobizo_kernels.parameters.trials import AffineTrial, EmbeddingTrial, LinearTrial, Trial, VectorTrial

Model = TypeVar("Model", bound=nn.Module)

_WAY_OUT = (
    "freeze it by requires_grad_(False), or leave the model unwrapped: ZerothOrder then makes a forward for "
    "each group"
)


class WrappedParameters(ParameterDirections):
    """What `wrap_parameters` leaves on a model, as a module of it without parameters.

    Attributes:
        trials: of the modules that hold parameters which require a gradient.
        hooks: handles of what they have on these modules.
        tuned: names of the parameters.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.trials: list[Trial] = []
        self.hooks: list[object] = []
        self.tuned: set[str] = set()

    @contextmanager
    def use(self, seeds: torch.Tensor, coeffs: torch.Tensor, distribution: str = "outer") -> Iterator[None]:
        """As of :class:`ParameterDirections`. Whatever ends the block, the model is then as it was."""
        try:
            with super().use(seeds, coeffs, distribution):
                yield
        finally:
            for trial in self.trials:
                trial.ended()


def wrap_parameters(model: Model) -> Model:
    """Make a model fit for full-parameter steps in one batched forward, with directions "outer".

    :class:`mobizo_kernels.ZerothOrder` then tries all G perturbations of a step in one forward, as on a model
    of :func:`mobizo_kernels.wrap`, where an unwrapped model is perturbed in place and forwarded G times. Each
    parameter that requires a gradient is seen by group g as w + c_g z_g. With z = u v^T ("outer", u and v of
    signs) a linear adds c_g (x . v_g) u_g to what it gives, an embedding c_g u_g[id] v_g, and a vector of
    signs takes part in norms and biases: no weight is written or copied while losses are taken, so nothing
    drifts, also in bfloat16. Directions of low rank, made from a seed where they are used, are those of
    EGGROLL (arXiv 2511.16652); MeZO (arXiv 2305.17333), of which this is a step of q queries, has noise that
    is independent for each weight.

    The model stays as it is: parameters, names, state_dict and, until a step, what it computes. Tied
    parameters are one. Frozen parameters are left alone, also if they are let go later: wrap again then.
    While a step takes losses, hooks that are registered on a norm behind this see its input as [G, rows, d],
    float32, and its output as it always was.

    Of a PeftModel the parameters are those of its active adapters: A and B of a LoRA are tuned both, y = base
    + s (B + c_g z_g)(A + c_g z'_g) x, where :func:`mobizo_kernels.wrap` leaves A alone. PEFT merges and saves
    them as ever.

    Args:
        model: its parameters that require a gradient are those of `nn.Linear`, transformers' `Conv1D`,
            `nn.Embedding`, `nn.LayerNorm`, `nn.RMSNorm`, and of modules whose vectors act on each value of
            the last dimension, as transformers' norms do; float32, bfloat16 or float16. Or a PeftModel.

    Returns:
        `model`.

    Raises:
        ValueError: before the model is touched, naming what cannot be moved in a batch, if the model is
            wrapped already, or if no parameter requires a gradient.
    """
    if has_wrapped_parameters(model) or is_wrapped(model):
        undo = "unwrap" if is_wrapped(model) else "unwrap_parameters"
        raise ValueError(f"{type(model).__name__} is wrapped already; call {undo}(model) first")
    inner = bare(model)
    check_plain_loras(inner)
    names = {id(parameter): name for name, parameter in trained_parameters(inner)}
    directions = WrappedParameters(device_of(inner))
    found = []
    for path, module in inner.named_modules():
        tuned = {name: p for name, p in module._parameters.items() if p is not None and id(p) in names}
        if tuned:
            streams = {name: parameter_stream(names[id(p)]) for name, p in tuned.items()}
            _check(plain_name(path), module, tuned)
            found.append((module, _trial(plain_name(path), module, streams, directions)))
    for module, trial in found:
        directions.trials.append(trial)
        directions.hooks += trial.install(module)
    directions.tuned = set(names.values())
    setattr(inner, PARAMETERS_ATTRIBUTE, directions)
    return model


def unwrap_parameters(model: Model) -> Model:
    """Take back what :func:`wrap_parameters` did; the parameters stay as they were tuned.

    Raises:
        ValueError: if the model is not wrapped.
    """
    for hook in parameter_directions(model).hooks:
        hook.remove()  # type: ignore[attr-defined]
    delattr(bare(model), PARAMETERS_ATTRIBUTE)
    return model


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that require a gradient by their names in the model, tied ones once.

    Raises:
        ValueError: if there are none.
    """
    parameters = [(plain_name(name), p) for name, p in model.named_parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"nothing to tune: no parameter of {type(model).__name__} requires a gradient")
    return parameters


def has_wrapped_parameters(model: nn.Module) -> bool:
    """Whether the model is one of :func:`wrap_parameters`."""
    return hasattr(bare(model), PARAMETERS_ATTRIBUTE)


def parameter_directions(model: nn.Module) -> WrappedParameters:
    """What the next forward of a model of :func:`wrap_parameters` tries. Raises ValueError for any other."""
    if not has_wrapped_parameters(model):
        raise ValueError(f"{type(model).__name__} is not wrapped; call wrap_parameters(model) first")
    directions: WrappedParameters = getattr(bare(model), PARAMETERS_ATTRIBUTE)
    return directions


def check_tuned(model: nn.Module) -> None:
    """Raise ValueError unless exactly the parameters that require a gradient are moved in a forward, and are
    still of a type and on a device of which that is known.
    """
    parameters = trained_parameters(model)
    for name, parameter in parameters:
        _check_values(name, parameter)
    tuned = {name for name, _ in parameters}
    if changed := sorted(tuned ^ parameter_directions(model).tuned):
        raise ValueError(
            f"{changed[0]} was frozen or let go after wrap_parameters; call unwrap_parameters(model) and "
            "wrap_parameters(model) again"
        )


def _check(path: str, module: nn.Module, tuned: dict[str, nn.Parameter]) -> None:
    for name, parameter in tuned.items():
        _check_values(f"{path}.{name}" if path else name, parameter)
    if re.search(r"(^|\.)experts\.\d+(\.|$)", path):
        raise ValueError(
            f"{path} is an expert that sees only the tokens routed to it, so groups of rows cannot be told "
            f"apart there; {_WAY_OUT}"
        )


def _check_values(name: str, parameter: nn.Parameter) -> None:
    if type(parameter) is not nn.Parameter or parameter.dtype not in STORAGE_DTYPES:
        raise ValueError(
            f"{name} must be a parameter of float32, bfloat16 or float16, got "
            f"{type(parameter).__name__} of {parameter.dtype}"
        )
    if parameter.device.type == "meta":
        raise ValueError(f"{name} is on the meta device, which holds no values: load it first")


def _trial(path: str, module: nn.Module, streams: dict[str, int], directions: ParameterDirections) -> Trial:
    """What moves the parameters of a module whose `streams` are given by their names."""

    def vector(name: str, is_shift: bool = False) -> TriedVector:
        directions.vectors.append(TriedVector(module, name, streams[name], is_shift))
        return directions.vectors[-1]

    usual = streams.keys() <= {"weight", "bias"}  # others would be those of a parametrisation
    if usual and (_is(module, nn.Linear) or _is(module, Conv1D)):
        bias = vector("bias", is_shift=True) if "bias" in streams else None
        return LinearTrial(path, directions, streams.get("weight"), bias, isinstance(module, Conv1D))
    # With max_norm its forward writes the weight.
    if usual and _is(module, nn.Embedding) and module.max_norm is None:
        return EmbeddingTrial(path, directions, streams["weight"])
    for kind in (nn.LayerNorm, nn.RMSNorm):
        if usual and _is(module, kind) and module.weight.dim() == 1:  # type: ignore[union-attr, operator]
            return AffineTrial(path, directions, [vector(name) for name in streams])
    if _acts_on_each_value(module, list(streams)):
        return VectorTrial(path, directions, [vector(name) for name in streams])
    name, parameter = next((name, getattr(module, name)) for name in streams)
    raise ValueError(
        f"{path}.{name}: no batched forward is known for a {type(module).__name__} with a parameter of shape "
        f"{list(parameter.shape)}, only for linears, embeddings and norms; {_WAY_OUT}"
    )


def _is(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it computes what modules of a kind do, quantised ones and relatives not counted, nor one whose
    `forward` somebody replaced.
    """
    own = "forward" not in vars(module)
    return own and isinstance(module, kind) and type(module).forward is kind.forward


@torch.no_grad()
def _acts_on_each_value(module: nn.Module, names: list[str]) -> bool:
    """Whether a module takes vectors [G, 1, d] for G groups of rows, and each group then gets what it gets
    alone: tried on a few numbers.
    """
    sizes = {p.shape for p in module.parameters()}
    if len(sizes) != 1 or len(next(iter(sizes))) != 1 or any(True for _ in module.children()):
        return False
    like: torch.Tensor = getattr(module, names[0])
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, like.shape[0], generator=random).to(like.device)

    x, vectors = drawn(2, 3).to(like.dtype), {name: drawn(2, 1) for name in names}
    call: Callable[..., torch.Tensor] = torch.func.functional_call
    try:
        got = call(module, vectors, (x,))
        alone = [call(module, {n: v[group, 0] for n, v in vectors.items()}, (x[group],)) for group in (0, 1)]
        expected = torch.stack(alone)
        close = got.shape == x.shape and torch.allclose(got.float(), expected.float(), rtol=1e-3, atol=1e-4)
    except Exception:  # it wants something else
        return False
    return close
