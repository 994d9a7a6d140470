"""What a user can set of a model and its data: the fields of these classes are the options of commands."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from typer import Option

from mobizo_kernels.choices import (
    FREE_TASKS,
    LABELLED_TASKS,
    ROTTEN_TOMATOES,
    SMOLLM2,
    Answers,
    Dtype,
    Quantization,
)
from mobizo_kernels.errors import InputError

Engine = Literal["eager", "executorch"]
Start = Literal["auto", "zero", "readout"]
AUTOMATIC_DTYPE: dict[str, str] = {"eager": "bfloat16", "executorch": "float32"}

MAX_THREADS = 1024  # more than a machine has cores; a system that cannot start so many breaks anywhere
_MOST = 2**31 - 1  # of anything that is counted: what both engines take

# Which heading of the help an option stands under; what most runs need stands under none, which comes first.
main_option = Option
data_option = partial(Option, rich_help_panel="Data")
adapter_option = partial(Option, rich_help_panel="Adapter")
optimizer_option = partial(Option, rich_help_panel="Optimizer")
tuning_option = partial(Option, rich_help_panel="Tuning")
run_option = partial(Option, rich_help_panel="Run")
engine_option = partial(Option, rich_help_panel="Engine")


def check_numbers(settings: Any) -> None:
    """Raise InputError if a number is not finite, or too large to count with."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{field.name}: expected a finite number, got {value}")
        if isinstance(value, int) and value > _MOST and field.name != "seed":
            raise InputError(f"{field.name}: expected at most {_MOST}, got {value}")


@dataclass(frozen=True, kw_only=True)
class QuestionSettings:
    """A model and the question that is put to it."""

    takes_free_answers: ClassVar[bool] = False

    model: Annotated[str, main_option(help=f"{SMOLLM2}, a directory, or a name on the hub.")] = SMOLLM2
    data: Annotated[
        str, main_option(help=f"{', '.join([*LABELLED_TASKS, *FREE_TASKS])}, FILE.csv or FILE.jsonl.")
    ] = ROTTEN_TOMATOES
    template: Annotated[
        str,
        main_option(
            help="The prompt; {text} stands for the text, {NAME} for another column, {{ for a brace.",
            show_default="that of --data",
        ),
    ] = ""
    verbalizer: Annotated[
        str,
        main_option(
            help="JSON: the word that answers the prompt, for each label.", show_default="that of --data"
        ),
    ] = ""
    max_length: Annotated[
        int,
        data_option(
            min=0,
            help="Most tokens of a row; longer texts are cut, and free answers refused.",
            show_default="128, of free answers 512",
        ),
    ] = 0

    def __post_init__(self) -> None:
        """Fill in the prompt of a named task where none is given.

        Raises:
            InputError: a number is not finite or too large, or no prompt is given and `data` is a file.
        """
        check_numbers(self)
        free = self.free_answers
        if not self.max_length:
            object.__setattr__(self, "max_length", 512 if free else 128)
        if self.data in FREE_TASKS and not free:
            raise InputError(f"data: the answers of {self.data} are free text, which {self._refused}")
        for name in ("template", "verbalizer"):
            if free or getattr(self, name):
                continue
            if self.data not in LABELLED_TASKS:
                raise InputError(f"{name}: expected one with --data {self.data}, which has none of its own")
            from mobizo_kernels.data import TASKS  # takes seconds, which a mistake in the options need not

            own = getattr(TASKS[self.data], name)
            object.__setattr__(self, name, own if isinstance(own, str) else json.dumps(dict(own)))

    @property
    def free_answers(self) -> bool:
        """Whether the answers are free text, not the words of labels."""
        named = self.data in FREE_TASKS or (
            self.data not in LABELLED_TASKS and self.data.lower().endswith(".jsonl")
        )
        return self.takes_free_answers and named and not self.template and not self.verbalizer

    @property
    def _refused(self) -> str:
        if self.takes_free_answers:
            return "have no --template and no --verbalizer"
        return "are for conversations"


@dataclass(frozen=True, kw_only=True)
class PromptSettings(QuestionSettings):
    """The same, and labelled texts to ask about."""

    text_column: Annotated[str, data_option(help="Column of the text in FILE.")] = "text"
    label_column: Annotated[str, data_option(help="Column of the label in FILE.")] = "label"
    train_rows: Annotated[
        int | None, data_option(min=1, help="Most rows of the training split to use.", show_default="all")
    ] = None
    eval_rows: Annotated[int, data_option(min=1, help="Most rows of the test split to use.")] = 600


@dataclass(frozen=True, kw_only=True)
class TaskSettings(PromptSettings):
    """The same, to be computed by torch."""

    takes_free_answers: ClassVar[bool] = True

    answers: Annotated[
        Answers, data_option(help="Of a conversation with free answers: all of them, or the last one.")
    ] = "all"
    max_new_tokens: Annotated[
        int, data_option(min=1, help="Most tokens of a free answer that the model writes.")
    ] = 64
    dtype: Annotated[
        Literal["auto", Dtype],
        data_option(help="Type of the base model's weights; auto is bfloat16, inside ExecuTorch float32."),
    ] = "auto"
    threads: Annotated[
        int | None,
        run_option(min=1, max=MAX_THREADS, help="CPU threads.", show_default="the engine's choice"),
    ] = None

    @property
    def weights(self) -> str:
        """The type that `dtype` stands for in torch."""
        return AUTOMATIC_DTYPE["eager"] if self.dtype == "auto" else self.dtype


@dataclass(frozen=True, kw_only=True)
class EvalSettings(TaskSettings):
    """What `mobizo eval` can be told."""

    adapter: Annotated[Path | None, main_option(help="Directory of a PEFT adapter of the model.")] = None
    quantization: Annotated[Quantization, data_option(help="Of the base model, as it was tuned over.")] = (
        "none"
    )


def as_json(settings: Any) -> dict[str, Any]:
    """The settings as JSON can hold them."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()
    }
