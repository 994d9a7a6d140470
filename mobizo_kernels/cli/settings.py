"""What a user can set of runs and of the files of runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from typer import Argument, Option

from mobizo_kernels.choices import (
    MAX_RANK,
    SMOLLM2,
    Answers,
    Distribution,
    Dtype,
    EstimatorName,
    Lowering,
    Optimizer,
    Quantization,
    ReadoutLayers,
    Shaping,
)
from mobizo_kernels.cli.task_settings import (
    MAX_THREADS,
    Engine,
    PromptSettings,
    QuestionSettings,
    Start,
    TaskSettings,
    adapter_option,
    check_numbers,
    data_option,
    engine_option,
    main_option,
    optimizer_option,
    run_option,
    tuning_option,
)
from mobizo_kernels.errors import InputError
from mobizo_kernels.run_defaults import RUN, LrSchedule

if TYPE_CHECKING:
    from mobizo_kernels.optim import UpdateRule
    from mobizo_kernels.zo import Estimator


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What a step is made of: the adapter that is tuned, and the copies of the batch that are tried."""

    queries: Annotated[int, tuning_option(min=1, help="Directions tried in each step.")] = 32
    batch_size: Annotated[int, tuning_option(min=1, help="Rows in each step.")] = 8
    estimator: Annotated[
        EstimatorName, tuning_option(help="Central or forward differences, or losses centred by their mean.")
    ] = "two_sided"
    distribution: Annotated[Distribution, tuning_option(help="Of the directions.")] = "rademacher"
    optimizer: Annotated[
        Optimizer,
        optimizer_option(help="What an estimate makes of LoRA-B; each wants its own --lr."),
    ] = "sgd"
    momentum: Annotated[float, optimizer_option(help="Of sgd, in [0, 1).")] = 0.0
    beta1: Annotated[
        float, optimizer_option(help="Of adam: how long the mean of the estimates lasts, in [0, 1).")
    ] = 0.9
    beta2: Annotated[float, optimizer_option(help="Of adam: the same for their squares.")] = 0.999
    adam_eps: Annotated[float, optimizer_option(help="Of adam: added to the root of the mean square.")] = 1e-8
    weight_decay: Annotated[float, optimizer_option(help="Of LoRA-B, decoupled.")] = 0.0
    rank: Annotated[int, adapter_option(min=1, max=MAX_RANK, help="Of the LoRA.")] = 8
    alpha: Annotated[float | None, adapter_option(help="Of the LoRA.", show_default="twice the rank")] = None
    targets: Annotated[str, adapter_option(help="Names of the linears to adapt, or all-linear.")] = (
        "all-linear"
    )
    tail: Annotated[
        int,
        adapter_option(
            min=0,
            help="Tokens at the end of the prompt on which the adapter acts (Activated LoRA); those before "
            "are then computed once for all directions. 0 for all of the prompt. Where answers are free, any "
            "other number stands for the tokens by which the chat template begins an answer.",
        ),
    ] = 2
    layers: Annotated[
        str,
        adapter_option(
            help="Layers to adapt: FIRST:LAST, counted from 0, or the upper ones: top-N or top-N%."
        ),
    ] = "top-67%"
    quantization: Annotated[
        Quantization,
        engine_option(
            help="Of the base weights; int8-dynamic also of what linears are given, which is faster."
        ),
    ] = "none"
    lowering: Annotated[
        Lowering,
        engine_option(
            help="Of the adapters inside ExecuTorch: our op, or stock operators that a delegate takes with "
            "the decoder (--distribution outer)."
        ),
    ] = "custom-op"
    context: Annotated[
        int | None,
        engine_option(
            min=4,
            help="Let the program write, too: most tokens of a prompt and its answer.",
            show_default="a program that does not write",
        ),
    ] = None

    def __post_init__(self) -> None:
        """Refuse an adapter that would not act, or against its own sign. Raises InputError, also as above."""
        super().__post_init__()  # type: ignore[misc]  # of what is put to the model, which no class is without
        if self.alpha is not None and self.alpha <= 0:
            raise InputError(f"alpha: expected a number above 0, got {self.alpha}")


