"""What a user can set, declared once: the fields of these classes are the options of the commands."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from typer import Argument, Option

from mobizo_kernels.choices import (
    FREE_TASKS,
    LABELLED_TASKS,
    MAX_RANK,
    ROTTEN_TOMATOES,
    SMOLLM2,
    Answers,
    Distribution,
    Dtype,
    EstimatorName,
    Lowering,
    Optimizer,
    Quantization,
    Shaping,
)
from mobizo_kernels.errors import InputError
from mobizo_kernels.run_defaults import RUN, LrSchedule

if TYPE_CHECKING:
    from mobizo_kernels.optim import UpdateRule
    from mobizo_kernels.zo import Estimator

Engine = Literal["eager", "executorch"]
Start = Literal["auto", "zero", "readout"]
AUTOMATIC_DTYPE: dict[str, str] = {"eager": "bfloat16", "executorch": "float32"}

_MOST = 2**31 - 1  # of anything that is counted: what both engines take

# Which heading of the help an option stands under.
_task = partial(Option, rich_help_panel="Model and data")
_tune = partial(Option, rich_help_panel="Tuning")
_run = partial(Option, rich_help_panel="Run")
_engine = partial(Option, rich_help_panel="Engine")


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

    model: Annotated[str, _task(help=f"{SMOLLM2}, a directory, or a name on the hub.")] = SMOLLM2
    data: Annotated[
        str, _task(help=f"{', '.join([*LABELLED_TASKS, *FREE_TASKS])}, FILE.csv or FILE.jsonl.")
    ] = ROTTEN_TOMATOES
    template: Annotated[
        str,
        _task(
            help="The prompt; {text} stands for the text, {NAME} for another column, {{ for a brace.",
            show_default="that of --data",
        ),
    ] = ""
    verbalizer: Annotated[
        str,
        _task(help="JSON: the word that answers the prompt, for each label.", show_default="that of --data"),
    ] = ""
    max_length: Annotated[
        int,
        _task(
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

    text_column: Annotated[str, _task(help="Column of the text in FILE.")] = "text"
    label_column: Annotated[str, _task(help="Column of the label in FILE.")] = "label"
    train_rows: Annotated[
        int | None, _task(min=1, help="Most rows of the training split to use.", show_default="all")
    ] = None
    eval_rows: Annotated[int, _task(min=1, help="Most rows of the test split to use.")] = 600


@dataclass(frozen=True, kw_only=True)
class TaskSettings(PromptSettings):
    """The same, to be computed by torch."""

    takes_free_answers: ClassVar[bool] = True

    answers: Annotated[
        Answers, _task(help="Of a conversation with free answers: all of them, or the last one.")
    ] = "all"
    max_new_tokens: Annotated[
        int, _task(min=1, help="Most tokens of a free answer that the model writes.")
    ] = 64
    dtype: Annotated[
        Literal["auto", Dtype],
        _task(help="Type of the base model's weights; auto is bfloat16, inside ExecuTorch float32."),
    ] = "auto"
    threads: Annotated[int | None, _run(min=1, help="CPU threads.", show_default="the engine's choice")] = (
        None
    )

    @property
    def weights(self) -> str:
        """The type that `dtype` stands for in torch."""
        return AUTOMATIC_DTYPE["eager"] if self.dtype == "auto" else self.dtype


@dataclass(frozen=True, kw_only=True)
class EvalSettings(TaskSettings):
    """What `mobizo eval` can be told."""

    adapter: Annotated[Path | None, _task(help="Directory of a PEFT adapter of the model.")] = None
    quantization: Annotated[Quantization, _task(help="Of the base model, as it was tuned over.")] = "none"


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What a step is made of: the adapter that is tuned, and the copies of the batch that are tried."""

    queries: Annotated[int, _tune(min=1, help="Directions tried in each step.")] = 32
    batch_size: Annotated[int, _tune(min=1, help="Rows in each step.")] = 8
    estimator: Annotated[
        EstimatorName, _tune(help="Central or forward differences, or losses centred by their mean.")
    ] = "two_sided"
    distribution: Annotated[Distribution, _tune(help="Of the directions.")] = "rademacher"
    optimizer: Annotated[
        Optimizer,
        _tune(help="What an estimate makes of LoRA-B; each wants its own --lr."),
    ] = "sgd"
    momentum: Annotated[float, _tune(help="Of sgd, in [0, 1).")] = 0.0
    beta1: Annotated[float, _tune(help="Of adam: how long the mean of the estimates lasts, in [0, 1).")] = 0.9
    beta2: Annotated[float, _tune(help="Of adam: the same for their squares.")] = 0.999
    adam_eps: Annotated[float, _tune(help="Of adam: added to the root of the mean square.")] = 1e-8
    weight_decay: Annotated[float, _tune(help="Of LoRA-B, decoupled.")] = 0.0
    rank: Annotated[int, _tune(min=1, max=MAX_RANK, help="Of the LoRA.")] = 8
    alpha: Annotated[float | None, _tune(help="Of the LoRA.", show_default="twice the rank")] = None
    targets: Annotated[str, _tune(help="Names of the linears to adapt, or all-linear.")] = "all-linear"
    tail: Annotated[
        int,
        _tune(
            min=0,
            help="Tokens at the end of the prompt on which the adapter acts (Activated LoRA); those before "
            "are then computed once for all directions. 0 for all of the prompt. Where answers are free, any "
            "other number stands for the tokens by which the chat template begins an answer.",
        ),
    ] = 2
    layers: Annotated[
        str, _tune(help="Layers to adapt: FIRST:LAST, counted from 0, or the upper ones: top-N or top-N%.")
    ] = "top-67%"
    quantization: Annotated[
        Quantization,
        _engine(help="Of the base weights; int8-dynamic also of what linears are given, which is faster."),
    ] = "none"
    lowering: Annotated[
        Lowering,
        _engine(
            help="Of the adapters inside ExecuTorch: our op, or stock operators that a delegate takes with "
            "the decoder (--distribution outer)."
        ),
    ] = "custom-op"


