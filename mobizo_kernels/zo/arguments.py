"""Estimators and update rules from strings and scalars, for those who do not make the objects themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobizo_kernels.optim.update_rule import UpdateRule
from mobizo_kernels.zo.estimators import Centred, Estimator, OneSided, TwoSided

_ESTIMATORS: dict[str, type[Estimator]] = {kind.name: kind for kind in (TwoSided, OneSided, Centred)}


def make_estimator(
    estimator: Estimator | str,
    *,
    queries: int | None = None,
    eps: float | None = None,
    normalize: bool | None = None,
) -> Estimator:
    """The estimator itself, or the one that is called "two_sided", "one_sided" or "centred".

    Args:
        estimator: an object, which has the other arguments in it, or a name.
        queries: beside a name, as of :class:`Estimator`; None for its default. So are the next two.
        eps: size of a perturbation.
        normalize: by the spread of the losses, not by eps.

    Raises:
        ValueError: naming the argument, if one is out of range or given beside an object.
    """
    given = _given(queries=queries, eps=eps, normalize=normalize)
    if isinstance(estimator, Estimator):
        _refuse(given, "estimator", estimator)
        return estimator
    if estimator not in _ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(_ESTIMATORS)}, got {estimator!r}")
    return _ESTIMATORS[estimator](**given)


def make_rule(
    optimizer: UpdateRule | str,
    *,
    lr: float | None = None,
    momentum: float | None = None,
    betas: tuple[float, float] | None = None,
    adam_eps: float | None = None,
    weight_decay: float | None = None,
) -> UpdateRule:
    """The update rule itself, or the one that is called "sgd", "adam" or "sign".

    Args:
        optimizer: an object, which has the other arguments in it, or a name.
        lr: beside a name, as of :class:`UpdateRule`; None for its default. So are the others.
        momentum: of "sgd".
        betas: of "adam".
        adam_eps: of "adam": `eps` there, which is the size of a perturbation here.
        weight_decay: decoupled.

    Raises:
        ValueError: naming the argument, if one is out of range or given beside an object.
    """
    given = _given(lr=lr, momentum=momentum, betas=betas, adam_eps=adam_eps, weight_decay=weight_decay)
    if isinstance(optimizer, UpdateRule):
        _refuse(given, "optimizer", optimizer)
        return optimizer
    if "adam_eps" in given:
        given["eps"] = given.pop("adam_eps")
    return UpdateRule(optimizer, **given)


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _refuse(given: Mapping[str, Any], name: str, whole: object) -> None:
    """Raise ValueError for a scalar beside the object that has it."""
    for argument, value in given.items():
        raise ValueError(f"{argument} must be left out where {name} is an object, got {value!r} and {whole}")