@dataclass(frozen=True, kw_only=True)
class ExportSettings(StepSettings, QuestionSettings):
    """What `mobizo export` can be told."""

    takes_free_answers: ClassVar[bool] = True

    out: Annotated[Path, main_option(help="FILE.pte for the program.")]
    overwrite: Annotated[
        bool, main_option("--overwrite", help="Replace FILE.pte, and FILE.json of --tokenizer.")
    ] = False
    adapter: Annotated[
        Path | None,
        main_option(
            help="PEFT directory to begin with; --rank, --alpha, --targets and --layers are then its own."
        ),
    ] = None
    answer_tokens: Annotated[
        int, data_option(min=1, help="Most tokens of a free answer, with the one that ends it.")
    ] = 64
    tokenizer: Annotated[
        Path | None,
        run_option(help="FILE.json for the tokenizer, which mobizo_runner needs to take texts."),
    ] = None
    static_length: Annotated[
        bool,
        engine_option("--static-length", help="Always pad to --max-length, for runtimes of fixed shapes."),
    ] = False
    seed: Annotated[int, run_option(help="Of LoRA-A.")] = 0


@dataclass(frozen=True, kw_only=True)
class TrainSettings(StepSettings, TaskSettings):
    """What `mobizo train` can be told. The defaults are the recipe of `mobizo demo`."""

    out: Annotated[Path, main_option(help="Directory for the adapter, the metrics and the plot.")]
    overwrite: Annotated[bool, main_option("--overwrite", help="Replace the files of a run in --out.")] = (
        False
    )
    engine: Annotated[Engine, engine_option(help="torch, or ExecuTorch with the native trainer.")] = "eager"
    program: Annotated[
        Path | None,
        engine_option(help="FILE.pte of mobizo export.", show_default="export to OUT/program.pte"),
    ] = None
    start: Annotated[
        Start,
        tuning_option(
            help="What the steps go on from: the model, or a logistic regression on its last hidden states; "
            "auto is the latter where there are labels and it can be made."
        ),
    ] = "auto"
    readout_rows: Annotated[int, tuning_option(min=1, help="Most rows that a readout is made of.")] = (
        RUN.readout_rows
    )
    readout_layers: Annotated[
        ReadoutLayers,
        tuning_option(
            help="What a readout reads: the last hidden states alone, or, in torch, several layers as well."
        ),
    ] = "last"
    steps: Annotated[int, main_option(min=1, help="Number of steps.")] = RUN.steps
    eps: Annotated[float, tuning_option(help="Size of a perturbation.")] = RUN.eps
    lr: Annotated[float, optimizer_option(help="Learning rate.")] = RUN.lr
    lr_schedule: Annotated[
        LrSchedule, optimizer_option(help="How --lr goes on; all but constant fall to 0.")
    ] = RUN.lr_schedule
    normalize: Annotated[
        bool, tuning_option(help="Divide by the spread of the losses, not by eps (FZOO).")
    ] = RUN.normalize
    objective: Annotated[
        str,
        tuning_option(
            help="What is learned: cross-entropy; with labels accuracy; with free answers exact-match, f1, "
            "rouge-l, json-answer, ten-words, or FILE.py:FUNCTION, a reward of what the model writes."
        ),
    ] = "cross-entropy"
    reward_shaping: Annotated[
        Shaping,
        tuning_option(help="Of the losses by which directions are weighed: their ranks, or standardised."),
    ] = "none"
    stop_unsteady: Annotated[
        bool, tuning_option(help="End the run when its loss runs away, and keep the best adapter before.")
    ] = RUN.stop_unsteady
    seed: Annotated[int, run_option(help="Of the directions, the batches, LoRA-A and what is read out.")] = (
        RUN.run_seed
    )
    validation_rows: Annotated[int, data_option(min=1, help="Most rows of the validation split to use.")] = (
        RUN.validation_rows
    )
    state_memory: Annotated[
        int,
        run_option(
            min=0,
            help="MiB for what the base model makes of rows before --tail, to be used again when they come "
            "round (torch only).",
        ),
    ] = 1024
    eval_every: Annotated[
        int | None, run_option(min=1, help="Steps between validations.", show_default="a tenth of --steps")
    ] = None
    journal: Annotated[
        Path | None, main_option(help="File that records each step, so that a run that is cut off can go on.")
    ] = None
    accumulate: Annotated[
        int,
        tuning_option(
            min=1,
            help="Batches of --batch-size rows in each step: one estimate of them all, in the memory of one "
            "(torch only).",
        ),
    ] = 1
    dry_run: Annotated[
        bool,
        main_option(
            "--dry-run",
            help="Say what the run would be made of, time one step and estimate the rest; write nothing.",
        ),
    ] = False
    tensorboard: Annotated[
        Path | None, run_option(help="Directory for losses, validations and speed as TensorBoard shows them.")
    ] = None
    resume: Annotated[bool, main_option("--resume", help="Go on with the run that --journal records.")] = (
        RUN.resume
    )

    @property
    def step_rows(self) -> int:
        """Rows in each step."""
        return self.batch_size * self.accumulate

    def __post_init__(self) -> None:
        """Refuse options that need another, which is not there. Raises InputError, also as above."""
        if self.resume and self.journal is None:
            raise InputError("resume: expected --journal FILE with it, the record of the run to go on with")
        if self.engine == "executorch" and self.dry_run:
            raise InputError("dry_run: expected --engine eager: a program has to be exported to be timed")
        if self.engine == "executorch" and self.accumulate > 1:
            raise InputError(
                f"accumulate: --engine executorch makes each step of one batch, got {self.accumulate}; "
                "expected a larger --batch-size in its place"
            )
        if self.engine != "executorch":
            if self.program is not None:
                raise InputError("program: expected --engine executorch with it")
            if self.lowering != "custom-op":
                raise InputError(f"lowering: {self.lowering} is for --engine executorch")
            if self.context is not None:
                raise InputError(f"context: {self.context} is for --engine executorch; torch needs none")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TokenizeSettings(PromptSettings):
    """What `mobizo tokenize` can be told."""

    takes_free_answers: ClassVar[bool] = True

    out: Annotated[Path, main_option(help="FILE.safetensors for the data set.")]
    overwrite: Annotated[bool, main_option("--overwrite", help="Replace FILE.safetensors.")] = False
    steps: Annotated[int, main_option(min=1, help="Steps to lay out batches for; more start again.")] = (
        RUN.steps
    )
    answers: Annotated[
        Answers, data_option(help="Of a conversation with free answers: all of them, or the last one.")
    ] = "all"
    batch_size: Annotated[int, run_option(min=1, help="Rows in each step.")] = StepSettings.batch_size
    seed: Annotated[int, run_option(help="Of the batches.")] = RUN.run_seed
    validation_rows: Annotated[int, data_option(min=1, help="Most rows of the validation split to use.")] = (
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


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """What `mobizo replay` can be told."""

    journal: Annotated[Path, Argument(metavar="JOURNAL", help="The record of the run.")]
    out: Annotated[Path, Option(help="Directory for the PEFT adapter.")]
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the adapter in --out.")] = False
    model: Annotated[str, Option(help=f"Base model: {SMOLLM2}, a directory, or a name on the hub.")] = SMOLLM2
    start: Annotated[
        Path | None,
        Option(
            help="PEFT directory of the adapter that the run began with.",
            show_default="JOURNAL.start if there is one, else that of a run on --start zero",
        ),
    ] = None
    until: Annotated[int | None, Option(min=0, help="Steps to apply.", show_default="all")] = None
    dtype: Annotated[
        Literal["auto", Dtype], Option(help="Type of the base model's weights; auto is that of the run.")
    ] = "auto"
    quantization: Annotated[Quantization, Option(help="Of the base model, as it was tuned over.")] = "none"

    def __post_init__(self) -> None:
        check_numbers(self)


RANDOM_MODEL = "random"


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What `mobizo bench` can be told. The defaults are those of `mobizo train`."""

    model: Annotated[
        str,
        Option(
            help=f"{RANDOM_MODEL}: random weights in the sizes of SmolLM2-135M; {SMOLLM2}; a directory; "
            "or a name on the hub."
        ),
    ] = RANDOM_MODEL
    dtype: Annotated[Dtype, Option(help="Type of the base model's weights.")] = "bfloat16"
    quantization: Annotated[Quantization, Option(help="Of the base weights.")] = "none"
    batch_size: Annotated[int, Option(min=1, help="Rows in each step.")] = StepSettings.batch_size
    tokens: Annotated[int, Option(min=2, help="Of each row, with the one that is its label.")] = 48
    queries: Annotated[int, Option(min=1, help="Directions tried in each step.")] = StepSettings.queries
    distribution: Annotated[Distribution, Option(help="Of the directions.")] = StepSettings.distribution
    rank: Annotated[int, Option(min=1, max=MAX_RANK, help="Of the LoRA.")] = StepSettings.rank
    tail: Annotated[int, Option(min=0, help="Tokens on which the adapter acts; 0 for all.")] = (
        StepSettings.tail
    )
    layers: Annotated[str, Option(help="Layers to adapt.")] = StepSettings.layers
    rounds: Annotated[int, Option(min=1, help="Times that each is timed.")] = 5
    threads: Annotated[
        int | None, Option(min=1, max=MAX_THREADS, help="CPU threads.", show_default="torch's choice")
    ] = None

    def __post_init__(self) -> None:
        check_numbers(self)


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
