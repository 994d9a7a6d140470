"""The commands: what each is told, which work it does, and how that is printed.

The work is imported when it is asked for: torch and transformers take seconds, which help and mistakes in the
options need not.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.completion import get_completion_script

from mobizo_kernels import __version__
from mobizo_kernels.cli import report
from mobizo_kernels.cli.interrupts import StopRequest, exit_code, tell
from mobizo_kernels.cli.options import Json, Told, takes
from mobizo_kernels.cli.settings import (
    AdapterSettings,
    BenchSettings,
    ExportSettings,
    ReplaySettings,
    TokenizeSettings,
    TrainSettings,
)
from mobizo_kernels.cli.task_settings import Engine, EvalSettings
from mobizo_kernels.cli.usage import GroupedCommand
from mobizo_kernels.cli.writing_settings import ChatSettings, GenerateSettings
from mobizo_kernels.errors import InputError

EXIT_CODES = (
    "Exit codes: 0, done; 1, the system or the program failed; 2, something given is wrong, and the message "
    "says what; 129, 130 and 143, interrupted by a terminal that was closed, by Ctrl-C and by SIGTERM."
)

app = typer.Typer(
    invoke_without_command=True, pretty_exceptions_enable=False, rich_markup_mode=None, epilog=EXIT_CODES
)
_command = partial(app.command, cls=GroupedCommand)

Shell = Literal["bash", "zsh", "fish"]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"mobizo {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end."),
    ] = False,
) -> None:
    """Fine-tune language models with forward passes only.

    Begin with: mobizo train --out run, on film reviews; or mobizo train --help.
    """
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


@_command("train")
@takes(TrainSettings)
def train_command(settings: TrainSettings, told: Told) -> None:
    """Tune LoRA adapters of a model on labelled texts, without back-propagation, in torch or ExecuTorch.

    mobizo train --data reviews.csv --template "{text} It was" --verbalizer '{"0": " bad", "1": " good"}'
    --out run --journal run.journal
    """
    stop = StopRequest()

    def work() -> dict[str, Any]:
        from mobizo_kernels.cli.train import train

        return train(settings, stop)

    resumes = "with --journal FILE a run can go on"
    if settings.journal is not None:
        again = [*told.arguments, *([] if settings.resume else ["--resume"])]
        resumes = f"go on with\n  {shlex.join(['mobizo', *again])}"
    result = _done(work, f"no result has been written; {resumes}")
    if not result.get("interrupted"):
        table = report.plan_table if settings.dry_run else report.training_table
        _print(result, table, told)
        return
    if told.print_json:
        print(json.dumps(result), flush=True)
    tell(f"mobizo: {report.interrupted(result)}; {resumes}\n")
    sys.exit(128 + (stop.signal or 0))


@_command("eval")
@takes(EvalSettings)
def eval_command(settings: EvalSettings, told: Told) -> None:
    """Score a model, with an adapter or without, on the test split of the data."""

    def work() -> dict[str, Any]:
        from mobizo_kernels.cli.evaluate import evaluate

        return evaluate(settings)

    _print(_done(work), report.evaluation_table, told)


@_command("generate")
@takes(GenerateSettings)
def generate_command(settings: GenerateSettings, told: Told) -> None:
    """Let a model, with an adapter or without, answer prompts."""

    def work() -> dict[str, Any]:
        from mobizo_kernels.cli.generate import generate

        return generate(settings)

    _print(_done(work), report.answers_text, told)


@_command("chat")
@takes(ChatSettings)
def chat_command(settings: ChatSettings, told: Told) -> None:
    """Let a model, with an adapter or without, answer each line of the standard input, as a conversation."""

    def work() -> dict[str, Any]:
        from mobizo_kernels.cli.chat import chat

        say = (lambda answer: None) if told.print_json else partial(print, flush=True)
        return chat(settings, _questions(), say)

    result = _done(work, None)
    if told.print_json:
        print(json.dumps(result), flush=True)


@_command("export")
@takes(ExportSettings)
def export_command(settings: ExportSettings, told: Told) -> None:
    """Write a .pte that trains a model inside ExecuTorch; the native trainer and mobizo train run it."""

    def work() -> dict[str, Any]:
        from mobizo_kernels.cli.export import export

        return export(settings)

    _print(_done(work), report.plain_table, told)


@_command("tokenize")
@takes(TokenizeSettings)
def tokenize_command(settings: TokenizeSettings, told: Told) -> None:
    """Make the data set file that the native trainer reads: the texts as tokens, in the order of training."""

    def work() -> dict[str, Any]:
        from mobizo_kernels.cli.tokenize import tokenize

        return tokenize(settings)

    _print(_done(work), report.plain_table, told)


@_command("adapter")
@takes(AdapterSettings)
def adapter_command(settings: AdapterSettings, told: Told) -> None:
    """Turn an adapter file of the native trainer into a PEFT directory, or such a directory into a file."""

    def work() -> dict[str, Any]:
        from mobizo_kernels.cli.adapter import convert_adapter

        return convert_adapter(settings)

    _print(_done(work), report.plain_table, told)


@_command("replay")
@takes(ReplaySettings)
def replay_command(settings: ReplaySettings, told: Told) -> None:
    """Rebuild the adapter of a run from its journal, to the bit and without any forward."""

    def work() -> dict[str, Any]:
        from mobizo_kernels.cli.replay import replay_journal

        return replay_journal(settings)

    _print(_done(work), report.plain_table, told)


@_command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Directory for the results; an earlier demo is replaced.")] = Path(
        "demo"
    ),
    engine: Annotated[
        Literal["both", Engine],
        typer.Option(help="ExecuTorch takes 7 minutes on two cores, eager torch three."),
    ] = "both",
    print_json: Json = False,
) -> None:
    """Tune SmolLM2-135M-Instruct on Rotten Tomatoes with the default recipe, in ExecuTorch and in torch."""

    def work() -> dict[str, Any]:
        from mobizo_kernels.cli.demo import ENGINES, PLANS, demo

        engines = ENGINES if engine == "both" else (engine,)
        for name in engines:
            print(PLANS[name], file=sys.stderr)
        return demo(out, engines)

    _print(_done(work, "what is not in --out yet is lost"), report.demo_table, Told(print_json))


@_command("bench")
@takes(BenchSettings)
def bench_command(settings: BenchSettings, told: Told) -> None:
    """Time a training step on this machine, beside the bare forward of its rows and a copy in memory."""

    def work() -> dict[str, Any]:
        from mobizo_kernels.cli.bench import bench

        return bench(settings)

    _print(_done(work), report.bench_table, told)


@_command("env")
def env_command(print_json: Json = False) -> None:
    """Print the versions, the CPU and the kernels a run would use."""

    def work() -> dict[str, Any]:
        from mobizo_kernels.cli.environment import environment

        return environment()

    _print(_done(work), report.environment_table, Told(print_json))


@_command("completion")
def completion_command(shell: Annotated[Shell, typer.Argument(help="Whose.")]) -> None:
    """Print what makes a shell complete commands, options and their values.

    In ~/.bashrc: eval "$(mobizo completion bash)"
    """
    print(get_completion_script(prog_name="mobizo", complete_var="_MOBIZO_COMPLETE", shell=shell))


def _questions() -> Iterator[str]:
    """The lines of the standard input, each asked for on a terminal."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise InputError(f"question: expected text in {error.encoding}") from error
        if not line:
            return
        yield line


def _done(
    work: Callable[[], dict[str, Any]], if_interrupted: str | None = "nothing has been written"
) -> dict[str, Any]:
    """What the work of a command gives. An interrupt ends the program with the code that shells expect."""
    try:
        return work()
    except KeyboardInterrupt as error:
        tell(f"\nmobizo: interrupted: {if_interrupted}\n" if if_interrupted else "\n")
        sys.exit(exit_code(error))


def _print(result: dict[str, Any], table: Callable[[dict[str, Any]], str], told: Told) -> None:
    print(json.dumps(result) if told.print_json else table(result), flush=True)