@dataclass(frozen=True, kw_only=True)
class ExportSettings(StepSettings, QuestionSettings):
    """What `mobizo export` can be told."""

    takes_free_answers: ClassVar[bool] = True

    out: Annotated[Path, _run(help="FILE.pte for the program.")]
    overwrite: Annotated[bool, _run("--overwrite", help="Replace FILE.pte.")] = False
    adapter: Annotated[
        Path | None,
        _tune(help="PEFT directory to begin with; --rank, --alpha, --targets and --layers are then its own."),
    ] = None
    answer_tokens: Annotated[
        int, _task(min=1, help="Most tokens of a free answer, with the one that ends it.")
    ] = 64
    tokenizer: Annotated[
        Path | None,
        _run(help="FILE.json for the tokenizer, which mobizo_runner needs to take texts."),
    ] = None
    static_length: Annotated[
        bool, _engine("--static-length", help="Always pad to --max-length, for runtimes of fixed shapes.")
    ] = False
    context: Annotated[
        int | None,
        _engine(
            min=4,
            help="Let the program write, too: most tokens of a prompt and its answer.",
            show_default="a program that does not write",
        ),
    ] = None
    seed: Annotated[int, _run(help="Of LoRA-A.")] = 0


@dataclass(frozen=True, kw_only=True)
class TrainSettings(StepSettings, TaskSettings):
    """What `mobizo train` can be told. The defaults are the recipe of `mobizo demo`."""

    out: Annotated[Path, _run(help="Directory for the adapter, the metrics and the plot.")]
    overwrite: Annotated[bool, _run("--overwrite", help="Replace the files of a run in --out.")] = False
    engine: Annotated[Engine, _engine(help="torch, or ExecuTorch with the native trainer.")] = "eager"
    program: Annotated[
        Path | None, _engine(help="FILE.pte of mobizo export.", show_default="export to OUT/program.pte")
    ] = None
    start: Annotated[
        Start,
        _tune(
            help="What the steps go on from: the model, or a logistic regression on its last hidden states; "
            "auto is the latter where there are labels and it can be made."
        ),
    ] = "auto"
    readout_rows: Annotated[int, _tune(min=1, help="Most rows that a readout is made of.")] = RUN.readout_rows
    steps: Annotated[int, _tune(min=1, help="Number of steps.")] = RUN.steps
    eps: Annotated[float, _tune(help="Size of a perturbation.")] = RUN.eps
    lr: Annotated[float, _tune(help="Learning rate.")] = RUN.lr
    lr_schedule: Annotated[LrSchedule, _tune(help="How --lr goes on; all but constant fall to 0.")] = (
        RUN.lr_schedule
    )
    normalize: Annotated[bool, _tune(help="Divide by the spread of the losses, not by eps (FZOO).")] = (
        RUN.normalize
    )
    objective: Annotated[
        str,
        _tune(
            help="What is learned: cross-entropy; with labels accuracy; with free answers exact-match, f1, "
            "rouge-l, json-answer, ten-words, or FILE.py:FUNCTION, a reward of what the model writes."
        ),
    ] = "cross-entropy"
    reward_shaping: Annotated[
        Shaping, _tune(help="Of the losses by which directions are weighed: their ranks, or standardised.")
    ] = "none"
    stop_unsteady: Annotated[
        bool, _tune(help="End the run when its loss runs away; what was better is kept in any case.")
    ] = RUN.stop_unsteady
    seed: Annotated[int, _run(help="Of the directions, the batches, LoRA-A and what is read out.")] = (
        RUN.run_seed
    )
    validation_rows: Annotated[int, _run(min=1, help="Most rows of the validation split to use.")] = (
        RUN.validation_rows
    )
    state_memory: Annotated[
        int,
        _run(
            min=0,
            help="MiB for what the base model makes of rows before --tail, to be used again when they come "
            "round (torch only).",
        ),
    ] = 1024
    eval_every: Annotated[
        int | None, _run(min=1, help="Steps between validations.", show_default="a tenth of --steps")
    ] = None
    journal: Annotated[
        Path | None, _run(help="File that records each step, so that a run that is cut off can go on.")
    ] = None
    resume: Annotated[bool, _run("--resume", help="Go on with the run that --journal records.")] = RUN.resume

    def __post_init__(self) -> None:
        """Refuse options that need another, which is not there. Raises InputError, also as above."""
        if self.resume and self.journal is None:
            raise InputError("resume: expected --journal FILE with it, the record of the run to go on with")
        if self.engine != "executorch":
            if self.program is not None:
                raise InputError("program: expected --engine executorch with it")
            if self.lowering != "custom-op":
                raise InputError(f"lowering: {self.lowering} is for --engine executorch")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TokenizeSettings(PromptSettings):
    """What `mobizo tokenize` can be told."""

    takes_free_answers: ClassVar[bool] = True

    out: Annotated[Path, _run(help="FILE.safetensors for the data set; one that is there is replaced.")]
    steps: Annotated[int, _run(min=1, help="Steps to lay out batches for; more start again.")] = RUN.steps
    answers: Annotated[
        Answers, _task(help="Of a conversation with free answers: all of them, or the last one.")
    ] = "all"
    batch_size: Annotated[int, _run(min=1, help="Rows in each step.")] = StepSettings.batch_size
    seed: Annotated[int, _run(help="Of the batches.")] = RUN.run_seed
    validation_rows: Annotated[int, _run(min=1, help="Most rows of the validation split to use.")] = (
        RUN.validation_rows
    )


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """What `mobizo adapter` can be told."""

    source: Annotated[Path, Argument(metavar="FROM", help="The file or directory to convert.")]
    target: Annotated[Path, Argument(metavar="TO", help="The directory or file to make of it.")]
    model: Annotated[
        str | None,
        Option(help=f"Base model of FROM, if that is a directory: {SMOLLM2}, a directory, or a hub name."),
    ] = None
    dtype: Annotated[
        Dtype,
        Option(help="Type of the base model's weights; the device's program was made from the same."),
    ] = "float32"
    overwrite: Annotated[bool, Option("--overwrite", help="Replace what TO holds.")] = False


def estimator(settings: TrainSettings) -> Estimator:
    """The estimator that the settings ask for. Raises ValueError if there is none."""
    from mobizo_kernels.zo import make_estimator

    return make_estimator(
        settings.estimator, queries=settings.queries, eps=settings.eps, normalize=settings.normalize
    )


def update_rule(settings: StepSettings) -> UpdateRule:
    """The optimizer that the settings ask for. Raises ValueError if there is none."""
    from mobizo_kernels.zo import make_rule

    return make_rule(
        settings.optimizer,
        lr=settings.lr if isinstance(settings, TrainSettings) else None,
        momentum=settings.momentum,
        betas=(settings.beta1, settings.beta2),
        adam_eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
    )


def as_json(settings: Any) -> dict[str, Any]:
    """The settings as JSON can hold them."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()
    }
