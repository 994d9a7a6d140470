"""All parameters of a model, each group of rows seeing them moved along directions "outer" of its own."""

from mobizo_kernels.parameters.directions import ParameterDirections
from mobizo_kernels.parameters.trials import is_bare, perturb_candidates
from mobizo_kernels.parameters.wrapping import (
    check_tuned,
    has_wrapped_parameters,
    parameter_directions,
    trained_parameters,
    unwrap_parameters,
    wrap_parameters,
)

__all__ = [
    "ParameterDirections",
    "check_tuned",
    "has_wrapped_parameters",
    "is_bare",
    "parameter_directions",
    "perturb_candidates",
    "trained_parameters",
    "unwrap_parameters",
    "wrap_parameters",
]
