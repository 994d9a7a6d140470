"""Entry point of the command line."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mobizo_kernels import __version__
from mobizo_kernels.cli.adapter import convert_adapter
from mobizo_kernels.cli.chat import chat
from mobizo_kernels.cli.demo import ENGINES, PLANS, demo
from mobizo_kernels.cli.environment import environment
from mobizo_kernels.cli.evaluate import evaluate
from mobizo_kernels.cli.export import export
from mobizo_kernels.cli.generate import generate
from mobizo_kernels.cli.report import (
    answers_text,
    demo_table,
    environment_table,
    evaluation_table,
    plain_table,
    training_table,
)
from mobizo_kernels.cli.settings import (
    AdapterSettings,
    Engine,
    EvalSettings,
    ExportSettings,
    Json,
    TokenizeSettings,
    TrainSettings,
    takes,
)
from mobizo_kernels.cli.tokenize import tokenize
from mobizo_kernels.cli.train import train
from mobizo_kernels.cli.writing_settings import ChatSettings, GenerateSettings
from mobizo_kernels.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"mobizo {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end."),
    ] = False,
) -> None:
    """Fine-tune language models with forward passes only."""


@app.command("train")
@takes(TrainSettings)
def train_command(settings: TrainSettings, print_json: bool) -> None:
    """Tune LoRA adapters of a model on labelled texts, without back-propagation, in torch or ExecuTorch."""
    journal = settings.journal
    advice = "with --journal FILE a run can go on" if journal is None else "--resume goes on with the run"
    _answer(partial(train, settings), training_table, print_json, f"no result has been written; {advice}")


@app.command("eval")
@takes(EvalSettings)
def eval_command(settings: EvalSettings, print_json: bool) -> None:
    """Score a model, with an adapter or without, on the test split of the data."""
    _answer(partial(evaluate, settings), evaluation_table, print_json)


@app.command("generate")
@takes(GenerateSettings)
def generate_command(settings: GenerateSettings, print_json: bool) -> None:
    """Let a model, with an adapter or without, answer prompts."""
    _answer(partial(generate, settings), answers_text, print_json)


@app.command("chat")
@takes(ChatSettings)
def chat_command(settings: ChatSettings, print_json: bool) -> None:
    """Let a model, with an adapter or without, answer each line of the standard input, as a conversation."""
    say = (lambda answer: None) if print_json else partial(print, flush=True)
    try:
        result = chat(settings, _questions(), say)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        sys.exit(130)
    if print_json:
        print(json.dumps(result), flush=True)


@app.command("export")
@takes(ExportSettings)
def export_command(settings: ExportSettings, print_json: bool) -> None:
    """Write a .pte that trains a model inside ExecuTorch; the native trainer and mobizo train run it."""
    _answer(partial(export, settings), plain_table, print_json)


@app.command("tokenize")
@takes(TokenizeSettings)
def tokenize_command(settings: TokenizeSettings, print_json: bool) -> None:
    """Make the data set file that the native trainer reads: the texts as tokens, in the order of training."""
    _answer(partial(tokenize, settings), plain_table, print_json)


@app.command("adapter")
@takes(AdapterSettings)
def adapter_command(settings: AdapterSettings, print_json: bool) -> None:
    """Turn an adapter file of the native trainer into a PEFT directory, or such a directory into a file."""
    _answer(partial(convert_adapter, settings), plain_table, print_json)


@app.command("demo")
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
    engines = ENGINES if engine == "both" else (engine,)
    for name in engines:
        print(PLANS[name], file=sys.stderr)
    _answer(partial(demo, out, engines), demo_table, print_json, "what is not in --out yet is lost")


@app.command("env")
def env_command(print_json: Json = False) -> None:
    """Print the versions, the CPU and the kernels a run would use."""
    _answer(environment, environment_table, print_json)


def run(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Every failure that can be foreseen ends in one sentence on stderr.

    The exit code is then 2 for bad input, 130 for an interrupt from the keyboard, and 1 where the system
    refuses something, as a full disk behind stdout does; a reader of stdout that has gone is told nothing.

    Args:
        arguments: without the program's name; those of the process by default.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a name that the terminal cannot show is shown anyhow
    try:
        try:
            app(arguments, prog_name="mobizo")
        except SystemExit as end:
            if not end.code:
                _flush_output()
            raise
    except InputError as error:
        print(f"mobizo: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        _forget_output()
        if error.errno != errno.EPIPE:
            what = "the output" if error.filename is None else error.filename
            print(f"mobizo: {what} cannot be used ({error.strerror or error})", file=sys.stderr)
        sys.exit(1)


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


def _answer(
    work: Callable[[], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    print_json: bool,
    if_interrupted: str = "nothing has been written",
) -> None:
    """Do the work of a command and print what comes of it."""
    try:
        result = work()
    except KeyboardInterrupt:
        print(f"\nmobizo: interrupted: {if_interrupted}", file=sys.stderr)
        sys.exit(130)
    print(json.dumps(result) if print_json else table(result), flush=True)


def _flush_output() -> None:
    """Raise OSError unless stdout has taken all that was printed."""
    if sys.stdout is None:  # closed before Python began
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    sys.stdout.flush()


def _forget_output() -> None:
    """Let Python, as it ends, not try again to write what stdout has refused."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
