"""What a program that writes says of it.

executorch_ops/trainer/program/description.cpp is the native twin: the same fields, checks and sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

from mobizo_kernels.errors import blaming
from mobizo_kernels.executorch.description_readers import Reader, check_size, list_of, object_of, whole

_LEAST = 3  # of both sizes, below which no program is exported


@dataclass(frozen=True, kw_only=True)
class GenerationDescription:
    """What a program that writes does.

    Attributes:
        context: N, most tokens of a prompt and its answer.
        chunk: most tokens that the method `next_logits` takes at once.
        stop_tokens: each ends an answer.
    """

    context: int
    chunk: int
    stop_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("context", "chunk"):
            with blaming(name):
                check_size(getattr(self, name), _LEAST)
        if self.chunk > self.context:
            raise ValueError(f"chunk must be at most {self.context}, the context, got {self.chunk}")

    def check_tokens(self, vocabulary: int) -> None:
        """Raise ValueError unless the stop tokens are of a vocabulary of this size."""
        for token in self.stop_tokens:
            if not 0 <= token < vocabulary:
                raise ValueError(f"stop_tokens must be from 0 to {vocabulary - 1}, got {token}")


read_generation: Reader = object_of(
    GenerationDescription, {"context": whole, "chunk": whole, "stop_tokens": list_of(whole)}
)
"""What makes a `GenerationDescription` of the JSON that stands under "generation"."""
