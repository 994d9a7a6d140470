"""The engine "executorch" of `mobizo train`: a training program, tuned by the native trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mobizo_kernels.cli.export import adapted_model, encoder_of, export, native
from mobizo_kernels.cli.interrupts import StopRequest
from mobizo_kernels.cli.memory import reset_peak_rss
from mobizo_kernels.cli.native_answers import AnswerSizes, answer_sizes, answers_outcome, check_context
from mobizo_kernels.cli.objectives import learns_accuracy, objective_name, text_reward
from mobizo_kernels.cli.processes import in_fresh_process
from mobizo_kernels.cli.progress import TuningBar
from mobizo_kernels.cli.quality import Outcome, outcome, quality_before
from mobizo_kernels.cli.results import ADAPTER_DIRECTORY, write_results
from mobizo_kernels.cli.settings import ExportSettings, TrainSettings, estimator, update_rule
from mobizo_kernels.cli.start import Beginning, begin_native
from mobizo_kernels.cli.task_settings import AUTOMATIC_DTYPE
from mobizo_kernels.cli.tensorboard import Scalars
from mobizo_kernels.cli.tokenize import tokenized
from mobizo_kernels.data import TokenizedDataset, write_dataset
from mobizo_kernels.errors import InputError, blame_input
from mobizo_kernels.journal import JournalLost, read_journal
from mobizo_kernels.lora import adapter_layers, adapter_of, model_fingerprint, peft_from_device
from mobizo_kernels.models import load_tokenizer
from mobizo_kernels.training import FitResult, Scored, Validation
from mobizo_kernels.training.objectives import Reward, RewardError

if TYPE_CHECKING:
    from mobizo_kernels.executorch import StepReport, TextReward, Trainer
    from mobizo_kernels.executorch import Validation as NativeValidation

PROGRAM_FILE = "program.pte"
DATASET_FILE = "dataset.safetensors"
ADAPTER_FILE = "adapter.safetensors"


def train_executorch(settings: TrainSettings, stop: StopRequest) -> dict[str, Any]:
    """`train` inside ExecuTorch. Returns and raises what `train` does.

    The program stays in `settings.out`, with the data set, and a run that resumes uses it again. Peak memory
    is that of this whole process, torch and transformers included, from before the program is loaded;
    exporting is done by another one.
    """
    executorch = native()
    _check(settings)
    reward = text_reward(settings) if settings.free_answers else None
    dataset = tokenized(settings)
    program = _program(settings, answer_sizes(dataset, settings) if settings.free_answers else None)
    path = settings.out / DATASET_FILE
    with blame_input("out"):
        write_dataset(path, dataset)

    reset_peak_rss()
    with blame_input("program"):
        trainer = executorch.Trainer(program, threads=settings.threads or 0)
    test_outcome, before = _quality(settings, trainer, path, dataset)
    start = Beginning({})
    if not settings.free_answers:
        start = begin_native(settings, trainer, path, lambda: _scored(trainer, path, "test", settings))
    run = _tune(trainer, path, settings, stop, start.keep, _objective(settings, reward))

    def save(directory: Path) -> None:
        trainer.save_adapter(directory / ADAPTER_FILE)
        peft_from_device(directory / ADAPTER_FILE, directory / ADAPTER_DIRECTORY)

    after = None if run.interrupted else stop.heeding(test_outcome)
    run.interrupted = after is None
    size = program.stat().st_size
    return write_results(settings, before, after, run, save, program_bytes=size, **start.summary)


def program_files(settings: TrainSettings) -> list[Path]:
    """What a run of this engine replaces in `settings.out` beside its results."""
    own = [DATASET_FILE, ADAPTER_FILE] + [PROGRAM_FILE] * (settings.program is None)
    return [settings.out / name for name in own]


def _check(settings: TrainSettings) -> None:
    """Find what would only show after the export. Raises InputError."""
    if settings.free_answers and settings.start == "readout":
        raise InputError("start: expected zero where answers are free, got readout")
    if settings.readout_layers == "several":
        raise InputError(
            "readout_layers: expected last in ExecuTorch, whose programs hold A as exported, got several"
        )
    if settings.dtype not in ("auto", own := AUTOMATIC_DTYPE["executorch"]):
        raise InputError(f"dtype: the native trainer has {own} only, got {settings.dtype}")
    if not settings.free_answers:
        learns_accuracy(settings)
    with blame_input("settings"):
        estimator(settings), update_rule(settings)
    if not -(2**63) <= settings.seed < 2**63:
        raise InputError(f"seed: expected a signed 64-bit integer, got {settings.seed}")


def _program(settings: TrainSettings, sizes: AnswerSizes | None) -> Path:
    """The program to tune: that of `settings`, that of the run to resume, or a new one; for free answers of
    these sizes, if they are.
    """
    kept = settings.out / PROGRAM_FILE
    program = settings.program or kept
    own: dict[str, Any] = {} if sizes is None else {**vars(sizes)}
    least = own.get("context", 0)
    if sizes is None and learns_accuracy(settings):
        least = settings.max_length + 1  # labels are the first tokens that it would write
    if least:
        own["context"] = max(least, settings.context or 0)
    wanted = ExportSettings(**{**_common(settings), **own}, out=kept, overwrite=True)
    if settings.program is not None or (settings.resume and kept.is_file()):
        _check_program(program, wanted, sizes, writes=settings.objective != "cross-entropy")
    else:
        in_fresh_process(export, wanted)
    return program


def _common(settings: TrainSettings) -> dict[str, Any]:
    """The settings that both commands have."""
    shared = {f.name for f in fields(ExportSettings)} & {f.name for f in fields(TrainSettings)}
    return {name: getattr(settings, name) for name in shared - {"out", "overwrite"}}


def _check_program(program: Path, wanted: ExportSettings, sizes: AnswerSizes | None, *, writes: bool) -> None:
    """Raise InputError unless `program` is what an export as `wanted` would give, but for the values of A
    and, for free answers, what it has room for beyond these sizes; or if it must write and cannot.
    """
    with blame_input("program"):
        description = native().read_description(program)
    if writes and description.generation is None:
        raise InputError(f"program: {program} was exported without --context, which the objective needs")
    model = adapted_model(wanted, encoder_of(wanted, load_tokenizer(wanted.model)))
    names = ["queries", "batch_size", "estimator", "distribution", "quantization", "lowering"]
    for name in names if sizes else [*names, "max_length"]:
        _check_same(name, program, getattr(description, name), getattr(wanted, name))
    _check_same("optimizer", program, description.optimizer.as_json(), update_rule(wanted).as_json())
    tail = adapter_of(model).config.alora_invocation_tokens
    if sizes is not None:
        check_context(program, description, sizes)
    elif wanted.context is not None:
        there = description.generation and description.generation.context
        if not (writes and there and there >= wanted.context):
            _check_same("context", program, there, wanted.context)
    there = None if description.invocation_tokens is None else list(description.invocation_tokens)
    if there != tail:
        raise InputError(f"tail: {program} was exported for adapters from the tokens {there} on, got {tail}")
    fingerprint = model_fingerprint(model)
    if description.model.fingerprint != fingerprint:
        got = description.model.name or "another model"
        raise InputError(f"model: {program} was exported from {got}, not from {wanted.model}")
    ours = {
        f"{name}.weight": (tuple(layer.lora_b.shape), layer.scaling)
        for name, layer in adapter_layers(model).items()
    }
    theirs = {p.name: (p.lora_b, p.scaling) for p in description.adapter.parameters}
    if theirs != ours:
        raise InputError(
            f"program: the adapter of {program} has other targets, layers, rank or alpha: expected "
            f"{len(ours)} LoRA-B of {_shapes(ours)}, got {len(theirs)} of {_shapes(theirs)}"
        )


def _check_same(name: str, program: Path, there: object, wanted: object) -> None:
    if there != wanted:
        raise InputError(f"{name}: {program} was exported for {there}, got {wanted}")


def _shapes(adapter: Mapping[str, tuple[tuple[int, ...], float]]) -> str:
    """The different shapes and scalings in an adapter, in words."""
    return " and ".join(
        sorted({f"{list(shape)} scaled by {scaling:g}" for shape, scaling in adapter.values()})
    )


def _quality(
    settings: TrainSettings, trainer: Trainer, path: Path, dataset: TokenizedDataset
) -> tuple[Callable[[], Outcome], dict[str, float | None]]:
    """What scores the test rows by the adapter that the program has then, and how good the untuned one is."""
    if settings.free_answers:
        tokenizer = load_tokenizer(settings.model)

        def answered() -> Outcome:
            return answers_outcome(trainer, path, dataset.test, tokenizer, settings.max_new_tokens)

        return answered, {f"{name}_before": value for name, value in answered().quality.items()}
    with blame_input("data"):
        before = quality_before(
            _scored(trainer, path, "test", settings), _scored(trainer, path, "train", settings)
        )
    return lambda: outcome(_scored(trainer, path, "test", settings)), before


def _scored(trainer: Trainer, dataset: Path, split: str, settings: TrainSettings) -> Scored:
    """The first rows of a split of the data set, scored in ExecuTorch."""
    result = trainer.evaluate(dataset, split=split, rows=settings.eval_rows)
    return Scored(result.scores, result.labels)


def _objective(settings: TrainSettings, reward: Reward | None) -> TextReward | Literal["accuracy"] | None:
    """What the native trainer minimises; None for the cross-entropy."""
    if reward is not None:
        return native().TextReward(
            reward=reward,
            tokenizer=load_tokenizer(settings.model),
            name=objective_name(settings),
            max_new_tokens=settings.max_new_tokens,
        )
    return "accuracy" if not settings.free_answers and learns_accuracy(settings) else None


class _Stopped(Exception):
    """The run is to end."""


def _tune(
    trainer: Trainer,
    dataset: Path,
    settings: TrainSettings,
    stop: StopRequest,
    on_begin: Callable[[], None],
    objective: TextReward | Literal["accuracy"] | None,
) -> FitResult:
    """Make `settings.steps` steps and leave the program with the adapter that the trainer keeps; with that of
    the last step if `stop` ends the run.
    """
    executorch, run, made = native(), FitResult(), 0
    with (
        TuningBar(settings.steps, settings.batch_size) as bar,
        Scalars(settings.tensorboard) as board,
        stop.armed(),
    ):

        def on_step(report: StepReport) -> None:
            nonlocal made
            run.losses.append(report.loss)
            run.seconds.append(report.seconds)
            run.skipped_steps += report.skipped
            made = report.step + 1
            board.step(made, report.loss, report.lr, report.seconds)
            bar.show_step(report.step, report.loss, report.seconds)
            if stop():
                raise _Stopped

        def on_evaluation(found: NativeValidation) -> None:
            labelled = not settings.free_answers
            accuracies = (found.accuracy, found.balanced_accuracy) if labelled else (None, None)
            run.validations.append(Validation(found.step, found.loss, *accuracies))
            board.validation(found.step, found.loss, *accuracies)
            bar.show_validation(f"{found.balanced_accuracy:.1%}" if labelled else f"{found.loss:.3f}")

        with blame_input("settings"):
            try:
                result = trainer.train(
                    dataset,
                    steps=settings.steps,
                    eps=settings.eps,
                    lr=settings.lr,
                    lr_schedule=settings.lr_schedule,
                    normalize=settings.normalize,
                    run_seed=settings.seed,
                    journal=settings.journal,
                    resume=settings.resume,
                    eval_every=settings.eval_every,
                    validation_rows=settings.validation_rows,
                    stop_unsteady=settings.stop_unsteady,
                    objective=objective,
                    reward_shaping=settings.reward_shaping,
                    on_begin=on_begin,
                    on_step=on_step,
                    on_evaluation=on_evaluation,
                )
            except RewardError as error:
                raise InputError(f"objective: {error}") from error
            except JournalLost as error:
                assert isinstance(error.result, executorch.TrainResult)
                result, run.lost = error.result, str(error)
            except _Stopped:
                run.interrupted = run.stopped = True
                run.best_step = made
                return _with_recorded(run, settings, made - len(run.losses))
            except OSError as error:
                raise InputError(f"journal: {error}; make room and go on with --resume") from error
    run.best_step, run.skipped_steps, run.stopped = result.best_step, result.skipped_steps, result.stopped
    return _with_recorded(run, settings, result.resumed_steps)


def _with_recorded(run: FitResult, settings: TrainSettings, resumed: int) -> FitResult:
    """The run with the steps in front that its journal had when it was resumed."""
    if run.lost:
        run.losses[:0] = [math.nan] * resumed
    elif settings.journal is not None:
        recorded = read_journal(settings.journal)[1][:resumed]
        run.losses[:0] = recorded.losses.tolist()
        run.skipped_steps += int((~recorded.applied).sum())
    return run
